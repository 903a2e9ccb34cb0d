"""Nuisance → volumes without it: drift, motion, high-variance components and columns of a table, fitted on train."""

import fnmatch

import numpy as np
import pandas as pd

from bold_audio import motion
from bold_audio.features import as_numbers
from bold_audio.files import ParameterError, nearest

GROUPS = ("drift", "motion", "motion_derivatives", "high_variance")
DERIVATIVES = tuple(f"{name}_derivative1" for name in motion.NAMES)
N_SHIFTS = 40  # of a time course, to see what columns explain of it by chance
DRIFT_PERIOD = 128.0  # s, the shortest cosine, as in SPM: more than twice the 60 s in which the film's blocks repeat
HOLD = 30.0  # s at the end of train whose mean drift is taken for that of later volumes
N_COMPONENTS, PERCENT = 5, 2  # of high variance; as nilearn's high_variance_confounds
HUGE = 1e100  # whose square is still a number; a column's value beyond it says nothing
CHUNK = 1024  # voxels worked on at once


def expand_names(names, table=None):
    """Groups and columns of the table that names and patterns stand for, each once.

    Raises
    ------
    ParameterError
        If a name is neither.

    Examples
    --------
    >>> expand_names(["drift", "motion*"])
    ['drift', 'motion', 'motion_derivatives']
    """
    known = [*GROUPS, *(() if table is None else map(str, table.columns))]
    meant = {}
    for name in names:
        fits = fnmatch.filter(known, name)
        if not fits:
            ways = nearest(name, known, otherwise=f"the groups are {', '.join(GROUPS)}")
            there = "and there is no table of confounds" if table is None else "nor a column of the table of confounds"
            raise ParameterError(f"confounds: {name} is not a group, {there} - {ways}")
        meant |= dict.fromkeys(fits)
    return list(meant)


def used_of(table, names):
    """The part of a table of confounds that a result depends on, as text; None without a table."""
    if table is None:
        return None
    return table[[c for c in table.columns if c in expand_names(names, table) or c in motion.NAMES]].to_csv()


def clean(volumes, files, params, *, train, tables):
    """Take off the volumes, in place, what ``detrend`` and ``confounds`` name, run by run; see `take_off`.

    Parameters
    ----------
    volumes : array of shape (n_volumes, n_voxels)
    files : runs.RunFiles or runs.SeveralRuns
    params : Params
    train : array of int
    tables : list of DataFrame or None
        For each run, see `nuisance_columns`.

    Raises
    ------
    ParameterError
        If a run has no train volumes to fit on.
    """
    if not (params.confounds or params.detrend):
        return
    columns = run_columns(files, params, train=train, tables=tables)
    for part, start, made, table in zip(files.parts, files.starts, columns, tables, strict=True):
        names, mine = expand_names(params.confounds, table), _within(train, start, part)
        take_off(volumes[start : start + part.n_volumes], made, mine, high_variance="high_variance" in names)


def _within(train, start, part):
    """Train volumes of a run, counted from its first."""
    return train[(train >= start) & (train < start + part.n_volumes)] - start


def run_columns(files, params, *, train, tables):
    """Give the nuisance columns of each run as ``detrend`` and ``confounds`` name them; see `nuisance_columns`.

    Parameters
    ----------
    files : runs.RunFiles or runs.SeveralRuns
    params : Params
    train : array of int
        Train volumes of all runs one after the other.
    tables : list of DataFrame or None
        The table of confounds of each run.

    Returns
    -------
    list of DataFrame
        One for each run.

    Raises
    ------
    ParameterError
        If a run has no train volume to fit them on.
    """
    made = []
    for part, start, table in zip(files.parts, files.starts, tables, strict=True):
        mine = _within(train, start, part)
        if not len(mine):
            raise ParameterError(
                f"detrend and confounds are fitted on train volumes, {part.bold.name} has none - leave them out, "
                "or set split_by time"
            )

        def estimate(start=start, part=part):
            return motion.cached_motion(files, params.cache_path, train=train)[start : start + part.n_volumes]

        size = {"n_volumes": part.n_volumes, "t_r": files.t_r}
        made.append(
            nuisance_columns(params.confounds, **size, train=mine, line=params.detrend, estimate=estimate, table=table)
        )
    return made


def nuisance_columns(names, *, n_volumes, t_r, train, line=False, estimate=None, table=None):
    """Give the columns that names stand for, apart from the components, which take the volumes.

    Parameters
    ----------
    names : sequence of str
        Groups (``drift``, ``motion``, ``motion_derivatives``, ``high_variance``), or columns of
        ``table``; a pattern such as ``a_comp_cor_0*`` means all columns it fits.
    n_volumes : int
    t_r : float
        Repetition time, in seconds.
    train : array of int
        Indices of the train volumes.
    line : bool
        Add a straight line over the whole run (parameter ``detrend``).
    estimate : function without arguments, optional
        Returns head motion, array of shape (n_volumes, 6); called only where motion is asked for
        and the table does not hold it.
    table : DataFrame of n_volumes rows, optional
        Such as fMRIPrep's ``desc-confounds_timeseries.tsv``. Its components and cosines were made
        from the whole run, test part included, which this package's own groups are not.

    Returns
    -------
    DataFrame of n_volumes rows
        NaN where a column says nothing of a volume.

    Notes
    -----
    ``drift`` is the discrete cosine basis of the train volumes down to a period of 128 s. It cannot
    be continued: cosines extrapolated from 70 % of a run into the last 25 % multiply noise by
    hundreds. Later volumes therefore get the mean drift of train's last 30 s, earlier ones that of
    its first 30 s: the best constant guess of where a slow wander is.
    """
    names, columns = expand_names(names, table), {}
    if line:
        columns["line"] = np.arange(n_volumes, dtype=float)
    if "drift" in names:
        columns |= _drift(n_volumes, t_r, train)
    if {"motion", "motion_derivatives"} & set(names):
        moved = _moved(estimate, table)
        if "motion" in names:
            columns |= dict(zip(motion.NAMES, moved.T, strict=True))
        if "motion_derivatives" in names:
            change = np.vstack([np.full(6, np.nan), np.diff(moved, axis=0)])
            columns |= dict(zip(DERIVATIVES, change.T, strict=True))
    for name in (name for name in names if name not in GROUPS):
        columns[name] = as_numbers(table[name])
    return pd.DataFrame(columns, index=range(n_volumes))


def slow_cosines(times, *, period=DRIFT_PERIOD):
    """The discrete cosine basis (`nilearn`'s) down to a period, without the constant.

    Parameters
    ----------
    times : array of shape (n_volumes,)
        Evenly spaced, in seconds.
    period : float
        Shortest period of a cosine, in seconds.

    Returns
    -------
    array of shape (n_volumes, n_waves)
    """
    from nilearn.glm.first_level.design_matrix import create_cosine_drift

    return create_cosine_drift(1 / period, times)[:, :-1]  # the last is the constant


def _drift(n_volumes, t_r, train):
    first, last = train[0], train[-1] + 1
    waves = slow_cosines(np.arange(last - first) * t_r)
    held = max(1, min(int(round(HOLD / t_r)), last - first))
    parts = [
        np.repeat(waves[:held].mean(axis=0)[None], first, axis=0),
        waves,
        np.repeat(waves[-held:].mean(axis=0)[None], n_volumes - last, axis=0),
    ]
    return {f"drift_{k:02d}": wave for k, wave in enumerate(np.vstack(parts).T)}


def _moved(estimate, table):
    if table is not None and set(motion.NAMES) <= set(table.columns):
        # The scan that such a table comes with is already realigned: what is left in it to estimate is not its motion.
        return np.column_stack([as_numbers(table[name]) for name in motion.NAMES])
    return np.asarray(estimate(), float)


def scale_columns(columns, train):
    """Columns as numbers with mean 0 and standard deviation 1 over train; 0 where they say nothing.

    Returns
    -------
    array of shape (n_volumes, n_kept)
        A column that does not change within train cannot be fitted there and is left out.
    """
    values = np.asarray(columns, float)
    known = np.abs(values) < HUGE
    inside = np.where(known[train], values[train], np.nan)
    there = known[train].any(axis=0)
    mean, sd = np.nanmean(inside[:, there], axis=0), np.nanstd(inside[:, there], axis=0)
    keep = sd > 1e-9 * np.maximum(np.abs(mean), 1e-12)
    scaled = (values[:, there][:, keep] - mean[keep]) / sd[keep]
    return np.where(known[:, there][:, keep], scaled, 0)


def high_variance_components(volumes, others, train):
    """Time courses common to the voxels that vary most, found in train and projected on the whole run.

    Parameters
    ----------
    volumes : array of shape (n_volumes, n_voxels)
    others : array of shape (n_volumes, n_columns)
        Scaled nuisance that is taken off first, by its own fit on train.
    train : array of int

    Returns
    -------
    array of shape (n_volumes, at most 5)

    Notes
    -----
    nilearn's ``high_variance_confounds`` (CompCor without a noise mask) on train alone: the 2 % of
    voxels with the largest variance, their first five left singular vectors. A later volume's value
    is the projection of its own voxels on the right singular vectors of train. The voxels may hold
    what follows the sound, too: compare with and without.
    """
    power = np.concatenate(
        [np.square(_without(volumes[:, part], others, train)[train]).mean(axis=0) for part in chunks(volumes)]
    )
    chosen = np.flatnonzero(power >= np.percentile(power, 100 - PERCENT))
    left = _without(volumes[:, chosen], others, train)
    _, sizes, directions = np.linalg.svd(left[train], full_matrices=False)
    directions = directions[:N_COMPONENTS][sizes[:N_COMPONENTS] > 1e-6 * sizes[0]]
    return left @ directions.T


def take_off(volumes, columns, train, *, high_variance=False):
    """Take nuisance off every voxel, in place; each voxel's train mean stays.

    Parameters
    ----------
    volumes : array of shape (n_volumes, n_voxels)
        Changed in place.
    columns : DataFrame or array of n_volumes rows
        From `nuisance_columns`.
    train : array of int
        The volumes that coefficients, means and components are fitted on: least squares, all
        columns together, since one after the other would put back what an earlier one took.
    high_variance : bool
        Add components of the voxels that vary most.

    Raises
    ------
    ParameterError
        If there are more columns than half the train volumes.

    Notes
    -----
    Taken off the volumes and not off the sound: where nuisance and sound go together, the sound
    gets less than its share, never more.
    """
    design = scale_columns(columns, train)
    if high_variance:
        found = scale_columns(high_variance_components(volumes, design, train), train)
        design = np.column_stack([design, found])
    if 2 * design.shape[1] > len(train):
        raise ParameterError(
            f"confounds are {design.shape[1]} columns for {len(train)} train volumes - name fewer of them"
        )
    solve = np.linalg.pinv(design[train], rcond=1e-6)
    for part in chunks(volumes):
        block = volumes[:, part].astype(float)
        volumes[:, part] = block - design @ (solve @ (block[train] - block[train].mean(axis=0)))


def _without(block, design, train):
    """A block less its train mean and what the design explains of it in train, float64."""
    block = block.astype(float)
    block -= block[train].mean(axis=0)
    return block - design @ (np.linalg.pinv(design[train], rcond=1e-6) @ block[train])


def chunks(volumes):
    """Slices of voxels that are worked on at once: float64 copies of all would be many times the run."""
    return (slice(start, start + CHUNK) for start in range(0, volumes.shape[1], CHUNK))


def shared_variance(columns, target, rows):
    """Share of a time course that nuisance columns explain over ``rows``: what taking them off would cost it.

    Parameters
    ----------
    columns : DataFrame or array of shape (n_volumes, n_columns)
    target : array of shape (n_volumes,)
    rows : array of int

    Returns
    -------
    float
        0 to 1; NaN where the target does not change.
    """
    design = scale_columns(columns, rows)[rows]
    wanted = np.asarray(target, float)[rows] - np.mean(np.asarray(target, float)[rows])
    size = float(wanted @ wanted)
    if size == 0:
        return float("nan")
    return float(1 - np.sum((wanted - design @ (np.linalg.pinv(design, rcond=1e-6) @ wanted)) ** 2) / size)


def shared_by_chance(columns, target, rows):
    """The share that columns explain of a time course, and the median of what they explain of it shifted in time.

    Parameters
    ----------
    columns, target, rows
        As for `shared_variance`; the target is rolled within ``rows``, by `N_SHIFTS` evenly spaced shifts.

    Returns
    -------
    (float, float)
        Smooth columns explain something of any smooth time course: the second is how much.
    """
    columns, target = np.asarray(columns, float)[rows], np.asarray(target, float)[rows]
    inside = np.arange(len(rows))
    shifts = np.unique(np.linspace(0, len(rows), N_SHIFTS + 2)[1:-1].astype(int))
    shifted = [shared_variance(columns, np.roll(target, shift), inside) for shift in shifts]
    return shared_variance(columns, target, inside), float(np.median(shifted))
