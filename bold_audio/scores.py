"""How good a prediction is: mse, r, r², skill, gain and the partial correlation of the sound.

With ŷ the prediction of a voxel's test volumes y, and 0 the reference that a model is measured against,

    mse = mean (y − ŷ)² / (max − min)²        skill = 1 − Σ_voxels mse / Σ_voxels mse₀

where max and min are those of all voxels in train. The gain of a model with sound is its skill where the reference is
the same model without; its partial r correlates what that one left over, y − ŷ₀, with what the sound adds, ŷ − ŷ₀.
"""

import functools
from itertools import pairwise

import numpy as np

CHUNK = 4096  # voxels scored at once, at most: float64 copies of all of them would be many times the run


def column_slabs(n_columns):
    """Slices of at most `CHUNK` columns, all of about the same width: list."""
    edges = np.linspace(0, n_columns, 1 + max(1, -(-n_columns // CHUNK))).astype(int)
    return [slice(*ends) for ends in pairwise(edges)]


def evenly_spaced(values, n):
    """At most ``n`` of some values, evenly spaced among them.

    Examples
    --------
    >>> evenly_spaced(np.arange(10, 20), 4)
    array([10, 13, 16, 19])
    """
    if len(values) <= n:
        return values
    return values[np.round(np.linspace(0, len(values) - 1, n)).astype(int)]


def _in_slabs(score):
    """Let a score of every voxel go over slabs of voxels."""

    @functools.wraps(score)
    def scored(*arrays, **options):
        slabs = column_slabs(np.shape(arrays[0])[1])
        return np.concatenate([score(*(array[:, slab] for array in arrays), **options) for slab in slabs])

    return scored


@_in_slabs
def voxel_mse(Y, predicted, *, value_range):
    """Mean squared error of each voxel over time, for BOLD scaled to [0, 1].

    Parameters
    ----------
    Y, predicted : arrays of shape (n_volumes, n_voxels)
        Raw intensities.
    value_range : (float, float)
        The one minimum and maximum of all voxels of the train volumes.

    Returns
    -------
    array of shape (n_voxels,)
    """
    difference = np.asarray(Y, dtype=np.float64) - predicted
    return np.mean(difference**2, axis=0) / (value_range[1] - value_range[0]) ** 2


@_in_slabs
def pearson_r(Y, predicted):
    """Pearson correlation of each voxel over time.

    Parameters
    ----------
    Y, predicted : arrays of shape (n_volumes, n_voxels)

    Returns
    -------
    array of shape (n_voxels,)
        NaN where either is constant: no correlation exists there, and 0 would be a claim.

    Examples
    --------
    >>> Y = np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    >>> pearson_r(Y, 2 * Y)
    array([ 1., nan])
    """
    Y = np.asarray(Y, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    a = Y - Y.mean(axis=0)
    b = predicted - predicted.mean(axis=0)
    aa, bb = np.sum(a**2, axis=0), np.sum(b**2, axis=0)
    varies = (aa > _rounding(Y)) & (bb > _rounding(predicted))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(varies, np.sum(a * b, axis=0) / np.sqrt(aa * bb), np.nan)


def _rounding(Y):
    """The sum of squares about the mean that rounding alone may leave of a constant series, which is no variation."""
    return len(Y) * (1e-7 * np.abs(Y).max(axis=0)) ** 2


@_in_slabs
def voxel_r2(Y, predicted):
    """Coefficient of determination of each voxel: 1 − residual / variance about the test mean.

    Parameters
    ----------
    Y, predicted : arrays of shape (n_volumes, n_voxels)

    Returns
    -------
    array of shape (n_voxels,)
        Negative when the prediction is worse than that mean; NaN where the voxel is constant.
    """
    Y = np.asarray(Y, dtype=np.float64)
    total = np.sum((Y - Y.mean(axis=0)) ** 2, axis=0)
    residual = np.sum((Y - predicted) ** 2, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > _rounding(Y), 1 - residual / total, np.nan)


def skill(mse, reference_mse):
    """Share of a reference's squared error that a model removes: 1 − Σ mse / Σ reference.

    Examples
    --------
    >>> float(skill(np.array([1.0, 2.0]), np.array([2.0, 4.0])))
    0.5
    """
    reference = float(np.sum(reference_mse))
    return 1 - float(np.sum(mse)) / reference if reference > 0 else float("nan")


@_in_slabs
def partial_r(Y, past, past_and_sound):
    """Out-of-sample partial correlation of the sound, given the past.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Measured volumes.
    past, past_and_sound : arrays of shape (n_volumes, n_voxels)
        Predictions without and with the sound, from the same earlier volumes.

    Returns
    -------
    array of shape (n_voxels,)
        Correlation of what the past left over with what the sound adds; NaN where the
        sound's strength vanished.
    """
    left_over = np.asarray(Y, dtype=np.float64) - past
    added = np.asarray(past_and_sound, dtype=np.float64) - past
    # Where the sound adds less than float32 can hold of the volume, it adds nothing.
    added = np.where(np.abs(added).max(axis=0) > 1e-6 * np.abs(past).max(axis=0), added, 0.0)
    return pearson_r(left_over, added)


def median_of(values):
    """Median over the voxels that have a value; NaN where none has."""
    finite = np.asarray(values)[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def score_row(mse, r, r2, reference_mse, roi):
    """Scores of the voxels of ``roi`` as one row of ``scores.tsv``.

    Parameters
    ----------
    mse, r, r2 : arrays of shape (n_voxels,)
        From `voxel_mse`, `pearson_r` and `voxel_r2`.
    reference_mse : array of shape (n_voxels,)
        `voxel_mse` of what the skill is measured against.
    roi : array of bool, shape (n_voxels,)

    Returns
    -------
    dict
        ``mse, r_median, n_with_r, r_best, r2, skill, n_voxels``. Medians are over voxels: of r over the ``n_with_r`` of
        them whose prediction varies, or they would have none.
    """
    mse, r, r2 = mse[roi], r[roi], r2[roi]
    return {
        "mse": float(mse.mean()),
        "r_median": median_of(r),
        "n_with_r": int(np.isfinite(r).sum()),
        "r_best": float(np.nanmax(r)) if np.isfinite(r).any() else float("nan"),
        "r2": median_of(r2),
        "skill": skill(mse, reference_mse[roi]),
        "n_voxels": len(mse),
    }
