"""Sound and volumes meet in time here and only here: the clock, windows, delays, lags, features scaled on train.

The clock: volume ``k`` of a run is acquired in ``[start + k·TR, start + (k+1)·TR)`` of the run's clock, where ``start``
is 0 for a raw run and what the sidecar says for a preprocessed one (``StartTime``, less half a TR where
``SliceTimingCorrected``). The sound starts at ``onset`` on that clock, so the volume starts at
``sound_times[k] = start + k·TR − onset`` seconds of sound, and at delay Δt it sees the frames centred in
``[sound_times[k] − Δt, sound_times[k] − Δt + TR)``.
"""

from dataclasses import dataclass, replace

import numpy as np

from bold_audio.files import DataError

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
