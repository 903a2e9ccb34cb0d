"""Surrogates that keep the autocorrelation of sound and scan: circular shifts of the sound.

Shift and delay compose, so on a grid of half repetition times a part of n volumes has only 2 n delayed designs; each is
scored once and serves every shift and every delay.
"""

import numpy as np
from scipy.ndimage import maximum_filter1d

AWAY = 10.0  # s beyond the longest delay, at least, between the sound and its surrogate
BLOCK_GUARD = 5.0  # s around a multiple of the blocks' length: such a shift only turns the blocks' sign
LEVEL = 0.05


def admissible_shifts(n_rows, t_r, *, longest_delay, block_length=None):
    """Circular shifts, in volumes, that break the pairing of sound and scan.

    Parameters
    ----------
    n_rows : int
        Volumes of the part that is shifted within itself.
    t_r : float
        Repetition time, in seconds.
    longest_delay : float
        Longest delay that a shift is scored at, in seconds.
    block_length : float, optional
        Length of the film's alternating blocks, in seconds.

    Returns
    -------
    array of int

    Examples
    --------
    >>> admissible_shifts(60, 1.0, longest_delay=10, block_length=30)
    array([20, 21, 22, 23, 24, 36, 37, 38, 39, 40])
    """
    ahead = np.arange(n_rows) * t_r
    behind = n_rows * t_r - ahead
    keep = np.minimum(ahead, behind) >= longest_delay + AWAY
    if block_length:
        for shift in (ahead, behind):
            keep &= np.abs((shift + block_length / 2) % block_length - block_length / 2) > BLOCK_GUARD
    return np.flatnonzero(keep)


def circular_designs(even, odd=None):
    """All circular shifts of a design, in steps of half a repetition time, or of a whole one without ``odd``.

    Parameters
    ----------
    even, odd : arrays of shape (n_rows, p)
        Features at the shortest delay, and at half a repetition time more.

    Returns
    -------
    array of shape (n_rows · n_parts, n_rows, p)
        Row j is delayed by j steps beyond the shortest delay.
    """
    parts = [even] if odd is None else [even, odd]
    n_rows = len(even)
    at = (np.arange(n_rows) - np.arange(n_rows)[:, None]) % n_rows  # (shift, volume) → volume of the unshifted
    return np.stack([part[at] for part in parts], axis=1).reshape(n_rows * len(parts), n_rows, -1)


def best_in_window(values, n_window, per_volume):
    """The best value over the delays, for every circular shift in whole volumes.

    Parameters
    ----------
    values : array of shape (n_designs, …)
        One value per circular design.
    n_window : int
        Steps from the shortest to the longest delay, both counted.
    per_volume : int
        Steps per volume: 1 or 2.

    Returns
    -------
    array of shape (n_rows, …)
        Row 0 is the sound in its place.
    """
    # The window of step j is j … j + n_window − 1; SciPy's is centred.
    best = maximum_filter1d(values, n_window, axis=0, mode="wrap", origin=-(n_window // 2))
    return best[::per_volume]


def shift_p_value(best, shifts):
    """p = (1 + #≥) / (1 + n) of the sound in its place among its surrogates.

    Parameters
    ----------
    best : array of shape (n_rows, …)
        From `best_in_window`.
    shifts : array of int
        Admissible shifts.

    Returns
    -------
    array of shape (…)
        1 where there are no shifts.
    """
    return (1 + np.sum(best[shifts] >= best[0], axis=0)) / (1 + len(shifts))
