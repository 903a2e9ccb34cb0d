"""How far ahead a model sees: open-loop error by the number of volumes since the last measured one.

From many starting points inside every held-out block the previous volumes are the model's own predictions. The
same starting points serve every horizon and every model. A first-order autoregression of coefficient ρ has the skill
ρ^(2h) over the mean at horizon h, copying the last volume 2 ρ^h − 1: worse than the mean as soon as ρ^h < ½.
"""

import numpy as np
import pandas as pd

from bold_audio import models, nested, splits
from bold_audio.files import DataError

HORIZON = 60  # volumes
MIN_STARTS = 10  # in every held-out block
NAMES = ("constant", "copy_previous", "history", "history_sound", "history_blocks", "history_blocks_sound")


def rollout_many(phi, drive, Y, stretch, n_horizon):
    """Open-loop predictions from every starting point of a stretch from which ``n_horizon`` volumes are left.

    Parameters
    ----------
    phi : array of shape (order, n_voxels)
    drive : array of shape (n_stretch, n_voxels)
        What needs no previous volume, for the volumes of ``stretch``.
    Y : array of shape (n_volumes, n_voxels)
        Measured run: the volumes before each starting point are read.
    stretch : array of int, shape (n_stretch,)
        Consecutive volumes.
    n_horizon : int

    Returns
    -------
    array of shape (n_starts, n_horizon, n_voxels), float32
        Row s begins with ``stretch[s]``.
    """
    order, n_starts = len(phi), len(stretch) - n_horizon + 1
    starts = np.arange(n_starts)
    series = np.empty((n_starts, order + n_horizon, Y.shape[1]), np.float32)
    for lag in range(1, order + 1):
        series[:, order - lag] = Y[stretch[starts] - lag]
    weights = np.asarray(phi, dtype=np.float32)
    for step in range(n_horizon):
        series[:, order + step] = drive[starts + step]
        for lag, weight in enumerate(weights, start=1):
            series[:, order + step] += weight * series[:, order + step - lag]
    return series[:, order:]


def horizon_length(folds):
    """How many volumes ahead every held-out block allows with `MIN_STARTS` starting points, at most `HORIZON`.

    Raises
    ------
    DataError
        If the held-out blocks are too short for one volume ahead.
    """
    longest = [max(len(one) for one in splits.stretches(fold.held)) for fold in folds]
    length = min(HORIZON, min(longest) - MIN_STARTS + 1)
    if length < 1:
        raise DataError(
            f"held-out blocks of {min(longest)} volumes are too short for {MIN_STARTS} starts - use fewer n_folds"
        )
    return length


def skill_by_horizon(folds, sound, blocks=None, *, alphas, max_order, value_range, names=NAMES):
    """Open-loop skill over the mean, by horizon.

    Parameters
    ----------
    folds : list of nested.RegionFold
    sound, blocks : designs with ``at(delay)``
        ``blocks`` None where the film has none.
    alphas : sequence of float
    max_order : int
    value_range : (float, float)
        As for `scores.voxel_mse`.
    names : sequence of str
        Linear rows of `models`, ``constant`` among them.

    Returns
    -------
    DataFrame
        ``model``, ``horizon`` (volumes), ``mse``, ``skill`` over the mean of the volumes fitted on, ``n_starts``.
    """
    n_horizon, errors, n_starts, n_values = horizon_length(folds), {}, 0, 0
    for fold in folds:
        rows = models.linear_rows(fit_region(fold, sound, blocks, alphas=alphas, max_order=max_order, names=names))
        for stretch in splits.stretches(fold.held):
            if len(stretch) < n_horizon:
                continue
            starts = len(stretch) - n_horizon + 1
            ahead = np.arange(starts)[:, None] + np.arange(n_horizon)
            measured = fold.Y[stretch][ahead].astype(np.float64)
            n_starts, n_values = n_starts + starts, n_values + starts * fold.Y.shape[1]
            for name, row in rows.items():
                made = rollout_many(row.phi, row.drive(stretch), fold.Y, stretch, n_horizon)
                errors[name] = errors.get(name, 0) + np.sum((measured - made) ** 2, axis=(0, 2))
    scale = n_values * (value_range[1] - value_range[0]) ** 2
    steps = np.arange(1, n_horizon + 1)
    return pd.concat(
        pd.DataFrame(
            {"model": name, "horizon": steps, "mse": error / scale, "skill": 1 - error / errors["constant"]}
            | {"n_starts": n_starts}
        )
        for name, error in errors.items()
    ).reset_index(drop=True)


def fit_region(fold, sound, blocks=None, *, alphas, max_order, names):
    """`models.fit_rows` of a region's voxels in one outer fold, at its own delay."""
    heard = nested.scaled(sound, fold.delay, fold.fit)
    return models.fit_rows(
        fold.Y,
        rows=fold.fit,
        folds=fold.inner,
        sound=heard,
        sound_at_zero=heard,
        blocks=None if blocks is None else nested.scaled(blocks, fold.delay, fold.fit),
        alphas=alphas,
        max_order=max_order,
        follows=fold.follows,
        names=names,
    )
