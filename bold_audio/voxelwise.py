r"""Every voxel's own held-out error at every delay and ridge strength, in slabs, without storing a prediction.

With the fitted features rotated, P = X̃_t V (X̃_t = U S Vᵀ), A = (X_v − x̄_t) V and d_i = 1 / (s_i² + α), a voxel
enters its held-out error through c = Pᵀ y_t and e = Aᵀ(y_v − ȳ_t) only:

    ‖y_v − ŷ_v‖² = ‖y_v − ȳ_t‖² − 2 Σ_i d_i c_i e_i + Σ_ij d_i d_j H_ij c_i c_j,        H = AᵀA.

c and e of all delays are two matrix products per fold and slab, and the error for all strengths is a third: of the
table [−2 d_i | d_i d_j H_ij] (n_alphas × p (p + 3) / 2) with [c_i e_i | c_i c_j]. Slabs are float32: errors agree with
float64 to about 1e-5 of the error of the mean.
"""

from dataclasses import dataclass

import numpy as np

from bold_audio.gram import ridge_strengths


@dataclass(frozen=True)
class _Fold:
    """One fold, all designs: what a slab is multiplied with, ready in float32."""

    fit: np.ndarray
    held: np.ndarray
    fitted: np.ndarray  # (n_designs · p, n_fit), rotated features
    heard: np.ndarray  # (n_designs · p, n_held)
    table: np.ndarray  # (n_designs, n_alphas, p (p + 3) / 2)


@dataclass(frozen=True)
class VoxelChoice:
    """Each voxel's best delay and strength by held-out error.

    Of these a sweep keeps the skill; the delay in its maps is the median of the voxel's posterior (`evidence`).

    Parameters
    ----------
    design : array of int, shape (n_voxels,)
        Index of the delay.
    alpha : array of shape (n_voxels,)
        Ridge strength; infinite where no delay beats the mean.
    skill : array of shape (n_voxels,)
        Share of the mean's squared error that it removes; 0 where no delay beats the mean. It is the best of all
        that were tried, so it flatters.
    """

    design: np.ndarray
    alpha: np.ndarray
    skill: np.ndarray


def best_per_voxel(slabs, X, folds, alphas):
    """Choose every voxel's own delay and ridge strength by blocked folds.

    Parameters
    ----------
    slabs : gram.Slabs
        The target of all voxels; the slabs' width bounds memory.
    X : array of shape (n_designs, n_rows, p)
    folds : list of (fit, held) arrays of int
        Positions in the rows.
    alphas : sequence of float

    Returns
    -------
    VoxelChoice
    """
    alphas = np.asarray(alphas, dtype=float)
    prepared = [_prepare_fold(np.asarray(X, dtype=np.float64), *fold, alphas) for fold in folds]
    made = slabs.map(lambda _, y: _best_of_slab(y, prepared))
    design, strength, skill = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return VoxelChoice(design, np.where(skill > 0, alphas[strength], np.inf), np.maximum(skill, 0))


def _best_of_slab(y, prepared):
    n_designs, n_alphas, _ = prepared[0].table.shape
    total, null = np.zeros((n_designs, n_alphas, y.shape[1]), np.float32), np.zeros(y.shape[1], np.float32)
    for fold in prepared:
        null += np.square(y[fold.held] - y[fold.fit].mean(axis=0)).sum(axis=0)
        for design, change in enumerate(error_changes(y, fold)):
            total[design] += change
    flat = total.reshape(-1, y.shape[1])
    best = flat.argmin(axis=0)
    skill = -np.take_along_axis(flat, best[None], axis=0)[0] / np.where(null > 0, null, np.inf)
    return best // n_alphas, best % n_alphas, skill


def _prepare_fold(X, fit, held, alphas):
    upper = np.triu_indices(X.shape[2])
    twice = np.where(upper[0] == upper[1], 1.0, 2.0)
    mean = X[:, fit].mean(axis=1, keepdims=True)
    fitted = X[:, fit] - mean
    V, D = ridge_strengths(fitted.transpose(0, 2, 1) @ fitted, alphas)
    A = (X[:, held] - mean) @ V
    H = A.transpose(0, 2, 1) @ A
    square = (D[:, :, upper[0]] * D[:, :, upper[1]]) * (twice * H[:, upper[0], upper[1]])[:, None, :]
    table = np.concatenate([-2 * D, square], axis=2).astype(np.float32)
    return _Fold(fit, held, stacked(fitted @ V), stacked(A), table)


def stacked(A):
    """(n_designs, n_rows, p) → (n_designs · p, n_rows), float32."""
    return np.ascontiguousarray(A.transpose(0, 2, 1).reshape(-1, A.shape[1]), dtype=np.float32)


def error_changes(y, fold):
    """Held-out squared error of a slab's voxels minus that of the mean, design after design.

    Yields
    ------
    array of shape (n_alphas, n_voxels)
    """
    n_designs, _, width = fold.table.shape
    p = len(fold.fitted) // n_designs
    fitted = y[fold.fit]
    c = fold.fitted @ fitted  # the rows of `fitted` features sum to 0, so y's mean needs no taking off
    e = fold.heard @ (y[fold.held] - fitted.mean(axis=0))
    products = np.empty((width, y.shape[1]), np.float32)
    for d in range(n_designs):
        cd = c[d * p : (d + 1) * p]
        np.multiply(cd, e[d * p : (d + 1) * p], out=products[:p])
        row = p
        for i in range(p):
            np.multiply(cd[i], cd[i:], out=products[row : row + p - i])
            row += p - i
        yield fold.table[d] @ products
