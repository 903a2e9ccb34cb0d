"""Choices of an outer fold, made inside the volumes that it is fitted on: the delay, and where the sound may add.

Only the evidence is used (`evidence`), no surrogates: inside every outer fold they would cost more than all the rest.
A voxel may have the sound where the posterior that it follows it is above one half, with a share
`evidence.SHARE` of such voxels beforehand; and none may where the pooled evidence of the voxels that choose the
delay, averaged over the delays, is not above that of no sound at all. This is more lenient than the surrogates of the
sweep in slow noise that goes along with the sound by chance; what it lets in is still scored on volumes that nobody
saw.
"""

from dataclasses import dataclass

import numpy as np

from bold_audio import choices, encoding, evidence, gram, pairing, sweep
from bold_audio.files import ParameterError
from bold_audio.region_inference import MOST_VOXELS
from bold_audio.scores import evenly_spaced

FOLLOWS = 0.5  # posterior probability above which a voxel may have the sound


@dataclass(frozen=True)
class Supported:
    """What the evidence of some volumes says.

    Parameters
    ----------
    delay : float
        Best supported delay, in seconds.
    evidence : float
        Log evidence at that delay, pooled over the voxels that choose.
    follows : array of bool, shape (n_voxels,)
        Voxels in which the sound may add to the past.
    responsive : array of bool, shape (n_voxels,)
        The few per cent of voxels with the highest evidence at any delay; none where there are too few voxels.
    """

    delay: float
    evidence: float
    follows: np.ndarray
    responsive: np.ndarray


@dataclass(frozen=True)
class FoldChoice(Supported):
    """`Supported` of an outer fold, beside the fold itself.

    Parameters
    ----------
    fit, held : arrays of int
        Volumes fitted on, and the held-out block.
    inner : list of (fit, held) arrays of int
        Blocked folds inside ``fit``.
    """

    fit: np.ndarray
    held: np.ndarray
    inner: list


@dataclass(frozen=True)
class RegionFold:
    """An outer fold of some voxels, for studies that fit many models to a region.

    Parameters
    ----------
    fit, held, inner
        As for `FoldChoice`.
    delay : float
        The delay that the fold chose, in seconds.
    Y, smooth : arrays of shape (n_volumes, n_voxels)
        The voxels' volumes, and the same averaged with their neighbours, which the evidence is read from.
    follows : array of bool, shape (n_voxels,)
        Those of them that may have the sound.
    at : array of int, shape (n_voxels,)
        Which voxels of the run they are.
    n_region : int
        How many voxels the region has; at most `MOST_VOXELS` evenly spaced ones of them are here.
    """

    fit: np.ndarray
    held: np.ndarray
    inner: list
    delay: float
    Y: np.ndarray
    smooth: np.ndarray
    follows: np.ndarray
    at: np.ndarray
    n_region: int


def choose_delay(Y, sound, *, rows, order, alphas, chooses=None, chunk_voxels=8192):
    """Choose the delay that some volumes support best, and the voxels that follow the sound there.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Run; only ``rows`` and the ``order`` volumes before each are used.
    sound : sweep.DelayedSound
    rows : array of int
        Increasing volumes.
    order : int
        Previous volumes of the filter that whitens, the same for all voxels.
    alphas : sequence of float
        Ridge strengths.
    chooses : array of bool, shape (n_voxels,), optional
        Voxels whose pooled evidence chooses; all without it.
    chunk_voxels : int
        Voxels per slab: bounds memory.

    Returns
    -------
    Supported
    """
    chooses = np.ones(Y.shape[1], bool) if chooses is None else chooses
    run = {"volumes": np.arange(rows[0] - order, rows[-1] + 1), "train": rows}
    white = gram.shared_filter(Y, **run, order=order, chunk_voxels=chunk_voxels)
    basis = evidence.make_basis(np.stack([sweep.features_of(A, white, rows) for A in sound.at]), alphas)
    slabs = gram.Slabs(Y, **run, taps=white, chunk_voxels=min(chunk_voxels, sweep.SLAB))
    log_b = np.concatenate(slabs.map(lambda _, y: evidence.log_evidence(y, basis)), axis=1)
    pooled = evidence.mixture(log_b[:, chooses].astype(np.float64)).sum(axis=1)
    best = int(pooled.argmax())
    any_sound = evidence.log_mean_exp(pooled.copy(), axis=0) > 0
    follows = (evidence.follows(log_b[best]) > FOLLOWS) & any_sound
    enough = Y.shape[1] > 1 / sweep.RESPONSIVE_SHARE
    responsive = sweep.best_share(log_b.max(axis=0)) if enough else np.zeros(Y.shape[1], bool)
    return Supported(float(sound.delays[best]), float(pooled[best]), follows, responsive)


def choose_folds(subject, smooth, sound):
    """Make the choices of every outer fold of a subject.

    Parameters
    ----------
    subject : prepare.Subject
    smooth : array of shape (n_volumes, n_voxels)
        The run as the delay sweep sees it, through the last volume used.
    sound : sweep.DelayedSound

    Returns
    -------
    list of FoldChoice

    Raises
    ------
    ParameterError
        If ``delay_region`` is not a region of this run.
    """
    params, regions = subject.params, subject.run.regions
    sweep.check_region(params.delay_region, regions)
    settings = {"order": params.history_order, "alphas": params.alphas, "chunk_voxels": params.chunk_voxels}
    chosen = []
    for fit, held in subject.outer_folds():
        found = choose_delay(smooth, sound, rows=fit, chooses=regions.get(params.delay_region), **settings)
        chosen.append(FoldChoice(**vars(found), fit=fit, held=held, inner=subject.inner_folds(fit)))
    return chosen


def region_masks(subject, chosen, region):
    """A region's voxels in every outer fold: array of bool, shape (n_folds, n_voxels).

    ``responsive`` are other voxels in each fold, found inside the volumes fitted on; other regions are the same in all.

    Raises
    ------
    ParameterError
        If there is no such region.
    """
    if region == "responsive":
        masks = np.stack([one.responsive for one in chosen])
        if masks.any():
            return masks
    if region not in subject.run.regions:
        known = ", ".join(subject.run.regions)
        raise ParameterError(f"region must be one of {known} (or responsive, of enough voxels), got {region!r}")
    return np.repeat(subject.run.regions[region][None], len(chosen), axis=0)


def region_folds(subject, chosen, region, smooth, *, max_voxels=MOST_VOXELS):
    """The outer folds of a region's voxels.

    Parameters
    ----------
    subject : prepare.Subject
    chosen : list of FoldChoice
        From `choose_folds`.
    region : str
        As for `region_masks`, which raises where there is none.
    smooth : array of shape (n_volumes, n_voxels)
        The volumes averaged with their neighbours.
    max_voxels : int
        Of more voxels so many evenly spaced ones are taken.

    Returns
    -------
    list of RegionFold
    """
    folds = []
    for one, mask in zip(chosen, region_masks(subject, chosen, region), strict=True):
        at = evenly_spaced(np.flatnonzero(mask), max_voxels)
        y, s = (np.ascontiguousarray(volumes[:, at]) for volumes in (subject.Y, smooth))
        folds.append(RegionFold(one.fit, one.held, one.inner, one.delay, y, s, one.follows[at], at, int(mask.sum())))
    return folds


def choose_past(fold, max_order):
    """Order and strength of the history that a fold's own volumes choose, as `encoding.fit_linear` takes them: dict."""
    found = choices.choose_history(fold.Y, rows=fold.fit, folds=fold.inner, max_order=max_order)
    return {"order": found.order, "history_alpha": found.alpha}


def predict_held(fold, *, free=None, ridge=None, past=None, alphas=(np.inf,), follows=None):
    """Fit a linear model to a fold's own volumes and predict its held-out block one step ahead.

    Parameters
    ----------
    fold : RegionFold
    free, ridge, alphas, follows
        As for `encoding.fit_linear`; strengths are chosen by the fold's inner folds.
    past : dict, optional
        From `choose_past`; no previous volumes without it.

    Returns
    -------
    array of shape (n_held, n_voxels)
    """
    options = dict(free=free, ridge=ridge, alphas=alphas, follows=follows) | (past or {})
    model = encoding.fit_linear(fold.Y, rows=fold.fit, folds=fold.inner, **options)
    X = [part[fold.held] for part in (free, ridge) if part is not None]
    X = np.hstack(X) if X else np.zeros((len(fold.held), 0))
    return encoding.predict(model.phi, encoding.drive_of(model, X), fold.Y, fold.held)


def counts(folds):
    """What a row of a region's table is about: ``n_volumes``, ``n_voxels`` (used), ``n_region`` (all), ``n_folds``."""
    sizes = {"n_voxels": max(fold.Y.shape[1] for fold in folds), "n_region": max(fold.n_region for fold in folds)}
    return {"n_volumes": sum(len(fold.held) for fold in folds)} | sizes | {"n_folds": len(folds)}


def squared_error(fold, predicted):
    """Squared error of a fold's held-out block, summed over volumes and voxels."""
    return float(np.sum((fold.Y[fold.held].astype(np.float64) - predicted) ** 2))


def scaled(design, delay, rows):
    """Features of a design at ``delay`` s, scaled on ``rows`` alone: array of shape (n_volumes, n_features)."""
    return pairing.scale_on(design.at(delay), rows)[0]
