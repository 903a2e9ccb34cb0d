r"""Which voxels follow the sound, over the whole run: one statistic, every surrogate, p values that can be trusted.

**The statistic** is the log evidence of `evidence` at a few fixed ridge strengths: what the sound explains of a voxel
once the past (a filter that whitens) and the run's drift are taken off both, in place: nothing is held out. It is
averaged over the delays of the window as over the strengths, for the sound in its place and for every surrogate alike,
so the choice of the delay is part of the statistic. (The largest in place of the average found .69 of the weak voxels
that were planted in place of .75.) It is never exactly zero, as a gain after selection is.

**Surrogates.** Shift and delay compose: n volumes have n designs delayed by whole repetition times (and as many in
between where the repetition time is long); each is scored once and serves every shift at every delay. Played are the
sound itself, at its admissible circular shifts, and phase-randomised versions of it, at every shift.

**Three p values.** A run has a few hundred shifts, so one voxel's rank among its own cannot reach what 20,000 voxels
need. Each voxel is therefore scaled by the median, and the distance from it to the 90 % quantile, of all its circular
designs, the sound's own place among them, and ranked among the surrogates of all voxels together (`p`; `q` is Benjamini
and Hochberg's). `p_fwe` ranks it among the largest of all voxels in each surrogate: the family-wise error, whatever the
voxels have in common; as many neighbouring shifts as a window of delays holds count as one.

.. [1] Nichols & Holmes (2002). Nonparametric permutation tests for functional neuroimaging. Hum. Brain Mapp. 15, 1-25.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from bold_audio import evidence, significance
from bold_audio.confounds import slow_cosines
from bold_audio.gram import filtered, on_all_cores

ALPHAS = (32.0, 128.0, 512.0, 2048.0)  # strengths averaged over, for features of variance 1
LONGEST_STEP = 1.0  # s between neighbouring delays, at most
SMALLEST_P = 0.025  # family-wise, that the versions of the sound with other phases, each at every shift, allow
BINS = np.linspace(-10, 60, 7001)  # of scaled surrogates: counts in place of 20 million numbers


@dataclass(frozen=True)
class DelayGrid:
    """Delays of a window: some offsets, and these again one repetition time later, and so on.

    Parameters
    ----------
    first : float
        Shortest delay, in seconds.
    step : float
        Between neighbouring delays, in seconds.
    n_steps : int
        Offsets: designs that are made. All later delays are those rolled by whole volumes.
    n_volumes : int
        How many times they are used; of more than one, ``n_steps`` steps are one repetition time.
    alike : int
        Neighbouring shifts whose windows overlap, which count as one surrogate.
    """

    first: float
    step: float
    n_steps: int
    n_volumes: int
    alike: int

    @property
    def offsets(self):
        """The delays that designs are made for, array of shape (n_steps,), in seconds."""
        return self.first + self.step * np.arange(self.n_steps)

    @property
    def delays(self):
        """All delays, array of shape (n_volumes · n_steps,), in seconds, increasing."""
        return self.first + self.step * np.arange(self.n_volumes * self.n_steps)


def delay_grid(delays, t_r):
    """The window that ``delays`` span, in steps of at most a second.

    The steps divide the repetition time, so that designs can be rolled; in a window of less than two repetition times
    they divide the window.

    Examples
    --------
    >>> delay_grid([2.0, 10.0], 2.0).delays
    array([2., 3., 4., 5., 6., 7., 8., 9.])
    >>> delay_grid([2.0, 10.0], 6.0).delays
    array([ 2.,  3.,  4.,  5.,  6.,  7.,  8.,  9., 10.])
    """
    first, span, t_r = float(delays[0]), float(delays[-1] - delays[0]), float(t_r)
    if span < 2 * t_r:
        n_steps = 1 + int(np.ceil(span / LONGEST_STEP - 1e-9))
        return DelayGrid(first, span / max(n_steps - 1, 1), n_steps, 1, 1 + int(span / t_r + 1e-9))
    n_steps = int(np.ceil(t_r / LONGEST_STEP - 1e-9))
    between = t_r * (n_steps - 1) / n_steps  # the last whole repetition time must fit, too
    n_volumes = 1 + int((span - between) / t_r + 1e-9)
    return DelayGrid(first, t_r / n_steps, n_steps, n_volumes, n_volumes)


@dataclass(frozen=True)
class VoxelInference:
    """What the surrogates say of every voxel.

    Parameters
    ----------
    voxels : DataFrame
        One row per voxel: ``z`` (scaled evidence), ``p`` (pooled), ``q``, ``p_fwe``, ``delay``, ``low``, ``high``
        (s; posterior median and 95 % interval over the window).
    n_shifts, n_randomised : int
        Surrogates that are circular shifts of the sound, and of its phase-randomised versions.
    """

    voxels: pd.DataFrame
    n_shifts: int
    n_randomised: int


def infer_voxels(slabs, X, grid, *, nuisance, shifts, n_randomised=None, alphas=ALPHAS, seed=0):
    """Rank every voxel's evidence among its surrogates.

    Parameters
    ----------
    slabs : gram.Slabs
        Whitened volumes of all voxels.
    X : array of shape (n_steps, n_rows, p)
        Features filtered like the volumes and scaled, at ``grid.offsets``.
    grid : DelayGrid
    nuisance : array of shape (n_rows, q)
        Taken off volumes and features alike, such as `drift_of`; the mean is taken off anyway.
    shifts : array of int
        From `significance.admissible_shifts`.
    n_randomised : int, optional
        Phase-randomised versions of the sound; without it as many as let ``p_fwe`` fall to `SMALLEST_P`.
    alphas : sequence of float
        Finite ridge strengths.
    seed : int
        Of the phases.

    Returns
    -------
    VoxelInference

    Raises
    ------
    ValueError
        If there is no surrogate at all.
    """
    n_rows = X.shape[1]
    if n_randomised is None:
        n_randomised = significance.versions_needed(n_rows, grid.alike, p=SMALLEST_P)
    if len(shifts) == 0 and n_randomised == 0:
        raise ValueError("no admissible shift and no randomised version: there is nothing to compare with.")
    Q = orthonormal(nuisance, n_rows)
    played = played_versions(X, n_randomised, np.random.default_rng(seed))
    bases = on_all_cores(
        lambda one: evidence.circular_bases([one], alphas, Q)[0],
        [step for version in played for step in version],
    )
    made = slabs.map(lambda _, y: _see(evidence.without(y, Q), bases, len(X), grid, shifts))
    largest = np.max([one.largest for one in made], axis=0)
    counts = np.sum([one.counts for one in made], axis=0)
    voxels = pd.concat([one.voxels for one in made], ignore_index=True)
    z = voxels["z"].to_numpy()
    p = pooled_p(z, counts)
    voxels.insert(1, "p", p)
    voxels.insert(2, "q", false_discovery_control(p))
    voxels.insert(3, "p_fwe", significance.p_value(z, largest[:, None], alike=grid.alike))
    return VoxelInference(voxels, len(shifts), n_randomised * n_rows)


def orthonormal(nuisance, n_rows):
    """Orthonormal columns that span ``nuisance`` and the mean: array of shape (n_rows, ≤ q + 1)."""
    columns = np.column_stack([np.ones(n_rows), nuisance]) if np.size(nuisance) else np.ones((n_rows, 1))
    U, s, _ = np.linalg.svd(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12), full_matrices=False)
    return U[:, s > 1e-8 * s[0]]


def drift_of(volume_times, starts, rows, taps):
    """Slow cosines of every run, filtered like the volumes: array of shape (n_rows, n_waves).

    Parameters
    ----------
    volume_times : array of shape (n_volumes,)
        On the clock of each volume's run, in seconds.
    starts : sequence of int
        First volume of each run.
    rows : array of int
        Volumes used.
    taps : sequence of float
        Filter, as for `gram.Gram.target`.
    """
    columns = []
    for first, stop in zip(starts, [*starts[1:], len(volume_times)], strict=True):
        waves = slow_cosines(volume_times[first:stop])
        waves = np.column_stack([waves, np.ones(len(waves))])
        own = np.zeros((len(volume_times), waves.shape[1]))
        own[first:stop] = waves
        columns.append(own)
    return filtered(np.hstack(columns), taps, rows)


def played_versions(X, n_randomised, rng):
    """The sound itself and its phase-randomised versions: list of arrays like X, all features with the same phases."""
    flat = X.transpose(1, 0, 2).reshape(X.shape[1], -1)
    others = [significance.phase_randomised(flat, rng) for _ in range(n_randomised)]
    return [X, *(one.reshape(X.shape[1], len(X), -1).transpose(1, 0, 2) for one in others)]


@dataclass(frozen=True)
class _Seen:
    voxels: pd.DataFrame
    largest: np.ndarray
    counts: np.ndarray


def _see(y, bases, n_steps, grid, shifts):
    """One slab: every design of every version scored, and scaled by the voxel's own."""
    y = np.ascontiguousarray(y)
    found = [evidence.log_evidence(y, basis) for basis in bases]
    n_played = len(found) // n_steps
    here = np.stack(found[:n_steps], axis=1)[: grid.n_volumes]  # (n_volumes of delay, n_steps, n_voxels)
    weight = evidence.posterior(here.reshape(-1, here.shape[-1]), grid.delays)
    best = [
        significance.mean_in_window(_mean_over(found[k * n_steps : (k + 1) * n_steps]), grid.n_volumes)
        for k in range(n_played)
    ]
    # Every shift counts here, the sound's own place too: it must be measured by the same rule as its surrogates.
    middle, high = np.quantile(np.concatenate(best), (0.5, 0.9), axis=0)
    spread = np.where(high - middle > 1e-6, high - middle, np.inf)  # constant voxels follow nothing
    z, null = (best[0][0] - middle) / spread, (np.concatenate([best[0][shifts], *best[1:]]) - middle) / spread
    low, high = evidence.interval(weight, grid.delays) if len(grid.delays) > 2 else (np.nan, np.nan)
    voxels = pd.DataFrame({"z": z, "delay": evidence.median(weight, grid.delays), "low": low, "high": high})
    counts, _ = np.histogram(np.clip(null, BINS[0], BINS[-1] - 1e-6), BINS)
    return _Seen(voxels, null.max(axis=1), counts)


def _mean_over(steps):
    """Evidence averaged over the delays between two volumes."""
    return steps[0] if len(steps) == 1 else evidence.log_mean_exp(np.stack(steps), axis=0)


def pooled_p(z, counts):
    """Rank of each z among the surrogates of all voxels, counted in `BINS`; those in z's own bin count as larger.

    Parameters
    ----------
    z : array of shape (n_voxels,)
    counts : array of shape (len(BINS) - 1,)

    Returns
    -------
    array of shape (n_voxels,)
        (1 + #≥) / (1 + n).
    """
    at_least = np.cumsum(counts[::-1])[::-1]
    at = np.clip(np.searchsorted(BINS, z, side="right") - 1, 0, len(counts) - 1)
    return (1 + at_least[at]) / (1 + counts.sum())
