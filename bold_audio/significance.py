"""Surrogates that keep the autocorrelation of sound and scan, and break their pairing.

Two kinds, scored alike. **Circular shifts** of the sound keep everything but its place; a run has few that are really
different (neighbouring ones score nearly the same), too few to fix a threshold: on simulated subjects without sound
they alone call 9 % of the voxels significant at p ≤ .05. **Phase-randomised** sound, the same phases for all features,
keeps their spectra and how they go together; every shift of it is a surrogate too, and there is any number of them.

Shift and delay compose, so a part of n volumes has only n designs delayed by whole repetition times; each is scored
once and serves every shift and every delay.
"""

import math

import numpy as np
from scipy import stats
from scipy.ndimage import maximum_filter1d

AWAY = 10.0  # s beyond the longest delay, at least, between the sound and its surrogate
BLOCK_GUARD = 5.0  # s around a multiple of the blocks' length: such a shift only turns the blocks' sign
LEVEL = 0.05
# Questions about a region: beyond what is asked. Not named as the linear rows are: this past is one filter for the
# brain, `history` is each voxel's own.
OVER_PAST, WITHIN = "past_sound", "past_blocks_sound"
QUESTIONS = {OVER_PAST: "the past", WITHIN: "the past and the film's blocks"}


def admissible_shifts(n_rows, t_r, *, longest_delay, block_length=None, starts=(0,)):
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
        Length of the film's alternating blocks, in seconds. It is the shift that keeps away from turns of the blocks;
        at one of its delays a shift may still lie near one, which makes surrogates better and p larger.
    starts : sequence of int
        Rows where a run, or what is used of it, begins. Runs may play the same sound: a shift that brings one onto
        another is no surrogate.

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
    for onto in {(b - a) % n_rows for a in starts for b in starts if a != b}:
        apart = np.abs(np.arange(n_rows) - onto) * t_r
        keep &= np.minimum(apart, n_rows * t_r - apart) >= longest_delay + AWAY
    if block_length:
        for shift in (ahead, behind):
            keep &= np.abs((shift + block_length / 2) % block_length - block_length / 2) > BLOCK_GUARD
    return np.flatnonzero(keep)


def phase_randomised(X, rng):
    """Features with other phases, the same for all, so that spectra and cross-spectra stay as they are.

    Parameters
    ----------
    X : array of shape (n_rows, p)
    rng : numpy Generator

    Returns
    -------
    array of shape (n_rows, p)
    """
    spectrum = np.fft.rfft(X, axis=0)
    turn = np.exp(2j * np.pi * rng.random(len(spectrum)))
    turn[0] = 1
    if len(X) % 2 == 0:
        turn[-1] = rng.choice([-1.0, 1.0])  # has no phase but its sign
    return np.fft.irfft(spectrum * turn[:, None], n=len(X), axis=0)


def circular_designs(X):
    """All circular shifts of a design in steps of one volume.

    Returns
    -------
    array of shape (n_rows, n_rows, p)
        Row j is delayed by j volumes.
    """
    n_rows = len(X)
    at = (np.arange(n_rows) - np.arange(n_rows)[:, None]) % n_rows  # (shift, volume) → volume of the unshifted
    return X[at]


def best_in_window(values, n_window):
    """The best value over the delays, for every circular shift.

    Parameters
    ----------
    values : array of shape (n_rows, …)
        One value per circular design.
    n_window : int
        Volumes from the shortest to the longest delay, both counted.

    Returns
    -------
    array of shape (n_rows, …)
        Row 0 is the sound in its place.
    """
    # The window of shift j is j … j + n_window − 1; SciPy's is centred.
    return maximum_filter1d(values, n_window, axis=0, mode="wrap", origin=-(n_window // 2))


def mean_in_window(log_values, n_window):
    """Logarithm of the mean over the delays of what ``log_values`` are logarithms of, for every circular shift.

    Parameters and shapes as for `best_in_window`. Where several delays are as good, all of them speak.
    """
    # Against the largest of its own window, or one that is far larger elsewhere would leave nothing of the others.
    largest = best_in_window(log_values, n_window)
    means, twice = np.zeros_like(largest), np.concatenate([log_values, log_values[: n_window - 1]])
    for delay in range(n_window):
        means += np.exp(twice[delay : delay + len(log_values)] - largest)
    return np.log(means / n_window) + largest


def p_value(observed, surrogates, *, alike=1):
    """p = (1 + #≥) / (1 + n) of what was observed among its surrogates.

    Parameters
    ----------
    observed : array of shape (…)
    surrogates : array of shape (n_surrogates, …)
    alike : int
        Neighbouring surrogates that score nearly the same, such as shifts that share a window of delays: as many count
        as one, p = (alike + #≥) / (alike + n), or the smallest p would be too small.

    Returns
    -------
    array of shape (…)
        1 where there are no surrogates; NaN where nothing was observed.
    """
    p = (alike + np.sum(surrogates >= observed, axis=0)) / (alike + len(surrogates))
    return np.where(np.isnan(observed), np.nan, p)


def threshold_of(surrogates, *, alike=1, level=LEVEL):
    """What must be passed for a p of at most ``level``: the value of one of the surrogates; infinite with too few.

    Examples
    --------
    >>> threshold_of(np.arange(100.0)), threshold_of(np.arange(100.0), alike=5), threshold_of(np.arange(9.0))
    (95.0, 99.0, inf)
    """
    n_above = math.floor(level * (alike + len(surrogates)) - alike + 1e-9)
    return math.inf if n_above < 0 else float(np.sort(surrogates)[::-1][n_above])


def clear_of_0(value, spread, n_folds):
    """Whether a number is further from 0 than its standard error over folds lets it be by chance: Student's t.

    Folds share most of what they are fitted on, so this is for words, not a test: see `inferred` for p values.

    Examples
    --------
    >>> [clear_of_0(0.05, 0.02, n_folds) for n_folds in (2, 4, 5)], clear_of_0(0.05, math.nan, 5)
    ([False, False, False], False)
    >>> [clear_of_0(-0.06, 0.02, n_folds) for n_folds in (2, 4, 5)]
    [False, False, True]
    """
    return bool(abs(value) > stats.t.ppf(1 - LEVEL / 2, n_folds - 1) * spread)


def versions_needed(n_rows, alike, *, p):
    """Phase-randomised versions, each at all its shifts, that let a p value fall to ``p``; at least one.

    Examples
    --------
    >>> versions_needed(624, 14, p=0.025), versions_needed(80, 14, p=0.025)
    (1, 7)
    """
    return max(1, math.ceil(alike * (1 / p - 1) / n_rows - 1e-9))
