"""The linear encoding models: one form for every row of the score table.

Every model says

    ŷ[k] = intercept + Σ_l phi_l ∘ y[k−l] + x[k] B

with the voxel's own previous volumes ``y[k−l]`` and features ``x[k]`` shared by all voxels.
``copy_previous`` is phi_1 = 1, ``constant`` the intercept alone; a model of the difference
y[k] − y[k−1] is one with phi_1 = 1 held fixed. How they are solved: `ridge`; how their strengths are chosen: `choices`.
"""

from dataclasses import dataclass

import numpy as np

from bold_audio.choices import choose_strengths
from bold_audio.ridge import Regression, fold_errors, slabs
from bold_audio.space import SpatialHistory

_FIELDS = ("intercept", "phi", "weights", "alpha")


@dataclass(frozen=True)
class LinearModel:
    """A fitted linear encoding model.

    Parameters
    ----------
    intercept : array of shape (n_voxels,)
    phi : array of shape (order, n_voxels)
        Weight of each of the voxel's own previous volumes, nearest first.
    weights : array of shape (n_features, n_voxels)
        Weight of each feature; free features first, then ridge features.
    alpha : array of shape (n_voxels,)
        Ridge strength chosen for each voxel; infinite where the features vanish.
    space : SpatialHistory, optional
        What components of the whole previous volume add.
    """

    intercept: np.ndarray
    phi: np.ndarray
    weights: np.ndarray
    alpha: np.ndarray
    space: SpatialHistory | None = None


def drive_of(model, X):
    """The part of a prediction that needs no previous volume: ``intercept + X B``, float32."""
    drive = np.broadcast_to(model.intercept.astype(np.float32), (len(X), len(model.intercept))).copy()
    if model.weights.shape[0]:
        drive += X.astype(np.float32) @ model.weights.astype(np.float32)
    return drive


def predict(phi, drive, Y, rows, step=None):
    """One-step prediction: previous volumes are measured.

    Parameters
    ----------
    phi : array of shape (order, n_voxels)
        Weights of the previous volumes.
    drive : array of shape (n_rows, n_voxels)
        Everything else, for ``rows``.
    Y : array of shape (n_volumes, n_voxels)
        Measured run.
    rows : array of int, shape (n_rows,)
        Volumes to predict, each at least ``order``.
    step : callable, optional
        What whole previous volumes add: ``step(rows, previous)``, array of shape (n_rows, n_voxels), from the
        ``step.order`` volumes before each row, nearest first; such as `SpatialHistory`.

    Returns
    -------
    array of shape (n_rows, n_voxels), float32
    """
    predicted = np.array(drive, dtype=np.float32)
    for lag, weight in enumerate(phi, start=1):
        predicted += weight.astype(np.float32) * Y[rows - lag]
    if step is not None:
        predicted += step(rows, [Y[rows - lag] for lag in range(1, step.order + 1)])
    return predicted


def rollout(phi, drive, Y, rows, step=None):
    """Open-loop prediction: previous volumes are the model's own predictions.

    Parameters
    ----------
    phi, drive, Y, step
        As for `predict`. Volumes of ``Y`` from ``rows[0]`` on are not read.
    rows : array of int
        Contiguous volumes, the first one right after the last measured one.

    Returns
    -------
    array of shape (n_rows, n_voxels), float32
    """
    order = max(len(phi), step.order if step is not None else 0)
    start = int(rows[0])
    series = np.concatenate([np.asarray(Y[start - order : start], dtype=np.float32), np.array(drive, dtype=np.float32)])
    weights = np.asarray(phi, dtype=np.float32)
    for k in range(order, len(series)):
        for lag, weight in enumerate(weights, start=1):
            series[k] += weight * series[k - lag]
        if step is not None:
            previous = [series[k - lag : k - lag + 1] for lag in range(1, step.order + 1)]
            series[k] += step(rows[k - order : k - order + 1], previous)[0]
    return series[order:]


def fit_constant(Y, rows):
    """Train mean of each voxel."""
    mean = Y[rows].mean(axis=0, dtype=np.float64)
    n_voxels = Y.shape[1]
    return LinearModel(mean, np.zeros((0, n_voxels)), np.zeros((0, n_voxels)), np.full(n_voxels, np.inf))


def fit_copy_previous(Y):
    """The previous volume; nothing is fitted."""
    n_voxels = Y.shape[1]
    return LinearModel(np.zeros(n_voxels), np.ones((1, n_voxels)), np.zeros((0, n_voxels)), np.full(n_voxels, np.inf))


def fit_linear(
    Y,
    *,
    rows,
    folds=(),
    free=None,
    free_alphas=None,
    ridge=None,
    order=0,
    history_alpha=0.0,
    alphas=(np.inf,),
    follows=None,
    target="volume",
    chunk_voxels=8192,
):
    """Fit a linear encoding model to every voxel.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Run; slabs of voxels are read one after the other, so it may be memory-mapped.
    rows : array of int
        Train volumes.
    folds : list of (fit, held) arrays of int
        Blocked folds inside ``rows``; choose each voxel's ridge strength. Not needed for one.
    free, ridge : arrays of shape (n_volumes, n_features), optional
        Features without and with a penalty of each voxel's own, scaled on ``rows``.
    free_alphas : array of shape (n_free,), optional
        Known ridge strength of each free feature; 0 without it.
    order : int
        Number of the voxel's own previous volumes.
    history_alpha : float
        Ridge strength γ of the previous volumes, for volumes of variance 1.
    alphas : sequence of float
        Ridge strengths to choose from; infinite leaves the ridge features out.
    follows : array of bool, shape (n_voxels,), optional
        Voxels that may have the ridge features at all; all without it. The others get an infinite strength.
    target : {"volume", "difference"}
        ``difference`` predicts y[k] − y[k−1].
    chunk_voxels : int
        Voxels per slab: bounds memory.

    Returns
    -------
    LinearModel
    """
    n_volumes, n_voxels = Y.shape
    free = np.zeros((n_volumes, 0)) if free is None else free
    ridge = np.zeros((n_volumes, 0)) if ridge is None else ridge
    alphas = np.asarray(alphas, dtype=float)
    free_alphas = np.zeros(free.shape[1]) if free_alphas is None else np.asarray(free_alphas, dtype=float)
    band = {
        "free": free,
        "free_alphas": free_alphas,
        "ridge": ridge,
        "order": order,
        "target": target,
        "chunk_voxels": chunk_voxels,
    }
    alpha = np.full(n_voxels, alphas[0])
    may = np.ones(n_voxels, bool) if follows is None else np.asarray(follows, bool)
    if len(alphas) > 1 and may.any():
        options = {**band, "history_alphas": (history_alpha,), "alphas": alphas}
        asked = Y if may.all() else Y[:, may]
        errors = sum(fold_errors(asked, fit=fit, held=held, **options)[0] for fit, held in folds)
        n_held = sum(len(held) for _, held in folds)
        alpha[may] = alphas[choose_strengths(errors, alphas, n_held=n_held)]
    alpha[~may] = np.inf
    parts = []
    for slab in slabs(n_volumes, n_voxels, chunk_voxels):
        y = np.asarray(Y[:, slab], dtype=np.float64)
        centre = y[rows].mean(axis=0)
        y -= centre
        solved = Regression(y, free, ridge, rows, order, target, free_alphas).solve(alpha[slab], history_alpha)
        parts.append(_as_model(*solved, centre, alpha[slab], target))
    return LinearModel(*(np.concatenate([getattr(p, name) for p in parts], axis=-1) for name in _FIELDS))


def _as_model(intercept, phi, weights, centre, alpha, target):
    """Undo the centring, and turn a model of the difference into one of the volume."""
    if target == "difference":
        phi = np.vstack([phi, np.zeros((max(0, 1 - len(phi)), phi.shape[1]))])
        phi[0] += 1
    return LinearModel(intercept + centre - phi.sum(axis=0) * centre, phi, weights, alpha)
