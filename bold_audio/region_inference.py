r"""How much the sound adds to a region's past, out of fold and with all choices, and whether chance does as much.

For every outer block of the run, whatever is chosen is chosen on the other volumes: the filter that whitens (the past),
the delay, by the evidence summed over the region (`evidence.mixture`), and what every voxel keeps of the sound, by
empirical Bayes over the region's voxels. The held-out block is predicted once, and

    gain = 1 − Σ ‖y − past − sound‖² / Σ ‖y − past‖²

over all blocks and voxels; NaN for a region that never varies. The past is one filter for all voxels of the brain,
whatever regions are asked about, and every voxel may have the sound; `out_of_fold` gives each voxel a history of its
own. The past may have the film's blocks in it, at delays
every two seconds, so that what a boxcar of any delay explains is not called the sound.

**The same for every surrogate**: circular shifts of the sound a whole window of delays apart (neighbouring shifts score
nearly alike: hundreds of them are worth a few dozen, and a p value that counts them all is too small), and versions of
it with other phases. Each surrogate chooses its delay in a window of its own. Later delays are the designs of the first
repetition time rolled by whole volumes, for the sound in its place as for its surrogates, so the first few volumes of a
run get its end: all of them lose a little of the gain.
"""

from dataclasses import dataclass

import numpy as np

from bold_audio import evidence, scores, significance
from bold_audio.gram import on_all_cores
from bold_audio.voxel_inference import played_versions

N_RANDOMISED = 199
MOST_VOXELS = 200  # of a larger region as many are taken, evenly spaced
ALPHAS = (8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0)  # for features of variance 1
PSEUDO_VOXELS = 10.0  # half of them follow nothing: a region of one voxel must not be sure of itself


@dataclass(frozen=True)
class Fold:
    """One outer block.

    Parameters
    ----------
    fit, held : arrays of int
        Positions in the rows of the whole run.
    y : dict of str to array of shape (n_rows, n_voxels)
        Each region's volumes, filtered as the fit's volumes ask for.
    X : array of shape (n_steps, n_rows, p)
        The sound filtered alike and scaled on the fit.
    free : array of shape (n_rows, q)
        What the past has besides, filtered alike: the film's blocks; q may be 0.
    """

    fit: np.ndarray
    held: np.ndarray
    y: dict
    X: np.ndarray
    free: np.ndarray


@dataclass(frozen=True)
class RegionInference:
    """What a region's voxels and their surrogates say.

    Parameters
    ----------
    gain : float
        Share of the past's squared error that the sound removes, out of fold.
    partial_r : float
        Correlation of what the past left over with what the sound adds, out of fold, in the median voxel.
    p : float
        (1 + #≥) / (1 + n) of the gain among its surrogates.
    n_surrogates : int
    delays : array of shape (n_folds,)
        The delay that each outer fold chose, s.
    surrogates : array of shape (n_surrogates,)
        Their gains.
    """

    gain: float
    partial_r: float
    p: float
    n_surrogates: int
    delays: np.ndarray
    surrogates: np.ndarray


def apart(shifts, window):
    """Shifts at least ``window`` volumes apart, the most that fit from the first on.

    Examples
    --------
    >>> apart(np.array([20, 21, 25, 26, 40]), 5)
    array([20, 25, 40])
    """
    kept = []
    for shift in shifts:
        if not kept or shift - kept[-1] >= window:
            kept.append(int(shift))
    return np.array(kept, dtype=int)


def infer_regions(folds, grid, *, shifts, n_randomised=N_RANDOMISED, alphas=ALPHAS, seed=0):
    """Gain of the sound over the past in every region, held against surrogates that make the same choices.

    Parameters
    ----------
    folds : list of Fold
        All with the same regions.
    grid : voxel_inference.DelayGrid
        Delays to choose from.
    shifts : array of int
        From `significance.admissible_shifts`; those a window apart are used.
    n_randomised : int
        Versions of the sound with other phases.
    alphas : sequence of float
        Finite ridge strengths.
    seed : int
        Of the phases.

    Returns
    -------
    dict of str to RegionInference

    Raises
    ------
    ValueError
        If there is nothing to compare with.
    """
    shifts = apart(shifts, grid.alike)
    if len(shifts) + n_randomised == 0:
        raise ValueError("no admissible shift and no randomised version: there is nothing to compare with.")
    tasks = [(k, shift, None) for k in range(len(folds)) for shift in (0, *shifts)]
    tasks += [(k, 0, version) for k in range(len(folds)) for version in range(n_randomised)]
    # One seed per version, the same in every fold: a surrogate is one sound, scored over the whole run.
    seeds = np.random.SeedSequence(seed).spawn(n_randomised)
    past = [_past(fold) for fold in folds]
    # What is played is the sound within the blocks. Played whole, a surrogate would keep, out of phase, the block part
    # that the sound in its place has lost, and be louder than it.
    heard = [
        fold.X - columns @ (pseudo @ fold.X[:, fold.fit])
        for fold, (columns, pseudo, _) in zip(folds, past, strict=True)
    ]

    def score(task):
        k, shift, version = task
        X = heard[k] if version is None else played_versions(heard[k], 1, np.random.default_rng(seeds[version]))[1]
        ahead = shift + np.arange(grid.n_volumes)
        at = (np.arange(X.shape[1]) - ahead[:, None]) % X.shape[1]
        designs = X[:, at].transpose(1, 0, 2, 3).reshape(-1, *X.shape[1:])  # (delays, n_rows, p), by delay
        return _score_version(folds[k], past[k], designs, alphas, keep=version is None and shift == 0)

    made = on_all_cores(score, tasks)
    n_each = 1 + len(shifts)
    by_shift = [made[k * n_each : (k + 1) * n_each] for k in range(len(folds))]
    rest = made[len(folds) * n_each :]
    by_version = [rest[k * n_randomised : (k + 1) * n_randomised] for k in range(len(folds))]
    return {name: _summary(name, by_shift, by_version, grid) for name in folds[0].y}


def _past(fold):
    """Per region: volumes without the mean and the free part, both fitted on the fit; and its projector."""
    columns = np.column_stack([np.ones(len(fold.free)), fold.free])
    pseudo = np.linalg.pinv(columns[fold.fit])
    return columns, pseudo, {name: y - columns @ (pseudo @ y[fold.fit]) for name, y in fold.y.items()}


@dataclass(frozen=True)
class _Scored:
    error: float
    null: float
    delay: int
    r: tuple | None  # sums for the correlation over all folds: Σ le, Σ ll, Σ ee per voxel


def _score_version(fold, past, designs, alphas, *, keep):
    """Choose delay and shares on the fit, predict the held-out block: dict of region → `_Scored`."""
    columns, pseudo, left = past
    designs = designs - columns @ (pseudo @ designs[:, fold.fit])
    basis = evidence.make_basis(designs[:, fold.fit], alphas)
    scored = {}
    for name, y in left.items():
        fitted, held = y[fold.fit], y[fold.held]
        log_b = evidence.log_evidence(fitted.astype(np.float32), basis)
        best = int(evidence.mixture(log_b).sum(axis=1).argmax())
        added = designs[best, fold.held] @ _weights(fitted, designs[best, fold.fit], alphas)
        error, null = float(np.sum((held - added) ** 2)), float(np.sum(held**2))
        sums = _centred_sums(held, added) if keep else None
        scored[name] = _Scored(error, null, best, sums)
    return scored


def _centred_sums(held, added):
    """Σ left·added, Σ left², Σ added² of each voxel, without the block's means: they go the wrong way by chance."""
    left, added = held - held.mean(axis=0), added - added.mean(axis=0)
    return np.sum(left * added, axis=0), np.sum(left**2, axis=0), np.sum(added**2, axis=0)


def _weights(y, X, alphas):
    """Ridge weights of every voxel, averaged over the strengths and nothing as the region's voxels make likely."""
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    keep = s > 1e-6 * s[0] if len(s) and s[0] > 0 else np.zeros(len(s), bool)
    U, s, Vt = U[:, keep], s[keep], Vt[keep]
    ratio = s[None, :] ** 2 / np.asarray(alphas, dtype=float)[:, None]
    shrink = ratio / (1 + ratio)  # (n_alphas, p)
    c = U.T @ y
    norm = np.sum(y**2, axis=0)
    explained = np.minimum((shrink @ c**2) / np.where(norm > 0, norm, np.inf), 1 - 1e-6)
    log_b = -(len(y) - 1) / 2 * np.log1p(-explained) - 0.5 * np.log1p(ratio).sum(axis=1)[:, None]
    log_b = np.vstack([np.zeros(y.shape[1]), log_b])
    share = evidence.learn_prior(log_b, pseudo_voxels=PSEUDO_VOXELS)[1][1:]
    return Vt.T @ ((shrink.T @ share) / s[:, None] * c)


def _summary(name, by_shift, by_version, grid):
    def gain(parts):
        null = sum(one[name].null for one in parts)
        return 1 - sum(one[name].error for one in parts) / null if null > 0 else np.nan

    of_shift = [gain(parts) for parts in zip(*by_shift, strict=True)]
    surrogates = np.array([*of_shift[1:], *(gain(parts) for parts in zip(*by_version, strict=True))])
    here = [fold[0][name] for fold in by_shift]
    across, left, added = (sum(one.r[k] for one in here) for k in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where(left * added > 0, across / np.sqrt(left * added), np.nan)
    return RegionInference(
        gain=float(of_shift[0]),
        partial_r=scores.median_of(r),
        p=float(significance.p_value(of_shift[0], surrogates)),
        n_surrogates=len(surrogates),
        delays=grid.delays[[one.delay for one in here]],
        surrogates=surrogates,
    )
