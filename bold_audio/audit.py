"""Is this the sound of that film? Its features against the film's blocks and word times."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import signal

from bold_audio.features import BLOCK_TYPES, SPEECH_TYPES, cached_mfcc, read_table, read_times, share_on

# Used where the frames at hand are too few or too coarse.
SETTINGS = {"sample_rate": 16000, "n_mfcc": 13, "n_fft": 512, "hop_length": 160}
COARSE = 0.02  # s between frames
BIN = 0.5  # s
SECOND = 1.0  # s over which mean and spread of the features are taken
RIDGE = 0.01  # of the number of bins
FEWEST_BLOCKS = 6
FOLLOWS_BLOCKS = (
    0.5  # correlation out of fold: at least 0.79 for 20 films, at most 0.32 for others (benchmarks/audit.py)
)
BLOCK_TOLERANCE = 1.0  # s of shift that the blocks cannot tell from none
WORD_BIN, WORD_DRIFT, WORD_REACH = 0.05, 2.0, 60.0  # s: step, what is slower is taken off, largest shift tried
FOLLOWS_WORDS = 8.0  # spreads of the correlation at other shifts: at least 11 for the film, at most 4.3 for others
WORD_TOLERANCE = 0.3  # s


@dataclass(frozen=True)
class Audit:
    """What the film's blocks and words say of a sound file; times in seconds, positive where the sound is late.

    ``None`` stands for what could not be asked: no blocks, too few of them, or no table of words.
    """

    block_r: float | None = None  # correlation with the blocks, out of fold, at the best shift
    block_shift: float | None = None  # s; a block's length more or less looks alike to the blocks
    word_z: float | None = None  # correlation with the words at the best shift, in spreads of that at others
    word_shift: float | None = None  # s
    block_length: float | None = None  # s

    @property
    def follows(self):
        """Whether the sound is that of the film; None where nothing could be asked."""
        if self.word_z is not None:
            return self.word_z >= FOLLOWS_WORDS
        return None if self.block_r is None else self.block_r >= FOLLOWS_BLOCKS

    @property
    def shift(self):
        """How late the sound is, in seconds; None where it does not follow or could not be asked."""
        if not self.follows:
            return None
        return self.block_shift if self.word_z is None else self.word_shift

    def alarms(self, onset):
        """Return what makes every result with this sound doubtful, as sentences; ``onset`` is where it starts now."""
        if self.follows is None:
            return ()
        if not self.follows:
            return (self._what_fails(),)
        tolerance, clock = (BLOCK_TOLERANCE, "blocks") if self.word_z is None else (WORD_TOLERANCE, "words")
        if abs(self.shift) <= tolerance:
            return ()
        when = "late" if self.shift > 0 else "early"
        return (
            f"sound is {abs(self.shift):.2g} s {when} against the film's {clock}: "
            f"audio_onset {onset - self.shift:.4g} would put it right",
        )

    def _what_fails(self):
        words = "" if self.word_z is None else f"words: z = {self.word_z:.1f}, {FOLLOWS_WORDS:g} needed"
        if self.block_r is None:
            return f"sound does not follow the film's words ({words}): another film's?"
        if self.block_r >= FOLLOWS_BLOCKS:
            return f"sound follows the film's blocks but not its words ({words}): another film with such blocks?"
        blocks = f"r = {self.block_r:.2f} at the best shift, {FOLLOWS_BLOCKS} needed"
        return (
            f"sound does not follow the film's {self.block_length:g} s blocks ({blocks}{'; ' * bool(words)}{words}): "
            "another film's?"
        )

    def facts(self):
        """Return what was found as plain numbers, for a record."""
        return {k: None if v is None else round(float(v), 3) for k, v in asdict(self).items()} | {
            "follows": self.follows,
            "shift": None if self.shift is None else round(float(self.shift), 3),
        }


def audit_sound(path, cache_dir, events, *, onset, words=None, made=None):
    """Compare a sound file with the film that the events describe.

    Parameters
    ----------
    path : path
        The sound file.
    cache_dir : path
        For features made here.
    events : DataFrame or None
        BIDS events with ``onset``, ``duration`` (s, clock of the run) and ``trial_type``.
    onset : float
        Where the sound starts on the clock of the run, in seconds.
    words : path, optional
        Table of word times, in seconds from the film's start; left out where it is not there.
    made : SoundFeatures, optional
        MFCCs of the file, used where they are fine enough.

    Returns
    -------
    Audit
    """
    if events is None:
        return Audit()
    if made is None or len(made.names) < SETTINGS["n_mfcc"] or np.diff(made.frame_times[:2]).sum() > COARSE:
        made = cached_mfcc(path, cache_dir, **SETTINGS)
    blocks = blocks_in_events(events)
    found, kinds = {}, {kind for _, _, kind in blocks}
    if len(blocks) >= FEWEST_BLOCKS and kinds == {0, 1}:
        starts = np.array([start for start, _, _ in blocks]) - onset
        ends = starts + [length for _, length, _ in blocks]
        length = float(np.median(ends - starts))
        r, shift = block_match(made.frames, made.frame_times, starts, ends, [kind for *_, kind in blocks])
        if r is not None:
            found = {"block_r": r, "block_shift": shift, "block_length": length}
    if words is not None and words.is_file() and blocks:
        table = read_table(words, columns=("onset", "offset"))
        begins, stops = (read_times(table, name, words) + blocks[0][0] - onset for name in ("onset", "offset"))
        z, shift = word_match(made.frames[:, 0], made.frame_times, begins, stops)
        found |= {"word_z": z, "word_shift": shift}
    return Audit(**found)


def blocks_in_events(events):
    """Return (onset, duration, kind) of music (0) and speech or story (1) in events, in seconds, in order.

    Empty where a duration is n/a, as BIDS allows: what is not known to end is not held against the sound.
    """
    kinds = events["trial_type"].astype(str)
    film = events[kinds.isin({*BLOCK_TYPES, *SPEECH_TYPES})]
    if film["duration"].isna().any():
        return []
    onsets, lengths = (read_times(film, name, "events.tsv") for name in ("onset", "duration"))
    speech = film["trial_type"].astype(str).isin(SPEECH_TYPES).astype(int)
    return sorted(zip(onsets.tolist(), lengths.tolist(), speech.tolist(), strict=True))


def block_match(frames, frame_times, starts, ends, kinds):
    """Find the shift at which the features tell the two kinds of block apart best.

    Parameters
    ----------
    frames : array of shape (n_frames, n_features)
    frame_times : array of shape (n_frames,)
        In seconds of the sound.
    starts, ends : arrays of shape (n_blocks,)
        Blocks in seconds of the sound, if it is in time.
    kinds : sequence of int
        0 or 1 for each block.

    Returns
    -------
    r : float or None
        Correlation of the kind with a ridge fit that never saw the block; None where the sound holds too few blocks.
    shift : float or None
        In seconds, positive where the sound is late; at most half a block.

    Notes
    -----
    Features are mean and log spread over a second of every frame column, so a rhythm of syllables counts as well as
    the spectrum. Nothing is known of how music and speech differ: the other blocks teach it, at each shift anew.
    """
    centres, X = _seconds(frames, frame_times)
    reach = float(np.median(ends - starts)) / 2
    coarse = np.arange(-reach + 2, reach + 0.5, 2.0)
    curve = [_told_apart(centres - shift, X, starts, ends, kinds) for shift in coarse]
    if np.isnan(curve).all():
        return None, None
    fine = coarse[int(np.nanargmax(curve))] + np.arange(-1.5, 2.0, BIN)
    curve = [_told_apart(centres - shift, X, starts, ends, kinds) for shift in fine]
    return float(np.nanmax(curve)), float(fine[int(np.nanargmax(curve))])


def _seconds(frames, frame_times):
    """Mean and log spread of each column over a second, every half second: bin centres and standardised features."""
    centres = (np.arange(int(frame_times[-1] / BIN)) + 0.5) * BIN
    first, last = (np.searchsorted(frame_times, centres + side * SECOND / 2) for side in (-1, 1))
    count = np.maximum(last - first, 1)[:, None]
    zero = np.zeros((1, frames.shape[1]))
    centred = frames - frames.mean(axis=0, dtype=float)  # small numbers, so that squares lose nothing
    once, twice = (np.vstack([zero, np.cumsum(centred**power, axis=0)]) for power in (1, 2))
    mean = (once[last] - once[first]) / count
    spread = np.sqrt(np.maximum((twice[last] - twice[first]) / count - mean**2, 0))
    X = np.hstack([mean, np.log(spread + 1e-3)])
    return centres, (X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-9)


def _told_apart(times, X, starts, ends, kinds):
    """Correlate the kind of block with its ridge prediction, each block left out once; NaN with too few blocks."""
    block = np.searchsorted(starts, times, side="right") - 1
    inside = (block >= 0) & (times < ends[np.maximum(block, 0)])
    block, Z = block[inside], np.hstack([X[inside], np.ones((inside.sum(), 1))])
    heard = np.unique(block)
    y = np.where(np.asarray(kinds)[block] == 1, 1.0, -1.0)
    if len(heard) < FEWEST_BLOCKS or len(np.unique(y)) < 2:
        return np.nan
    parts = [np.flatnonzero(block == k) for k in heard]
    grams = np.stack([Z[part].T @ Z[part] for part in parts])
    targets = np.stack([Z[part].T @ y[part] for part in parts])
    held_back = RIDGE * len(Z) * np.eye(Z.shape[1])
    weights = np.linalg.solve(grams.sum(axis=0) - grams + held_back, (targets.sum(axis=0) - targets)[..., None])[..., 0]
    guess = np.empty(len(Z))
    for part, weight in zip(parts, weights, strict=True):
        guess[part] = Z[part] @ weight
    return float(np.corrcoef(guess, y)[0, 1])


def word_match(loudness, frame_times, begins, stops):
    """Find the shift at which the loudness of the sound goes with the words.

    Parameters
    ----------
    loudness : array of shape (n_frames,)
        In decibels or the like, such as the first MFCC.
    frame_times : array of shape (n_frames,)
        In seconds of the sound.
    begins, stops : arrays of shape (n_words,)
        Words in seconds of the sound, if it is in time.

    Returns
    -------
    z : float
        Correlation at the best shift, over the spread (median absolute deviation, scaled) of those at other shifts.
    shift : float
        In seconds, positive where the sound is late; at most a minute.
    """
    first = min(0.0, float(begins.min()))
    n_bins = int(np.ceil((stops.max() - first) / WORD_BIN))
    edges = first + np.arange(n_bins + 1) * WORD_BIN
    spoken = share_on(begins, stops, edges)
    # Only where somebody speaks: elsewhere the film says nothing of the rhythm.
    near = np.convolve(spoken, np.ones(2 * int(WORD_DRIFT / WORD_BIN) + 1), "same") > 0
    spoken = np.where(near, _fast(spoken), 0.0)
    spoken[near] -= spoken[near].mean()
    reach = int(WORD_REACH / WORD_BIN)
    times = edges[0] + (np.arange(-reach, n_bins + reach) + 0.5) * WORD_BIN
    known = (times >= frame_times[0]) & (times <= frame_times[-1])
    heard = np.where(known, _fast(np.interp(times, frame_times, loudness)), 0.0)
    product = signal.correlate(heard, spoken, "valid", method="fft")
    power = signal.correlate(heard**2, near.astype(float), "valid", method="fft") * np.sum(spoken**2)
    r = product / np.sqrt(np.maximum(power, 1e-6 * power.max() + 1e-12))
    shifts = (np.arange(len(r)) - reach) * WORD_BIN
    best = int(r.argmax())
    others = r[np.abs(shifts - shifts[best]) > WORD_DRIFT]
    spread = 1.4826 * np.median(np.abs(others - np.median(others)))
    return float((r[best] - np.median(others)) / max(spread, 1e-12)), float(shifts[best])


def _fast(course):
    """Take off what is slower than `WORD_DRIFT`."""
    k = int(WORD_DRIFT / WORD_BIN)
    return course - np.convolve(np.pad(course, k, mode="edge"), np.full(2 * k + 1, 1 / (2 * k + 1)), "valid")
