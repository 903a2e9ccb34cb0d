"""Speech against music blocks: a t map of every voxel, and a calibrated t of a region over pairs of blocks.

Two tests, because one is not enough. The map says where: a general linear model with noise whitened by one filter for
all voxels, and what that filter leaves in a voxel taken off its t. The t values still spread wider than 1 where nothing
happens; the map's threshold is therefore counted in their own robust spread. On real scans that is still not quite
enough, so the map is for looking. The test of a region says whether: one number per pair of neighbouring blocks, far
enough apart in time to be independent, and a t test over the pairs.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bold_audio import gram
from bold_audio.confounds import DRIFT_PERIOD
from bold_audio.features import BLOCK_TYPES
from bold_audio.files import DataError, ParameterError
from bold_audio.significance import LEVEL
from bold_audio.splits import volumes_of
from bold_audio.whitening import fit_whitening, high_pass

RISE = 4.0  # s on both sides of a change of block in which the haemodynamic response is between the two levels
PAIRS_PERIOD = 200.0  # s of the high-pass filter; see the notes of region_contrast
MAX_RHO = 0.9  # of a residual: more would be a voxel of drift
MIN_PAIRS = 3  # fewest pairs of blocks that a t test is done with


@dataclass(frozen=True)
class ContrastMap:
    """Speech > music of every voxel.

    Parameters
    ----------
    t : array of shape (n_voxels,)
        Student's t, positive where speech is louder in the scan; NaN where a voxel does not vary. Its nominal
        distribution does not hold, see `threshold_of`.
    percent : array of shape (n_voxels,)
        Speech against music, in % of the voxel's mean.
    n_volumes : int
    dof : int
        Degrees of freedom of t, were the noise white.
    """

    t: np.ndarray
    percent: np.ndarray
    n_volumes: int
    dof: int

    @property
    def threshold(self):
        """|t| that a voxel must reach; see `threshold_of`."""
        return threshold_of(self.t, dof=self.dof)


def contrast_map(Y, boxcar, *, rows, t_r, order, period=DRIFT_PERIOD, chunk_voxels=8192):
    """Fit every voxel with the film's speech blocks and slow drift, after whitening all voxels with one filter.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Run; read in slabs of voxels. Only ``rows`` and the ``order`` volumes before them are looked at.
    boxcar : array of shape (n_volumes,) or (n_volumes, 1)
        1 where speech is expected in the scan and 0 where music is, convolved with the response:
        ``subject.designs["blocks"].at(delay)``.
    rows : array of int
        Volumes to fit: the whole run, or train alone.
    t_r, order, period, chunk_voxels
        See `whitening.fit_whitening`.

    Returns
    -------
    ContrastMap

    Raises
    ------
    ParameterError
        If the boxcar is not known, or does not change apart from drift, in ``rows``.

    Notes
    -----
    Ordinary least squares of the filtered volumes on the filtered boxcar and drift. With x the filtered boxcar and
    y the filtered voxel, both without the filtered drift, t₀ = xᵀy / √(xᵀx · RSS / dof). No single filter whitens
    every voxel: t = t₀ / √((1 + ρ) / (1 − ρ)) with ρ the residual's own lag-1 correlation, the factor by which
    first-order autocorrelation widens the error of anything slow. Without it the tails are heavier. With it, 40
    square waves that nobody was shown (periods of 40 to 90 s) still give 0.5 voxels over the threshold per wave in
    a real one-back scan of 47,085 voxels, and at least one in 13 of them (``benchmarks/contrast.py``; asked: 2, had
    that person seen nothing).
    """
    boxcar = np.asarray(boxcar, dtype=np.float64).reshape(len(Y), 1)
    rows = np.asarray(rows)
    before = rows[:, None] - np.arange(order + 1)
    if not np.isfinite(boxcar[before[before >= 0]]).all():
        raise ParameterError("the blocks are not known in every volume of rows - take rows that the film covers")
    white = fit_whitening(Y, rows=rows, t_r=t_r, order=order, period=period, chunk_voxels=chunk_voxels)
    x = white.apply(boxcar)[:, 0]
    if not x @ x > 1e-6 * np.sum(np.square(boxcar[rows])):
        raise ParameterError(
            f"the blocks do not change in rows, or only as slowly as the drift (period {period:g} s) that is taken off"
            " - use a longer period, or more volumes"
        )
    slabs = gram.Slabs(Y, np.arange(rows[0] - order, rows[-1] + 1), rows, white.taps, chunk_voxels)

    def fit(slab, y):
        y = white.without_drift(y)
        weight = (x.astype(np.float32) @ y).astype(np.float64) / (x @ x)
        power = np.einsum("kv,kv->v", y, y, dtype=np.float64)
        y -= np.outer(x, weight).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = np.clip(np.einsum("kv,kv->v", y[1:], y[:-1]) / np.einsum("kv,kv->v", y, y), -MAX_RHO, MAX_RHO)
            rss = np.einsum("kv,kv->v", y, y, dtype=np.float64) * (1 + rho) / (1 - rho)
            t = np.where(power > 0, weight / np.sqrt(rss / (white.dof - 1) / (x @ x)), np.nan)
            percent = 100 * weight / np.abs(np.mean(Y[rows, slab], axis=0, dtype=np.float64))
        return t, np.where(power > 0, percent, np.nan)

    t, percent = (np.concatenate(parts) for parts in zip(*slabs.map(fit), strict=True))
    return ContrastMap(t, percent, len(rows), white.dof - 1)


def threshold_of(t, level=LEVEL, *, dof=np.inf):
    """|t| that no voxel reaches in 1 − ``level`` of the brains where nothing happens.

    Parameters
    ----------
    t : array of shape (n_voxels,)
        Of the whole brain; most of it must have nothing to do with the contrast. NaN is left out.
    level : float
        Family-wise error.
    dof : float
        Degrees of freedom; infinite for z values.

    Returns
    -------
    float

    Raises
    ------
    DataError
        If no voxel has a t.

    Notes
    -----
    The quantile of Student's t for ``level`` / (2 n_voxels), times the spread of the t values: their interquartile
    range over the nominal one, which few responding voxels cannot move, and never less than 1. The spread takes up what
    the filter gets wrong for all voxels alike: on simulated noise t has a standard deviation of 1.1 to 1.2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> bool(4.3 < threshold_of(rng.normal(size=10_000)) < 4.9), bool(8.6 < threshold_of(2 * rng.normal(size=10_000)))
    (True, True)
    """
    t = np.asarray(t, dtype=float)
    t = t[np.isfinite(t)]
    if not len(t):
        raise DataError("no voxel varies, so there is no t to take a threshold from - check the scan and its mask")
    spread = np.subtract(*np.percentile(t, (75, 25))) / np.subtract(*stats.t.ppf((0.75, 0.25), dof))
    return float(max(spread, 1.0) * stats.t.isf(level / 2 / len(t), dof))


def blocks_region(Y, boxcar, *, train, **how):
    """Voxels whose contrast inside train alone is over the threshold, in either direction.

    Parameters
    ----------
    Y, boxcar
        As for `contrast_map`.
    train : array of int
        Train volumes; no other is looked at, but for the ``order`` before each.
    **how
        ``t_r``, ``order``, ``period``, ``chunk_voxels`` of `contrast_map`.

    Returns
    -------
    array of bool, shape (n_voxels,)
        May be all False: then the blocks show nowhere in train.
    """
    found = contrast_map(Y, boxcar, rows=train, **how)
    return np.abs(np.nan_to_num(found.t)) > found.threshold


def block_pairs(events, volume_times, *, rows, t_r, delay):
    """Pair neighbouring speech and music blocks, each by the volumes that show it fully.

    Parameters
    ----------
    events : DataFrame
        ``onset``, ``duration`` (s, clock of the run) and ``trial_type``; of this, ``music`` and ``speech``.
    volume_times : array of shape (n_volumes,)
        Start of each volume, on the same clock.
    rows : array of int
        Volumes that may be used.
    t_r : float
        Repetition time, in seconds.
    delay : float
        From sound to the response half way up, in seconds; the same as the delay of the peak to a short sound.

    Returns
    -------
    list of (music, speech) arrays of int
        Volumes, without `RISE` seconds (at most a quarter of a block) on both sides of each change; no block is in two
        pairs. A block of which fewer than half of the volumes may be used is in none.

    Examples
    --------
    >>> film = pd.DataFrame({"onset": [0, 8, 16], "duration": 8, "trial_type": ["music", "speech", "music"]})
    >>> block_pairs(film, np.arange(30), rows=np.arange(30), t_r=1.0, delay=3)
    [(array([5, 6, 7, 8]), array([13, 14, 15, 16]))]
    """
    middle = np.asarray(volume_times, dtype=float) + t_r / 2
    usable = np.isin(np.arange(len(middle)), rows)
    events = events[events["trial_type"].astype(str).isin(BLOCK_TYPES)].sort_values("onset")
    pairs, waiting = [], None
    for onset, duration, kind in events[["onset", "duration", "trial_type"]].itertuples(index=False):
        onset, duration = float(onset), float(duration)
        edge = min(RISE, duration / 4)
        shown = (middle >= onset + delay + edge) & (middle < onset + duration + delay - edge)
        expected = volumes_of(duration - 2 * edge, t_r)
        if not 2 * np.count_nonzero(shown & usable) >= expected:
            waiting = None
            continue
        here = (str(kind), np.flatnonzero(shown & usable))
        if waiting is None or waiting[0] == here[0]:
            waiting = here
            continue
        made = dict([waiting, here])
        pairs.append((made["music"], made["speech"]))
        waiting = None
    return pairs


def region_contrast(courses, pairs, *, rows, t_r, alternative="two-sided"):
    """Test speech against music in regions, over pairs of neighbouring blocks.

    Parameters
    ----------
    courses : array of shape (n_volumes,) or (n_volumes, n_regions)
        Mean time course of each region.
    pairs : list of (music, speech) arrays of int
        From `block_pairs`; inside ``rows``.
    rows : array of int
        Volumes that the high-pass filter is fitted on.
    t_r : float
        Repetition time, in seconds.
    alternative : {"two-sided", "greater"}
        ``greater``: speech above music, where that is what must come out.

    Returns
    -------
    DataFrame
        One row per region: ``percent`` (speech against music, in % of the mean over ``rows``), ``t``, ``p`` and
        ``n_pairs``. t and p are NaN where a region does not vary.

    Raises
    ------
    DataError
        If there are fewer than 3 pairs.

    Notes
    -----
    The difference of a pair is the mean over its speech volumes minus the mean over its music volumes; a one-sample t
    test asks whether the differences are 0 on average. Pairs lie a minute apart, further than the noise remembers once
    the drift is off, so no model of the noise is needed. The high-pass filter has a longer period here than in the map:
    the differences themselves take most of the drift off, and what scatters them lies beside the 60 s of the blocks, so
    a filter that reaches near takes some of their scatter with it (20,000 simulated time courses, p ≤ .05: 8 % with a
    period of 100 s, 5.7 to 5.9 % with 128 s, 4.9 to 5.3 % with 200 s).
    """
    if len(pairs) < MIN_PAIRS:
        raise DataError(
            f"{len(pairs)} pairs of a music and a speech block lie in these volumes - a test needs {MIN_PAIRS}"
        )
    courses = np.asarray(courses, dtype=np.float64).reshape(len(courses), -1)
    left = np.full(courses.shape, np.nan)
    left[rows] = high_pass(courses, rows=rows, t_r=t_r, period=PAIRS_PERIOD)
    differences = np.array([left[speech].mean(axis=0) - left[music].mean(axis=0) for music, speech in pairs])
    level = courses[rows].mean(axis=0)
    varies = np.ptp(courses[rows], axis=0) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        t, p = stats.ttest_1samp(np.where(varies, differences, np.nan), 0, alternative=alternative)
        percent = np.where(varies, 100 * differences.mean(axis=0) / np.abs(level), np.nan)
    return pd.DataFrame({"percent": percent, "t": np.asarray(t), "p": np.asarray(p), "n_pairs": len(pairs)})


def region_courses(Y, regions):
    """Mean time course of each region: (n_volumes, n_regions), float64; NaN for a region without voxels."""
    courses = [Y[:, roi].mean(axis=1, dtype=np.float64) if roi.any() else np.full(len(Y), np.nan)
               for roi in regions.values()]  # fmt: skip
    return np.stack(courses, axis=1)


def settled_rows(subject):
    """Volumes after the first ``skip_initial`` seconds of each run: array of int."""
    skipped = volumes_of(subject.params.skip_initial, subject.run.files.t_r)
    parts = zip(subject.run.files.starts, subject.run.files.parts, strict=True)
    return np.concatenate([np.arange(start + skipped, start + part.n_volumes) for start, part in parts])


def subject_pairs(subject, delay):
    """Pairs of blocks of all of a subject's runs, none across a border; see `block_pairs`."""
    rows, made = settled_rows(subject), []
    for start, part in zip(subject.run.files.starts, subject.run.files.parts, strict=True):
        mine = rows[(rows >= start) & (rows < start + part.n_volumes)] - start
        pairs = block_pairs(part.events, part.volume_times, rows=mine, t_r=part.t_r, delay=delay)
        made += [(music + start, speech + start) for music, speech in pairs]
    return made
