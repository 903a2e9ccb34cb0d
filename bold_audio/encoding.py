r"""The linear encoding models: one solver for every row of the score table.

Every model says

    ŷ[k] = intercept + Σ_l phi_l ∘ y[k−l] + x[k] B

with the voxel's own previous volumes ``y[k−l]`` and features ``x[k]`` shared by all voxels.
``copy_previous`` is phi_1 = 1, ``constant`` the intercept alone; a model of the difference
y[k] − y[k−1] is one with phi_1 = 1 held fixed. The two bands of a regression have strengths of
their own: F holds the voxel's own lags, penalised by γ, the same for all voxels (Γ: γ on the lags'
diagonal, 0 for the blocks, which are free), and the ridge part Z, the sound, has one strength α per
voxel. With Z = U S Vᵀ (train mean taken off), P = Z V and D = 1 / (S² + α), the two separate:

    (FᵀF + Γ − FᵀP D PᵀF) φ = Fᵀy − FᵀP D Pᵀy,        b = V D (Pᵀy − PᵀF φ)

so a voxel costs one small solve, batched over voxels, and α → ∞ gives the model without
sound exactly.

**The sound must be able to vanish.** The smallest of twenty cross-validated errors is small by luck
too: chosen so, sound that carries nothing makes a model worse than the past alone. Strengths are
therefore chosen by empirical Bayes over all voxels (`choose_strengths`).
"""

from dataclasses import dataclass

import numpy as np

from bold_audio import evidence
from bold_audio.space import SpatialHistory

JITTER = 1e-10  # relative, on the diagonal: keeps constant voxels solvable
SPACE_ALPHAS = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e6)  # of the previous volume's components
HISTORY_ALPHAS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)  # strengths tried for the previous volumes


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
        errors = sum(fold_errors(Y, fit=fit, helds=(held,), **options)[0, 0] for fit, held in folds)
        n_held = sum(len(held) for _, held in folds)
        alpha[may] = alphas[choose_strengths(errors[:, may], alphas, n_held=n_held)]
    alpha[~may] = np.inf
    parts = []
    for slab in slabs(n_voxels, chunk_voxels):
        y = np.asarray(Y[:, slab], dtype=np.float64)
        centre = y[rows].mean(axis=0)
        y -= centre
        solved = _Regression(y, free, ridge, rows, order, target, free_alphas).solve(alpha[slab], history_alpha)
        parts.append(_as_model(*solved, centre, alpha[slab], target))
    return LinearModel(*(np.concatenate([getattr(p, name) for p in parts], axis=-1) for name in _FIELDS))


def choose_strengths(errors, alphas, *, n_held):
    """Choose each voxel's ridge strength from its held-out errors and from what the other voxels need.

    Against the model without sound, strength α predicts voxel v's held-out volumes with the likelihood ratio
    (error_v(α) / error_v(∞))^(−n/2). How often each strength is right beforehand is learnt from all voxels (expectation
    maximisation, uniform at the start); where the sound carries nothing, nearly all weight goes to ∞ and to strengths
    that leave next to nothing, and a lucky voxel needs more luck than the others show. Strength α keeps the share
    s²/(s² + α) of a feature's weight, s² = n for features of variance 1; the strength chosen is the one whose share is
    nearest to the mean share under the voxel's posterior.

    Parameters
    ----------
    errors : array of shape (n_alphas, n_voxels)
        Held-out squared error.
    alphas : array of shape (n_alphas,)
        Without an infinite one, the smallest error decides.
    n_held : int
        Held-out volumes that were summed over.

    Returns
    -------
    array of int, shape (n_voxels,)
        Index into ``alphas``.
    """
    off = np.isinf(alphas)
    if not off.any() or off.all():
        return np.argmin(errors, axis=0)
    null = errors[off][0]
    ratio = np.where(null > 0, errors / np.where(null > 0, null, 1), 1.0)
    log_ratio = -n_held / 2 * np.log(np.maximum(ratio, 1e-12))
    _, posterior = evidence.learn_prior(log_ratio)
    share = n_held / (n_held + np.asarray(alphas, dtype=float))
    kept = share @ posterior
    return np.argmin(np.abs(kept - share[:, None]), axis=0)


_FIELDS = ("intercept", "phi", "weights", "alpha")


def slabs(n_voxels, chunk_voxels):
    """Consecutive slices of at most ``chunk_voxels`` voxels."""
    return [slice(start, min(start + chunk_voxels, n_voxels)) for start in range(0, n_voxels, chunk_voxels)]


def fold_errors(
    Y,
    *,
    fit,
    helds,
    free=None,
    free_alphas=None,
    ridge=None,
    order=0,
    history_alphas=(0.0,),
    alphas=(np.inf,),
    target="volume",
    chunk_voxels=8192,
):
    """Squared error of each voxel on held-out blocks, for every pair of ridge strengths.

    Parameters
    ----------
    Y, free, free_alphas, ridge, order, alphas, target, chunk_voxels
        As for `fit_linear`.
    fit : array of int
        Volumes to fit on.
    helds : sequence of arrays of int
        Held-out blocks.
    history_alphas : sequence of float
        Ridge strengths of the previous volumes.

    Returns
    -------
    array of shape (n_helds, n_history_alphas, n_alphas, n_voxels), float32
        Sum over the block's volumes of the squared error, in raw intensities.
    """
    n_volumes = len(Y)
    free = np.zeros((n_volumes, 0)) if free is None else free
    ridge = np.zeros((n_volumes, 0)) if ridge is None else ridge
    errors = np.empty((len(helds), len(history_alphas), len(alphas), Y.shape[1]), dtype=np.float32)
    for slab in slabs(Y.shape[1], chunk_voxels):
        y = np.asarray(Y[:, slab], dtype=np.float64)
        y -= y[fit].mean(axis=0)
        regression = _Regression(y, free, ridge, fit, order, target, free_alphas)
        seen = [regression.moments(held) for held in helds]
        for g, history_alpha in enumerate(history_alphas):
            for a, alpha in enumerate(alphas):
                solved = regression.coefficients(np.full(1, float(alpha)), history_alpha)
                for h, held in enumerate(seen):
                    errors[h, g, a, slab] = held.squared_error(*solved)
    return errors


def _target(y, rows, target):
    return y[rows] - y[rows - 1] if target == "difference" else y[rows]


@dataclass(frozen=True)
class _Moments:
    """Cross-products of target t, free part F and rotated ridge part P over some rows, voxel by voxel."""

    tt: np.ndarray  # (n_voxels,)
    Ft: np.ndarray  # (n_voxels, n_free)
    FF: np.ndarray  # (n_voxels, n_free, n_free)
    FP: np.ndarray  # (n_voxels, n_free, n_ridge)
    Pt: np.ndarray  # (n_voxels, n_ridge)
    PP: np.ndarray  # (n_ridge, n_ridge)

    def squared_error(self, f, b):
        """Sum over the rows of (t − F f − P b)² for each voxel, without forming a prediction."""
        error = self.tt - 2 * np.einsum("vq,vq->v", b, self.Pt) + np.einsum("vq,vq->v", b @ self.PP, b)
        if f.shape[1]:
            across = np.einsum("vwq,vq->vw", self.FP, b) - self.Ft
            error += np.einsum("vw,vw->v", f, 2 * across + np.einsum("vwu,vu->vw", self.FF, f))
        return np.maximum(error, 0)


class _Regression:
    """One slab on one set of rows, ready to be solved for any strength."""

    def __init__(self, y, free, ridge, rows, order, target, free_alphas=None):
        self.y, self.free, self.ridge, self.order, self.target = y, free, ridge, order, target
        self.n_rows = len(rows)
        self.free_alphas = np.zeros(free.shape[1]) if free_alphas is None else free_alphas
        self.t_mean = _target(y, rows, target).mean(axis=0)
        self.lag_means = [y[rows - lag].mean(axis=0) for lag in range(1, order + 1)]
        self.free_mean, self.ridge_mean = free[rows].mean(axis=0), ridge[rows].mean(axis=0)
        _, s, self.Vt = np.linalg.svd(ridge[rows] - self.ridge_mean, full_matrices=False)
        self.s2 = s**2
        self.fit = self.moments(rows)
        diagonal = np.einsum("vii->vi", self.fit.FF)  # a view: the jitter lands in FF
        diagonal += JITTER * diagonal.max(axis=1, keepdims=True, initial=0) + np.finfo(float).tiny ** 0.5

    def moments(self, rows):
        """Cross-products over ``rows``, with the means of the rows fitted on taken off."""
        t = _target(self.y, rows, self.target) - self.t_mean
        lags = [self.y[rows - lag] - self.lag_means[lag - 1] for lag in range(1, self.order + 1)]
        shared = self.free[rows] - self.free_mean
        P = (self.ridge[rows] - self.ridge_mean) @ self.Vt.T
        n_voxels, order, width = t.shape[1], self.order, self.order + shared.shape[1]
        FF = np.empty((n_voxels, width, width))
        Ft = np.empty((n_voxels, width))
        FP = np.empty((n_voxels, width, P.shape[1]))
        for i in range(order):
            for j in range(i, order):
                FF[:, i, j] = FF[:, j, i] = np.einsum("kv,kv->v", lags[i], lags[j])
            FF[:, i, order:] = FF[:, order:, i] = lags[i].T @ shared
            Ft[:, i] = np.einsum("kv,kv->v", lags[i], t)
            FP[:, i] = lags[i].T @ P
        FF[:, order:, order:] = shared.T @ shared
        Ft[:, order:] = t.T @ shared
        FP[:, order:] = shared.T @ P
        return _Moments(np.einsum("kv,kv->v", t, t), Ft, FF, FP, t.T @ P, P.T @ P)

    def coefficients(self, alpha, history_alpha=0.0):
        """Weights of the free and of the rotated ridge part, for one strength (shape (1,)) or one per voxel."""
        fit = self.fit
        D = np.where(self.s2 > 1e-12 * self.s2.max(initial=0), 1 / (self.s2 + alpha[:, None]), 0.0)
        if not fit.Ft.shape[1]:
            return fit.Ft, D * fit.Pt
        FPD = fit.FP * D[:, None, :]
        left = fit.FF - FPD @ fit.FP.transpose(0, 2, 1)
        lags = np.arange(self.order)
        left[:, lags, lags] += history_alpha / self.n_rows * fit.FF[:, lags, lags]
        shared = self.order + np.arange(len(self.free_alphas))
        left[:, shared, shared] += self.free_alphas
        right = fit.Ft - np.einsum("vwq,vq->vw", FPD, fit.Pt)
        f = np.linalg.solve(left, right[..., None])[..., 0]
        return f, D * (fit.Pt - np.einsum("vwq,vw->vq", fit.FP, f))

    def solve(self, alpha, history_alpha=0.0):
        """Intercept, weights of the lags and weights of the features, as columns per voxel."""
        f, b = self.coefficients(alpha, history_alpha)
        phi, free_weights, ridge_weights = f[:, : self.order].T, f[:, self.order :].T, self.Vt.T @ b.T
        intercept = self.t_mean - self.free_mean @ free_weights - self.ridge_mean @ ridge_weights
        for lag, mean in enumerate(self.lag_means):
            intercept = intercept - phi[lag] * mean
        return intercept, phi, np.vstack([free_weights, ridge_weights])


def _as_model(intercept, phi, weights, centre, alpha, target):
    """Undo the centring, and turn a model of the difference into one of the volume."""
    if target == "difference":
        phi = np.vstack([phi, np.zeros((max(0, 1 - len(phi)), phi.shape[1]))])
        phi[0] += 1
    return LinearModel(intercept + centre - phi.sum(axis=0) * centre, phi, weights, alpha)


@dataclass(frozen=True)
class History:
    """How much of the past a voxel is given.

    Parameters
    ----------
    order : int
        Previous volumes.
    alpha : float
        Their ridge strength, for volumes of variance 1.
    errors : array of shape (max_order, n_alphas)
        Held-out error of each order and strength, relative to the voxels' variance.
    """

    order: int
    alpha: float
    errors: np.ndarray


def choose_history(Y, *, rows, folds, max_order, alphas=HISTORY_ALPHAS, free=None, chunk_voxels=8192):
    """Choose how many previous volumes a voxel's history needs and their strength, by blocked folds inside train.

    One order and strength serve all voxels: those with the smallest error summed over voxels, each
    divided by its variance over ``rows`` so that loud voxels do not decide.

    Returns
    -------
    History
    """
    variance = Y[rows].var(axis=0, dtype=np.float64)
    variance = np.where(variance > 0, variance, np.inf)
    n_held = sum(len(held) for _, held in folds)
    errors = np.zeros((max_order, len(alphas)))
    for order in range(1, max_order + 1):
        for fit, held in folds:
            options = {"free": free, "order": order, "history_alphas": alphas, "chunk_voxels": chunk_voxels}
            errors[order - 1] += fold_errors(Y, fit=fit, helds=(held,), **options)[0, :, 0] @ (1 / variance)
    order, strength = np.unravel_index(np.argmin(errors), errors.shape)
    relative = errors / (n_held * max(1, np.sum(np.isfinite(variance))))
    return History(int(order) + 1, float(alphas[strength]), relative)


def choose_space_alpha(Y, before, history, *, rows, folds, chunk_voxels=8192):
    """Choose the ridge strength of the previous volume's components, one for all voxels, by blocked folds.

    Parameters
    ----------
    before : array of shape (n_volumes, n_components)
        Scores of the volume before each, of variance 1.
    history : History
        The own history they are added to.

    Returns
    -------
    float
    """
    variance = Y[rows].var(axis=0, dtype=np.float64)
    weight = np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), 0)
    options = {"ridge": before, "order": history.order, "history_alphas": (history.alpha,), "alphas": SPACE_ALPHAS}
    errors = [fold_errors(Y, fit=fit, helds=(held,), chunk_voxels=chunk_voxels, **options)[0, 0] for fit, held in folds]
    return SPACE_ALPHAS[int(np.argmin(sum(errors) @ weight))]
