r"""Banded ridge regression of every voxel on its own previous volumes and on shared features.

The two bands have strengths of their own. F holds the voxel's own lags, and shared features whose strengths are known
(0: the blocks, which are free). Γ is diagonal: γ times the lag's own variance for a lag, so that γ is meant for volumes
of variance 1, and the known strength for a shared feature. The ridge part Z, the sound, has one strength α per voxel.
With Z = U S Vᵀ (train mean taken off), P = Z V and D = 1 / (S² + α), the two separate:

    (FᵀF + Γ − FᵀP D PᵀF) φ = Fᵀy − FᵀP D Pᵀy,        b = V D (Pᵀy − PᵀF φ)

so a voxel costs one small solve, batched over voxels, and α → ∞ gives the model without
sound exactly.
"""

from dataclasses import dataclass

import numpy as np

MOST_NUMBERS = 2**23  # in a slab: a regression takes ten times their 8 bytes
JITTER = 1e-10  # relative, on the diagonal: keeps constant voxels solvable


def slabs(n_volumes, n_voxels, chunk_voxels):
    """Consecutive slices of at most ``chunk_voxels`` voxels, and of fewer in a run of very many volumes."""
    chunk_voxels = max(1, min(chunk_voxels, MOST_NUMBERS // n_volumes))
    return [slice(start, min(start + chunk_voxels, n_voxels)) for start in range(0, n_voxels, chunk_voxels)]


def fold_errors(
    Y,
    *,
    fit,
    held,
    free=None,
    free_alphas=None,
    ridge=None,
    order=0,
    history_alphas=(0.0,),
    alphas=(np.inf,),
    target="volume",
    chunk_voxels=8192,
):
    """Squared error of each voxel on a held-out block, for every pair of ridge strengths.

    Parameters
    ----------
    Y, free, free_alphas, ridge, order, alphas, target, chunk_voxels
        As for `encoding.fit_linear`.
    fit : array of int
        Volumes to fit on.
    held : array of int
        Held-out block.
    history_alphas : sequence of float
        Ridge strengths of the previous volumes.

    Returns
    -------
    array of shape (n_history_alphas, n_alphas, n_voxels), float32
        Sum over the block's volumes of the squared error, in raw intensities.
    """
    n_volumes = len(Y)
    free = np.zeros((n_volumes, 0)) if free is None else free
    ridge = np.zeros((n_volumes, 0)) if ridge is None else ridge
    errors = np.empty((len(history_alphas), len(alphas), Y.shape[1]), dtype=np.float32)
    for slab in slabs(*Y.shape, chunk_voxels):
        y = np.asarray(Y[:, slab], dtype=np.float64)
        y -= y[fit].mean(axis=0)
        regression = Regression(y, free, ridge, fit, order, target, free_alphas)
        seen = regression.moments(held)
        for g, history_alpha in enumerate(history_alphas):
            for a, alpha in enumerate(alphas):
                solved = regression.coefficients(np.full(1, float(alpha)), history_alpha)
                errors[g, a, slab] = seen.squared_error(*solved)
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


class Regression:
    """One slab on one set of rows, ready to be solved for any strength.

    Parameters
    ----------
    y : array of shape (n_volumes, n_voxels)
        Float64, a level near the voxels' mean taken off: products of raw intensities would cancel.
    free, ridge : arrays of shape (n_volumes, n_features)
        Shared features with known strengths, and with one of each voxel's own.
    rows : array of int
        Volumes to fit on; ``order`` volumes lie before each.
    order : int
        Number of the voxel's own previous volumes.
    target : {"volume", "difference"}
    free_alphas : array of shape (n_free,), optional
        Known strengths; 0 without it.
    """

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
        """Weights of the lags and free features, and of the rotated ridge part.

        Parameters
        ----------
        alpha : array of shape (1,) or (n_voxels,)
            Ridge strength, one for all voxels or one for each.
        history_alpha : float
            Ridge strength γ of the lags.

        Returns
        -------
        f : array of shape (n_voxels, order + n_free)
        b : array of shape (n_voxels, n_rotated)
        """
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
        """Intercept, weights of the lags and weights of the features, one column per voxel.

        Parameters
        ----------
        alpha, history_alpha
            As for `coefficients`.

        Returns
        -------
        intercept : array of shape (n_voxels,)
        phi : array of shape (order, n_voxels)
        weights : array of shape (n_free + n_ridge, n_voxels)
        """
        f, b = self.coefficients(alpha, history_alpha)
        phi, free_weights, ridge_weights = f[:, : self.order].T, f[:, self.order :].T, self.Vt.T @ b.T
        intercept = self.t_mean - self.free_mean @ free_weights - self.ridge_mean @ ridge_weights
        for lag, mean in enumerate(self.lag_means):
            intercept = intercept - phi[lag] * mean
        return intercept, phi, np.vstack([free_weights, ridge_weights])
