"""Seconds meet volumes here and only here: windows, delays, previous volumes, the split, train-only scaling.

The clock: volume ``k`` of a run is acquired in ``[start + k·TR, start + (k+1)·TR)`` of the run's clock, where ``start``
is 0 for a raw run and what the sidecar says for a preprocessed one (``StartTime``, less half a TR where
``SliceTimingCorrected``). The sound starts at ``onset`` on that clock, so the volume starts at
``sound_times[k] = start + k·TR − onset`` seconds of sound, and at delay Δt it sees the frames centred in
``[sound_times[k] − Δt, sound_times[k] − Δt + TR)``.
"""

from dataclasses import dataclass, replace

import numpy as np

from bold_audio.files import DataError, ParameterError

MIN_PART = 8  # fewest volumes that a part of the split may hold
KERNEL_LENGTH = 32.0  # s of the canonical response


def delay_features(frames, frame_times, sound_times, *, delay, window):
    """Average the sound features that precede each volume by a BOLD delay.

    Volume ``k``, which starts at ``sound_times[k]``, gets the mean of the frames whose
    centres lie in the half-open interval from ``sound_times[k] - delay`` to
    ``sound_times[k] - delay + window``.

    Parameters
    ----------
    frames : array of shape (n_frames, n_features)
        Feature values, one row per frame. Not modified.
    frame_times : array of shape (n_frames,)
        Centre of each frame, in seconds from the onset of the sound; increasing.
    sound_times : array of shape (n_volumes,)
        Start of each volume, in seconds from the onset of the sound; may be negative.
    delay : float
        BOLD delay, in seconds. Negative values look into the future: a control.
    window : float
        Length of the averaging interval, in seconds, above 0. Usually the TR.

    Returns
    -------
    array of shape (n_volumes, n_features)
        Features as seen by each volume. A volume whose interval the frames do not cover
        has a row of NaN; rows are never filled with zeros.

    Raises
    ------
    ValueError
        If ``window`` is not positive, or ``frame_times`` does not match ``frames`` or
        does not increase.

    Notes
    -----
    Times are matched, not indices, so neither the hop length of the features nor the
    frame rate of the film appears here. The frames cover the time from one step before
    the first centre to one step after the last. One delay is the one-tap case of the
    finite impulse response model in [1]_.

    References
    ----------
    .. [1] Dupré la Tour, Visconti di Oleggio Castello & Gallant (2025). The Voxelwise
       Encoding Model framework. Imaging Neuroscience, doi 10.1162/imag_a_00575.

    Examples
    --------
    >>> frames = np.arange(5.0)[:, None]  # one feature, one frame per second
    >>> delay_features(frames, np.arange(5) + 0.5, [1, 2, 3, 6], delay=1, window=1).T
    array([[ 0.,  1.,  2., nan]])
    """
    frames = np.asarray(frames, dtype=float)
    frame_times = np.asarray(frame_times, dtype=float)
    if not window > 0:
        raise ValueError(f"window must be > 0 s, got {window}.")
    if frame_times.shape != frames.shape[:1] or len(frames) < 2:
        raise ValueError(f"frame_times must hold one time per frame, got {frame_times.shape} for {frames.shape}.")
    steps = np.diff(frame_times)
    if not np.all(steps > 0):
        raise ValueError("frame_times must increase.")
    start = np.asarray(sound_times, dtype=float) - delay
    first = np.searchsorted(frame_times, start, side="left")
    stop = np.searchsorted(frame_times, start + window, side="left")
    # Each window is summed by itself: sound outside it, heard in a held-out block, cannot reach it even by rounding.
    padded = np.vstack([frames, np.zeros(frames.shape[1])])
    sums = np.add.reduceat(padded, np.stack([first, stop], axis=1).ravel(), axis=0)[::2]
    counts = (stop - first)[:, None]
    covered = (
        (start >= frame_times[0] - steps[0]) & (start + window <= frame_times[-1] + steps[-1]) & (counts[:, 0] > 0)
    )
    means = sums / np.maximum(counts, 1)
    means[~covered] = np.nan
    return means


def convolve_response(frames, frame_times):
    """Convolve features with the canonical haemodynamic response (Glover 1999).

    Parameters
    ----------
    frames : array of shape (n_frames, n_features)
        Evenly spaced.
    frame_times : array of shape (n_frames,)
        Centre of each frame, in seconds from the onset of the sound.

    Returns
    -------
    convolved : array of shape (n_kept, n_features)
        Response at each frame that a whole kernel of sound precedes.
    times : array of shape (n_kept,)
        Centres of those frames, in seconds from the onset of the sound.
    time_to_peak : float
        When the response to an instant of sound peaks, in seconds.

    Raises
    ------
    ValueError
        If the frames are not evenly spaced.
    DataError
        If the sound is shorter than the kernel.
    """
    from nilearn.glm.first_level import glover_hrf

    steps = np.diff(frame_times)
    step = float(steps.mean())
    if not np.allclose(steps, step, rtol=1e-3):
        raise ValueError("frames must be evenly spaced to be convolved.")
    kernel = glover_hrf(step, oversampling=1, time_length=KERNEL_LENGTH)
    kernel = kernel / kernel.sum()
    if len(frames) <= len(kernel):
        raise DataError(f"{len(frames) * step:.1f} s of sound - response hrf needs more than {KERNEL_LENGTH:g} s")
    # Direct sums, not a Fourier transform, whose rounding would carry the end of the sound to its beginning.
    columns = [np.convolve(np.asarray(column, dtype=float), kernel, mode="valid") for column in np.asarray(frames).T]
    return np.stack(columns, axis=1), np.asarray(frame_times)[len(kernel) - 1 :], float(np.argmax(kernel)) * step


@dataclass(frozen=True)
class SoundDesign:
    """What every volume of a run hears, at any delay.

    Parameters
    ----------
    frames, frame_times : arrays
        Feature frames (already convolved where ``shift`` is not 0) and their centres, s.
    sound_times : array of shape (n_volumes,)
        Start of each volume, in seconds from the onset of the sound.
    t_r : float
        Repetition time, in seconds.
    n_lags : int
        Further windows, each one repetition time earlier.
    shift : float
        Time to peak of the response the frames were convolved with, in seconds.
    """

    frames: np.ndarray
    frame_times: np.ndarray
    sound_times: np.ndarray
    t_r: float
    n_lags: int = 0
    shift: float = 0.0

    def at(self, delay):
        """Features of each volume at ``delay`` s: array of shape (n_volumes, n_features · (1 + n_lags))."""
        windows = [
            delay_features(
                self.frames,
                self.frame_times,
                self.sound_times,
                delay=delay - self.shift + lag * self.t_r,
                window=self.t_r,
            )
            for lag in range(self.n_lags + 1)
        ]
        return np.hstack(windows)

    def with_lags(self, n_lags):
        """The same sound in another number of windows."""
        return replace(self, n_lags=n_lags)


@dataclass(frozen=True)
class JoinedDesign:
    """What the volumes of several runs hear, one run after the other, each its own sound.

    Parameters
    ----------
    parts : tuple of SoundDesign
    """

    parts: tuple

    def at(self, delay):
        """As `SoundDesign.at`."""
        return np.vstack([part.at(delay) for part in self.parts])

    def with_lags(self, n_lags):
        """As `SoundDesign.with_lags`."""
        return JoinedDesign(tuple(part.with_lags(n_lags) for part in self.parts))


def join_designs(parts):
    """One design for the volumes of all runs, in order."""
    return parts[0] if len(parts) == 1 else JoinedDesign(tuple(parts))


def make_design(features, sound_times, t_r, *, response="delay", n_lags=0):
    """Build the `SoundDesign` that ``response`` asks for.

    Parameters
    ----------
    features : features.SoundFeatures
    sound_times : array of shape (n_volumes,)
        Start of each volume, in seconds from the onset of the sound.
    t_r : float
        Repetition time, in seconds.
    response : {"delay", "fir", "hrf"}
        One window, ``n_lags`` further ones, or the canonical response with its peak at the delay.
    n_lags : int
        Counts for ``fir`` alone.
    """
    if response == "hrf":
        frames, times, peak = convolve_response(features.frames, features.frame_times)
        return SoundDesign(frames, times, sound_times, t_r, shift=peak)
    return SoundDesign(
        features.frames, features.frame_times, sound_times, t_r, n_lags=n_lags if response == "fir" else 0
    )


def covered_volumes(designs, delays):
    """Volumes that every design covers at every delay: only these are compared.

    Returns
    -------
    array of bool, shape (n_volumes,)
    """
    # Windows move with the delay, so the shortest and the longest delay cover all between.
    ends = (min(delays), max(delays))
    return np.logical_and.reduce([np.isfinite(design.at(delay)).all(axis=1) for design in designs for delay in ends])


@dataclass(frozen=True)
class Split:
    """Parts of a run or of several, as increasing indices of volumes, each contiguous within a run."""

    train: np.ndarray
    gap: np.ndarray
    test: np.ndarray


def split_volumes(n_volumes, t_r, *, skip_initial, train_fraction, gap, usable=None):
    """Split a run by time into ``train | gap | test``.

    Parameters
    ----------
    n_volumes : int
        Length of the run.
    t_r : float
        Repetition time, in seconds.
    skip_initial : float
        Volumes that start before this many seconds are left out.
    train_fraction : float
        Train ends after this share of all the run's volumes.
    gap : float
        Time between the end of train and the start of test, in seconds.
    usable : array of bool, shape (n_volumes,), optional
        Volumes that can be used at all (the sound covers them at every delay).

    Raises
    ------
    ParameterError
        If a part holds fewer than 8 volumes, or a volume between the first and the last
        usable one is not usable.

    Examples
    --------
    >>> split = split_volumes(641, 0.608, skip_initial=10, train_fraction=0.7, gap=16)
    >>> [(int(part[0]), int(part[-1])) for part in (split.train, split.gap, split.test)]
    [(17, 447), (448, 474), (475, 640)]
    """
    kept = kept_volumes(n_volumes, t_r, skip_initial=skip_initial, usable=usable)
    end_train = int(np.floor(np.round(train_fraction * n_volumes, 6)))  # .7 of 90 are 63, not 62.99…
    start_test = end_train + volumes_of(gap, t_r)
    parts = Split(kept[kept < end_train], kept[(kept >= end_train) & (kept < start_test)], kept[kept >= start_test])
    for name in ("train", "test"):
        if len(getattr(parts, name)) < MIN_PART:
            raise ParameterError(
                f"{len(getattr(parts, name))} of {n_volumes} volumes of {t_r:g} s are left for {name} "
                f"(skip_initial {skip_initial:g} s, train_fraction {train_fraction:g}, gap {gap:g} s, "
                f"{n_volumes - len(kept)} volumes without sound or skipped) - at least {MIN_PART} are needed"
            )
    return parts


def split_runs(lengths, t_r, *, skip_initial, train_fraction, gap, usable, n_before, by="time"):
    """Split one or several runs, their volumes counted one after the other.

    Parameters
    ----------
    lengths : sequence of int
        Volumes of each run.
    t_r, skip_initial, train_fraction, gap
        As for `split_volumes`.
    usable : array of bool, shape (n_volumes,)
        Volumes that the sound covers at every delay.
    n_before : int
        Previous volumes of the same run, with sound, that every volume used must have: no delay and no lag crosses a
        run's border.
    by : {"time", "run"}
        ``time``: every run has a train and a test part. ``run``: the last run is the test part, the others train. As
        nothing is fitted on the last run, its level is known from what was measured before its test part, which begins
        no earlier than ``gap`` seconds after ``skip_initial``.

    Returns
    -------
    Split

    Raises
    ------
    ParameterError
        As `split_volumes`, and if there is one run to split by runs.
    """
    if by == "run" and len(lengths) < 2:
        raise ParameterError("split_by run needs several runs - set run to a list or all, or split_by time")
    parts, start = [], 0
    for k, length in enumerate(lengths):
        mine = usable[start : start + length].copy()
        mine[: int(np.argmax(mine)) + n_before] = False
        if by == "time":
            split = split_volumes(
                length, t_r, skip_initial=skip_initial, train_fraction=train_fraction, gap=gap, usable=mine
            )
        else:
            kept, none = kept_volumes(length, t_r, skip_initial=skip_initial, usable=mine), np.zeros(0, int)
            last = k == len(lengths) - 1
            before = kept < volumes_of(skip_initial, t_r) + volumes_of(gap, t_r) if last else np.zeros(len(kept), bool)
            part = kept[~before]
            if len(part) < MIN_PART:
                raise ParameterError(f"{len(part)} volumes of run {k + 1} can be used - at least {MIN_PART} are needed")
            split = Split(none, kept[before], part) if last else Split(part, none, none)
        parts.append([part + start for part in (split.train, split.gap, split.test)])
        start += length
    return Split(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def stretches(volumes):
    """Cut increasing volumes where one is missing: list of arrays of int.

    Examples
    --------
    >>> stretches(np.array([3, 4, 5, 9, 10]))
    [array([3, 4, 5]), array([ 9, 10])]
    """
    return np.split(volumes, np.flatnonzero(np.diff(volumes) != 1) + 1)


def kept_volumes(n_volumes, t_r, *, skip_initial, usable=None):
    """Volumes of a run that are used at all, without a break between them.

    Parameters as for `split_volumes`.

    Returns
    -------
    array of int

    Raises
    ------
    ParameterError
        If the usable volumes do not follow each other.
    """
    volumes = np.arange(n_volumes)
    # Rounded before ceiling, so that 16 s is exactly 8 volumes of 2 s.
    keep = volumes >= volumes_of(skip_initial, t_r)
    if usable is not None:
        keep &= usable
    kept = volumes[keep]
    if len(kept) and len(kept) != kept[-1] - kept[0] + 1:
        raise ParameterError("usable volumes are not contiguous - check the sound's coverage of the run")
    return kept


def volumes_of(seconds, t_r):
    """Smallest number of volumes that lasts at least ``seconds``.

    Examples
    --------
    >>> volumes_of(16, 2.0), volumes_of(16, 0.608)
    (8, 27)
    """
    return int(np.ceil(np.round(seconds / t_r, 6)))


def blocked_folds(rows, *, n_folds, gap_volumes):
    """Held-out blocks, each of rows that follow one another, with a gap on both sides.

    Parameters
    ----------
    rows : array of int
        Increasing volumes, the train part or a part of it. Of several runs, a block may be the end of one run and the
        beginning of the next: nothing within the gap of either is fitted on.
    n_folds : int
        Number of blocks.
    gap_volumes : int
        Volumes left out on either side of a held-out block.

    Returns
    -------
    list of (fit, held) arrays of int

    Raises
    ------
    ParameterError
        If there are fewer rows than folds, or gaps leave too few volumes to fit on.

    Examples
    --------
    >>> fit, held = blocked_folds(np.arange(18), n_folds=3, gap_volumes=2)[1]
    >>> fit, held
    (array([ 0,  1,  2,  3, 14, 15, 16, 17]), array([ 6,  7,  8,  9, 10, 11]))
    """
    folds = []
    for held in np.array_split(rows, n_folds):
        if len(held) == 0:
            raise ParameterError(f"{len(rows)} volumes cannot be cut into {n_folds} folds - use fewer n_folds")
        fit = rows[(rows < held[0] - gap_volumes) | (rows > held[-1] + gap_volumes)]
        if len(fit) < MIN_PART:
            raise ParameterError(
                f"{len(fit)} volumes are left to fit on beside a held-out block of {len(held)} and gaps of "
                f"{gap_volumes} volumes - shorten gap, or change n_folds {n_folds}"
            )
        folds.append((fit, held))
    return folds


def scale_on(X, rows):
    """Centre and scale features with the statistics of ``rows`` alone.

    Parameters
    ----------
    X : array of shape (n_volumes, n_features)
        Features; rows of NaN stay NaN.
    rows : array of int
        Train volumes.

    Returns
    -------
    scaled : array of shape (n_volumes, n_features)
        A feature that does not vary in ``rows`` becomes 0.
    mean, scale : arrays of shape (n_features,)
        ``scaled = (X - mean) / scale``.
    """
    mean = X[rows].mean(axis=0)
    scale = X[rows].std(axis=0)
    scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(mean)), scale, np.inf)
    return (X - mean) / scale, mean, scale
