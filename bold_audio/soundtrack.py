"""The sound of a run for a page: its envelope, and a small compressed copy on the run's clock."""

import io
import itertools
from dataclasses import dataclass

import numpy as np

from bold_audio.files import DataError
from bold_audio.sound import open_sound

RATE = 24_000  # Hz
# In order of preference: Vorbis packs a film in a seventh of the time that libsndfile takes for Opus.
KINDS = {"audio/ogg": ("OGG", "VORBIS"), "audio/mpeg": ("MP3", "MPEG_LAYER_III")}
COMPRESSION = 0.9  # between 0 and 1: about 60 kbit/s in both
PIECE = RATE * 5  # samples given to the encoder at once: libsndfile overflows its stack on a whole film
ENVELOPE_BINS = 1200


@dataclass(frozen=True)
class Soundtrack:
    """One channel on the run's clock.

    Parameters
    ----------
    y : array of shape (n_samples,)
        float32 at `RATE`.
    onset : float
        When the first sample is heard, s on the run's clock; may be negative.
    """

    y: np.ndarray
    onset: float

    @property
    def duration(self):
        """Length in seconds."""
        return len(self.y) / RATE


def open_soundtrack(paths, onsets, *, end):
    """Read one sound file, or one for each run, onto one clock.

    Parameters
    ----------
    paths : sequence of path
    onsets : sequence of float
        When each file begins on the clock, s.
    end : float
        End of the scan, s: nothing is kept after it.

    Returns
    -------
    Soundtrack

    Raises
    ------
    DataError
        If there is not one onset for each file, a file cannot be read, or none is heard during the scan.
    """
    if len(paths) != len(onsets):
        raise DataError(f"{len(paths)} sound files for {len(onsets)} runs - give one for each")
    start = float(min(onsets))
    y = np.zeros(max(0, int(np.ceil((end - start) * RATE))), np.float32)
    last = 0
    for path, onset, until in zip(paths, onsets, [*onsets[1:], end], strict=True):
        heard = open_sound(path).at(RATE)
        first = int(round((onset - start) * RATE))
        stop = min(first + len(heard), int(np.ceil((until - start) * RATE)))
        if stop > first:
            y[first:stop] = heard[: stop - first]
            last = max(last, stop)
    if last == 0 or start + last / RATE <= 0:
        raise DataError("the sound does not play during the scan - check audio_onset")
    return Soundtrack(y[:last], start)


def compressed(track, kind):
    """A compressed copy for a browser.

    Parameters
    ----------
    track : Soundtrack
    kind : str
        One of `KINDS`.

    Returns
    -------
    bytes
        Mono; Ogg Vorbis, in which a browser finds a moment to the sample, or MP3 of constant bit rate.
    """
    import soundfile

    form, subtype = KINDS[kind]
    out = io.BytesIO()
    how = {"compression_level": COMPRESSION} | ({"bitrate_mode": "CONSTANT"} if form == "MP3" else {})
    with soundfile.SoundFile(out, "w", RATE, 1, format=form, subtype=subtype, **how) as file:
        for start in range(0, len(track.y), PIECE):
            file.write(np.clip(track.y[start : start + PIECE], -1, 1))
    return out.getvalue()


def envelope(track, *, end, bins=ENVELOPE_BINS):
    """Loudest sample in each of evenly spaced stretches from 0 to ``end`` s, relative to the loudest of all.

    Returns
    -------
    array of shape (bins,), uint8
        0 is silence (or no sound), 255 the loudest.

    Examples
    --------
    >>> y = np.repeat([0.0, 0.5, 1.0], RATE)
    >>> envelope(Soundtrack(y, onset=-1.0), end=4.0, bins=4)
    array([127, 255,   0,   0], dtype=uint8)
    """
    edges = np.round((np.linspace(0, end, bins + 1) - track.onset) * RATE).astype(int).clip(0, len(track.y))
    peaks = np.array([np.abs(track.y[a:b]).max() if b > a else 0 for a, b in itertools.pairwise(edges)])
    return (255 * peaks / max(peaks.max(), 1e-9)).astype(np.uint8)


def playable(kinds):
    """The first of `KINDS` among those that a browser can play.

    Raises
    ------
    DataError
    """
    for kind in KINDS:
        if kind in kinds:
            return kind
    raise DataError("this browser plays neither Ogg Vorbis nor MP3 - use another to hear the sound")
