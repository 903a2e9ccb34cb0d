"""How much of each part a linear model is given, chosen by blocked folds inside train.

**The sound must be able to vanish.** The smallest of twenty cross-validated errors is small by luck
too: chosen so, sound that carries nothing makes a model worse than the past alone. Strengths are
therefore chosen by empirical Bayes over all voxels (`choose_strengths`).
"""

from dataclasses import dataclass

import numpy as np

from bold_audio import evidence
from bold_audio.ridge import fold_errors
from bold_audio.scores import column_slabs
from bold_audio.space import principal_space

SPACE_ALPHAS = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e6)  # of the previous volume's components
HISTORY_ALPHAS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)  # strengths tried for the previous volumes


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

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
    rows : array of int
        Volumes that may be looked at.
    folds : list of (fit, held) arrays of int
        Blocked folds inside ``rows``.
    max_order : int
        Most previous volumes tried.
    alphas : sequence of float
        Ridge strengths tried.
    free : array of shape (n_volumes, p), optional
        Features that are fitted beside the history without a penalty.
    chunk_voxels : int
        Voxels worked on at once: bounds memory.

    Returns
    -------
    History
    """
    variance = _variance(Y, rows)
    variance = np.where(variance > 0, variance, np.inf)
    n_held = sum(len(held) for _, held in folds)
    errors = np.zeros((max_order, len(alphas)))
    for order in range(1, max_order + 1):
        for fit, held in folds:
            options = {"free": free, "order": order, "history_alphas": alphas, "chunk_voxels": chunk_voxels}
            errors[order - 1] += fold_errors(Y, fit=fit, held=held, **options)[:, 0] @ (1 / variance)
    order, strength = np.unravel_index(np.argmin(errors), errors.shape)
    relative = errors / (n_held * max(1, np.sum(np.isfinite(variance))))
    return History(int(order) + 1, float(alphas[strength]), relative)


def _variance(Y, rows):
    """Of every voxel over ``rows``, some voxels at a time: the float64 copy of all would be twice the run."""
    return np.concatenate([Y[:, slab][rows].var(axis=0, dtype=np.float64) for slab in column_slabs(Y.shape[1])])


def choose_space_alpha(Y, n_components, history, *, rows, folds, chunk_voxels=8192):
    """Choose the ridge strength of the previous volume's components, one for all voxels, by blocked folds.

    The components are those of the volumes that a fold fits on, so that none of them has seen what is held out.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
    n_components : int
    history : History
        The own history they are added to.
    rows, folds, chunk_voxels
        As for `choose_history`.

    Returns
    -------
    float
    """
    variance = _variance(Y, rows)
    weight = np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), 0)
    options = {"order": history.order, "history_alphas": (history.alpha,), "alphas": SPACE_ALPHAS}
    errors = 0
    for fit, held in folds:
        space = principal_space(Y, rows=fit, n_components=n_components, chunk_voxels=chunk_voxels)
        before = space.scores_before(Y)
        errors += fold_errors(Y, fit=fit, held=held, ridge=before, chunk_voxels=chunk_voxels, **options)[0] @ weight
    return SPACE_ALPHAS[int(np.argmin(errors))]
