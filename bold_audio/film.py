"""The sound of a film that never was, and the noiseless response of a brain to it: what `simulate` plants."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal, special

T_R = 0.608  # s
SAMPLE_RATE = 44100  # Hz
REEL = 600  # s, whole blocks of music and speech
REEL_SEEDS = 10**9  # between the seeds of a film's reels: no film has so large a one
DELAY_GRID = np.round(np.arange(0, 12.001, 0.05), 2)  # s
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))  # major, minor, in semitones
# Flute, strings, clarinet, brass; piano, harp: loss per harmonic, level of even ones, attack and decay in s, vibrato.
TIMBRES = (
    (2.4, 0.6, 0.07, 9, 0.4),
    (1.0, 1.0, 0.12, 9, 0.5),
    (1.2, 0.1, 0.04, 9, 0.1),
    (0.5, 1.0, 0.03, 4, 0.2),
    (1.5, 1.0, 0.005, 0.7, 0),
    (0.8, 0.7, 0.003, 0.3, 0),
)
VOWELS = {"a": (730, 1090), "e": (500, 1750), "i": (280, 2250), "o": (500, 850), "u": (310, 870)}  # first formants, Hz
FRICATION = {"s": 6500, "z": 6000, "f": 4500, "v": 4000, "c": 3200, "g": 2200, "h": 1600}  # centre, Hz
STOPS = {"p": 1200, "b": 900, "t": 4200, "d": 3500, "k": 2300}
TEXTS = [c + v + e for c in "sfgmnpbtdkwlrzh" for v in "aeiou" for e in ("", "", "n", "s", "t")]


def film_blocks(duration):
    """Return (onset, duration, kind) of the alternating blocks, music first.

    Blocks last 30 s, or a quarter of a film shorter than two minutes; the last one ends with the film.
    """
    length = min(30.0, duration / 4)
    n_blocks = int(np.ceil(duration / length - 0.05))
    edges = [*(i * length for i in range(n_blocks)), duration]
    return [(edges[i], edges[i + 1] - edges[i], ("music", "speech")[i % 2]) for i in range(n_blocks)]


def film_sound(duration, *, seed=0, syllables=None):
    """Make the sound of the film.

    Parameters
    ----------
    duration : float
        Length of the film, in seconds.
    seed : int
        Decides everything that is drawn.
    syllables : sequence of (text, onset, offset), optional
        When which syllable is spoken, in seconds of the film, in order. By default invented
        ones, at 4 to 5 per second with pauses, inside the speech blocks.

    Returns
    -------
    array of shape (n_samples,)
        int16 at 44.1 kHz.
    """
    rng = np.random.default_rng([seed, 0])
    n_samples = round(duration * SAMPLE_RATE)
    parts = np.zeros((2, n_samples + 13 * SAMPLE_RATE), dtype=np.float32)  # music, speech
    for i, (onset, length, kind) in enumerate(film_blocks(duration)):
        if kind == "music":
            music = _music(np.random.default_rng([seed, 1, i]), length)
            parts[0, int(onset * SAMPLE_RATE) :][: len(music)] += music
    if syllables is None:
        syllables = invented_syllables(np.random.default_rng([seed, 2]), duration)
    for i, (speaker, phrase) in enumerate(_phrases(syllables)):
        speech = _speech(np.random.default_rng([seed, 3, i]), np.random.default_rng([seed, 4, speaker]), phrase)
        parts[1, int(phrase[0][1] * SAMPLE_RATE) :][: len(speech)] += speech
    parts /= np.sqrt(np.mean(parts**2, axis=1, keepdims=True) + 1e-12)
    y = (parts[0] + parts[1])[:n_samples]
    del parts
    # What the camera and the mixing desk do: tilt of the spectrum, level and room change every few seconds.
    dull = signal.lfilter([0.08], [1, -0.92], y).astype(np.float32)
    y = dull + (y - dull) * 10 ** (_slow(rng, n_samples, -9, 6) / 20)
    room = signal.lfilter([1], [1, -0.9], rng.standard_normal(n_samples, dtype=np.float32)).astype(np.float32)
    y = y * 10 ** (_slow(rng, n_samples, -8, 4) / 20) + room * 10 ** (_slow(rng, n_samples, -60, -40) / 20)
    return np.round(30000 * np.tanh(0.25 * y)).astype(np.int16)


def film_reels(duration, *, seed=0):
    """The sound of a film reel by reel, for one that is too long to be made whole.

    Parameters
    ----------
    duration, seed
        As for `film_sound`.

    Yields
    ------
    array of shape (n_samples,)
        As of `film_sound`. Reels last ten minutes, the last one up to twenty: a shorter film is `film_sound` itself.
        Their blocks are those of the whole film.
    """
    n_reels = max(1, int(duration // REEL))
    for k in range(n_reels):
        length = REEL if k < n_reels - 1 else duration - k * REEL
        yield film_sound(length, seed=seed + k * REEL_SEEDS)


def _slow(rng, n_samples, low, high):
    """Curve through random values every 1 to 5 seconds, one per sample."""
    knots = np.cumsum(rng.uniform(1, 5, n_samples // SAMPLE_RATE + 3)) - 1
    return np.interp(np.arange(n_samples) / SAMPLE_RATE, knots, rng.uniform(low, high, len(knots))).astype(np.float32)


def _music(rng, length):
    """One piece: phrases of 4 or 8 beats with their own instruments, register, loudness and density."""
    y = np.zeros(int((length + 12) * SAMPLE_RATE), dtype=np.float32)
    beat, key, scale = rng.uniform(0.42, 0.68), rng.integers(45, 57), SCALES[rng.integers(2)]
    pitch = lambda step: key + 12 * (step // 7) + scale[step % 7]  # noqa: E731
    now, step = 0.0, 7
    while now < length:
        n_beats, loud = rng.choice([4, 4, 8]), rng.uniform(-18, 0, 2)  # dB where the phrase begins and ends
        lead, pad = rng.choice(len(TIMBRES), 2, replace=False)
        register, density = 7 * rng.integers(0, 3), rng.choice([1, 2, 2, 4])
        texture = rng.random(3) < (0.9, 0.75, 0.45)  # melody, chords, drums
        texture[1] |= not texture[0]
        for b in range(n_beats):
            at, gain = now + b * beat, 10 ** ((loud[0] + (loud[1] - loud[0]) * b / n_beats) / 20)
            if texture[1] and b % 2 == 0:
                root = (0, 3, 4, 5, 1)[rng.integers(5)]
                for third in (root - 7, root, root + 2, root + 4):
                    _add_note(rng, y, at, 2 * beat, pitch(third), pad, 0.35 * gain)
            for d in range(density if texture[0] else 0):
                step = int(np.clip(step + rng.integers(-2, 3), 3, 13))
                if rng.random() < 0.88:
                    _add_note(rng, y, at + d * beat / density, beat / density, pitch(step + register), lead, gain)
            for d in range(2 if texture[2] else 0):
                fade = np.exp(-np.arange(SAMPLE_RATE // 5) / (700 if d else 2500))
                hit = rng.standard_normal(len(fade)) * fade
                start = int((at + d * beat / 2) * SAMPLE_RATE)
                y[start : start + len(hit)] += 0.5 * gain * (hit if d else signal.lfilter([0.05], [1, -0.95], 3 * hit))
        now += n_beats * beat
    y[int(length * SAMPLE_RATE) :] = 0
    return 0.25 * y


def _add_note(rng, y, start, duration, midi, timbre, gain):
    """Add one note to ``y``: a periodic wave whose upper harmonics fade first."""
    loss, even, attack, decay, vibrato = TIMBRES[timbre]
    f0 = 440 * 2 ** ((midi - 69) / 12)
    t = np.arange(int((duration + 0.2) * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    harmonics = np.arange(1, int(min(30, 16000 / f0)) + 1)
    amplitudes = harmonics**-loss * np.where(harmonics % 2 == 0, even, 1)
    waves = np.zeros((2, 1025), dtype=complex)
    waves[0, harmonics], waves[1, harmonics] = amplitudes, amplitudes * np.exp(-harmonics / 2)
    phases = np.exp(2j * np.pi * rng.random(1025))
    bright, dark = (np.fft.irfft(waves * phases, axis=1) * 2048 / np.sqrt((amplitudes**2).sum())).astype(np.float32)
    phase = (f0 * t + vibrato * f0 * 0.0015 * np.sin(33 * t)) % 1
    index = (phase * 2047.99).astype(np.int32)
    envelope = np.minimum(t / attack, 1) * np.exp(-t / decay) * np.clip((duration + 0.2 - t) / 0.2, 0, 1)
    begin = int(start * SAMPLE_RATE)
    shine = np.exp(-t / (0.5 * decay))
    y[begin : begin + len(t)] += gain * envelope * (dark[index] + shine * (bright - dark)[index])


def invented_syllables(rng, duration):
    """Syllables at 4 to 5 per second in phrases with pauses, inside the speech blocks."""
    syllables = []
    for onset, length, kind in film_blocks(duration):
        now, left = onset + rng.uniform(0.1, 0.5), 0
        while kind == "speech":
            if left == 0:
                left, now = rng.integers(3, 16), now + rng.choice([0.3, 0.6, 1.0, 1.8])
            spoken = float(np.clip(rng.lognormal(np.log(0.2), 0.35), 0.09, 0.5)) * (1.4 if left == 1 else 1)
            if now + spoken > onset + length - 0.1:
                break
            syllables.append((TEXTS[rng.integers(len(TEXTS))], now, now + spoken))
            now, left = now + spoken + rng.choice([0, 0, 0.03]), left - 1
    return syllables


def _phrases(syllables):
    """Cut a list of syllables into (speaker, phrase) at its pauses; after a long pause another one speaks."""
    phrases = []
    for syllable in syllables:
        pause = syllable[1] - phrases[-1][1][-1][2] if phrases else 0
        if not phrases or pause > 0.25 or len(phrases[-1][1]) == 20:
            phrases.append((phrases[-1][0] + (pause > 0.8) if phrases else 0, []))
        phrases[-1][1].append(syllable)
    return phrases


def _speech(rng, speaker, phrase):
    """One phrase by one speaker: a buzz with pitch contour and a hiss, each through filters that change in time."""
    begin, end, hop = phrase[0][1], phrase[-1][2] + 0.1, 256
    t = np.arange(0, end - begin, hop / SAMPLE_RATE)
    # Columns: buzz, hiss, first three formants, centre and width of the hiss, pitch in octaves.
    tracks = np.tile([0, 0, 500, 1500, 2500, 3000, 1500, 0.0], (len(t), 1))
    for text, onset, offset in phrase:
        vowel = next((c for c in text.lower() if c in VOWELS), "e")
        stress, length = 10 ** (rng.uniform(-9, 0) / 20), offset - onset
        first = min(0.35 * length, 0.1) if text[0].lower() not in VOWELS else 0.0
        last = 0.25 * length if len(text) > 1 and text[-1].lower() not in VOWELS else 0.0
        spoken = (t >= onset - begin) & (t < offset - begin)
        tracks[spoken, 2:4], tracks[spoken, 0] = VOWELS[vowel], stress
        tracks[spoken, 7] = rng.normal(0, 0.12) + (0.25 if stress > 0.8 else 0)
        for letter, start, span in ((text[0], onset, first), (text[-1], offset - last, last)):
            inside = (t >= start - begin) & (t < start + span - begin)
            if letter.lower() in FRICATION:
                tracks[inside, 0] *= 0.3 * (letter.lower() in "zvg")
                tracks[inside, 1], tracks[inside, 5] = 0.5 * stress, FRICATION[letter.lower()]
            elif letter.lower() in STOPS:  # a closure, then a burst
                tracks[inside, 0] *= 0.05
                burst = inside & (t >= start + span - begin - 0.02)
                tracks[burst, 1], tracks[burst, 5], tracks[burst, 6] = stress, STOPS[letter.lower()], 2500
            else:  # nasals and glides: a voice with the mouth nearly closed
                tracks[inside, 0] *= 0.4
                tracks[inside, 2:4] = 300, 1100
    tracks = ndimage.gaussian_filter1d(tracks, 1.5, axis=0)
    pitch, tract, tilt, loud = speaker.uniform((90, 0.9, -6, -14), (230, 1.2, 3, 0)) + rng.normal(0, (8, 0, 1, 2))
    f0 = pitch * 2 ** (tracks[:, 7] - 0.3 * t / max(t[-1], 1) + rng.uniform(0, 0.2) * np.sin(rng.uniform(3, 6) * t))
    phase = np.cumsum(np.interp(np.arange(len(t) * hop) / hop, np.arange(len(t)), f0)) / SAMPLE_RATE
    buzz, hiss = 2 * (phase % 1) - 1, rng.standard_normal(len(phase))
    f, _, spectra = signal.stft(np.stack([buzz, hiss]), SAMPLE_RATE, nperseg=1024, noverlap=1024 - hop)
    tracks = tracks[np.minimum(np.arange(spectra.shape[2]), len(t) - 1)].T[:, None]  # (column, 1, frame)
    f = f[:, None]
    voice = tracks[0] * np.hypot(1, f / 1200)  # what the formants above the fourth would add
    for formant, width in zip((*tracks[2:5] * tract, 3700 * tract), (80, 110, 160, 250), strict=True):
        voice = voice * formant**2 / np.hypot(f**2 - formant**2, width * f)
    noise = 1.5 * tracks[1] * np.exp(-0.5 * ((f - tracks[5]) / tracks[6]) ** 2) + 0.02 * tracks[0]
    shaped = (spectra[0] * voice + spectra[1] * noise) * np.maximum(f / 500, 0.2) ** (tilt / 6)
    y = signal.istft(shaped, SAMPLE_RATE, nperseg=1024, noverlap=1024 - hop)[1][: len(phase)]
    return (y * 10 ** (loud / 20)).astype(np.float32)


def canonical_response(times):
    """Haemodynamic response of Glover (1999), two gamma densities, at ``times`` in seconds; its peak is near 5 s."""
    t = np.maximum(times, 0) / 0.9
    rise, fall = (t ** (a - 1) * np.exp(-t) / special.gamma(a) for a in (6 / 0.9, 12 / 0.9))
    return rise - 0.48 * fall


def window_means(frames, frame_times, starts, width):
    """Average a step function of time over windows.

    Each frame, a row of ``frames``, holds from half-way to the frame before to half-way to the next; outside all
    frames the function is 0. Works by differences of the running integral: a clock of its own, independent of
    `bold_audio.pairing`, which it serves to check. All times in seconds.

    Examples
    --------
    >>> window_means(np.array([[0.0], [1.0], [2.0]]), np.array([0.5, 1.5, 2.5]), np.array([-1.0, 0.5, 2.0]), 1.0).T
    array([[0. , 0.5, 2. ]])
    """
    middles = (frame_times[1:] + frame_times[:-1]) / 2
    edges = np.concatenate([[2 * frame_times[0] - middles[0]], middles, [2 * frame_times[-1] - middles[-1]]])
    integral = np.vstack([np.zeros(frames.shape[1]), np.cumsum(frames * np.diff(edges)[:, None], axis=0)])
    ends = np.asarray(starts) + width
    return np.stack([np.interp(ends, edges, i) - np.interp(starts, edges, i) for i in integral.T], axis=1) / width


def planted_responses(frames, frame_times, *, weights, delays, response, n_volumes, nonlinear=False):
    """Noiseless response of each region, one value per volume.

    Parameters
    ----------
    frames : array of shape (n_frames, n_features)
        Standardised features, evenly spaced; silence (0) is heard before the first.
    frame_times : array of shape (n_frames,)
        Centres of the frames, in seconds from volume 0.
    weights : array of shape (n_features, n_regions)
        How much each region likes each feature.
    delays : sequence of float
        Delay of each region, in seconds; with ``hrf``, where its response to a click peaks.
    response : {"delay", "hrf"}
        Shift only, or convolve with `canonical_response` and shift its peak to the delay.
    n_volumes : int
        Volume k averages over [k·TR, (k+1)·TR).
    nonlinear : bool
        The region answers above a threshold only: at z standard deviations from the mean with 1 / (1 + exp(6 − 6 z)).

    Returns
    -------
    array of shape (n_volumes, n_regions)
        Mean 0 and variance 1 over the volumes.
    """
    course, times, starts = frames @ weights, frame_times, np.arange(n_volumes) * T_R
    if response == "hrf":
        course, times = convolved(course, times)
    seen = np.stack(
        [window_means(c[:, None], times, starts - d, T_R)[:, 0] for c, d in zip(course.T, delays, strict=True)], axis=1
    )
    seen = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    if nonlinear:
        seen = 1 / (1 + np.exp(6 - 6 * seen))
        seen = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    return seen


def convolved(course, times):
    """Convolve with `canonical_response`; the times returned put the peak of a click's response at the click."""
    step = times[1] - times[0]
    fine = np.arange(0, 32, step)
    kernel = canonical_response(fine)
    course = signal.fftconvolve(course, kernel[:, None], axes=0)
    return course, times[0] - fine[kernel.argmax()] + step * np.arange(len(course))


def best_single_delays(frames, frame_times, responses, *, power):
    """Find the one delay whose volume-wise feature means fit the noiseless responses best.

    Ordinary least squares with intercept, over the volumes whose windows are inside the sound for the whole grid.

    Returns them in seconds: one per region, then the pooled one, whose squared error is summed over the regions with
    the signal variances ``power`` as weights.
    """
    starts = np.arange(len(responses)) * T_R
    starts, y = starts[starts >= DELAY_GRID.max()], responses[starts >= DELAY_GRID.max()]
    y = y - y.mean(axis=0)
    X = window_means(frames, frame_times, np.subtract.outer(starts, DELAY_GRID).T.ravel(), T_R)
    X = X.reshape(len(DELAY_GRID), len(starts), -1)
    basis = np.linalg.qr(X - X.mean(axis=1, keepdims=True))[0]  # orthonormal columns for each delay
    errors = (y**2).sum(axis=0) - ((basis.transpose(0, 2, 1) @ y) ** 2).sum(axis=1)
    return [float(DELAY_GRID[i]) for i in np.column_stack([errors, errors @ power]).argmin(axis=0)]


def add_signal(noise, responses, *, r2, region):
    """Scale the responses so that they make up the share ``r2`` of each voxel's variance, exactly, and add them.

    Parameters
    ----------
    noise : array of shape (n_volumes, n_voxels)
        Changed in place to the sum, with mean 0 and variance 1.
    responses : array of shape (n_volumes, n_regions)
        Mean 0 and variance 1.
    r2, region : arrays of shape (n_voxels,)
        The share, and 1, 2, … for the columns of ``responses``; 0 for none.

    Notes
    -----
    With the sample covariance c of noise and response, the amplitude a solves a² = r2 (a² + 2 a c + var(noise)).
    """
    noise -= noise.mean(axis=0)
    for v in np.flatnonzero(r2 > 0):
        s, n, share = responses[:, region[v] - 1], noise[:, v].astype(float), float(r2[v])
        c = np.mean(s * n)
        a = (share * c + np.sqrt((share * c) ** 2 + (1 - share) * share * np.mean(n**2))) / (1 - share)
        noise[:, v] = n + a * s
    noise /= noise.std(axis=0)


@dataclass(frozen=True)
class Planted:
    """The answer: what the sound does to which voxel."""

    label: np.ndarray  # (i, j, k): 0 none, 1 left, 2 right
    r2: np.ndarray  # (i, j, k): share of the voxel's variance that the sound causes
    responses: np.ndarray  # (n_volumes, n_regions)
    weights: np.ndarray  # (n_features, n_regions)
    best: dict  # by kind of features, delay or hrf: the single delay that fits best, s per region, then pooled; None
    # where no linear fit tells


def plant(sound, *, brain, distances, amplitude, weights, delays, response, strength, n_volumes, nonlinear=False):
    """Decide how much each voxel follows ``sound``, a `SoundFeatures`; the rest as in `planted_responses`.

    ``distances`` (n_regions, i, j, k) are relative to the regions' radii; ``amplitude`` is each voxel's standard
    deviation over time. At a region's centre r2 is ``strength``, at its edge 0.
    """
    near = distances.min(axis=0)
    label = np.where(brain & (near < 1), distances.argmin(axis=0) + 1, 0)
    r2 = strength * np.where(label > 0, (1 - np.minimum(near, 1) ** 6) ** 2, 0)
    frames = (sound.frames - sound.frames.mean(axis=0, dtype=float)) / sound.frames.std(axis=0, dtype=float)
    heard = {"frames": frames, "frame_times": sound.frame_times, "weights": weights, "delays": delays}
    responses = planted_responses(**heard, response=response, n_volumes=n_volumes, nonlinear=nonlinear)
    if nonlinear:  # a linear fit need not find the delay; where the features are made as planted, it is the planted one
        best = {"delay": None, "hrf": None} | {response: [float(d) for d in delays] + [None]}
        return Planted(label, r2, responses, weights, best)
    power = np.array([(r2 * amplitude**2)[label == i + 1].sum() for i in range(len(distances))])
    kinds = {"delay": (frames, sound.frame_times), "hrf": convolved(frames, sound.frame_times)}
    best = {kind: best_single_delays(*seen, responses, power=power) for kind, seen in kinds.items()}
    return Planted(label, r2, responses, weights, best)
