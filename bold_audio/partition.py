r"""What the sound, the film's blocks and a voxel's own history predict alone, and what they predict in common.

With R(A) the out-of-fold skill of a model that is given the bands A (own history, blocks, sound), the part that exactly
the bands of A share, and no other band has, is by inclusion and exclusion

    part(A) = Σ_{B ⊆ A} (−1)^{|B| + 1} R(B ∪ rest),        rest = the bands not in A,  R(∅) = 0 ;

for one band it is R(all) − R(all but this one), its unique part, and all parts add up to R(all). Skills out of fold
are not variances: a part is negative where a band makes the others worse (it was fitted and does not hold), or where
bands together predict more than the sum of what each does (suppression). Such parts are shown as they come.
"""

from itertools import combinations

import numpy as np
import pandas as pd

from bold_audio import nested

BANDS = ("history", "blocks", "sound")


def partition_region(folds, sound, blocks=None, *, alphas, max_order):
    """Fit all combinations of the bands to every outer fold of a region and part their skill.

    Each band has a strength of its own: the history's order and strength serve all combinations of a fold, the blocks
    are free, the sound's strength is chosen for every voxel and may be infinite. Every voxel may have the sound.

    Parameters
    ----------
    folds : list of nested.RegionFold
    sound, blocks : designs with ``at(delay)``
        ``blocks`` None where the film has none: two bands then.
    alphas : sequence of float
    max_order : int

    Returns
    -------
    DataFrame
        ``kind`` (model, unique or shared), ``bands`` (joined by +), ``skill`` over the mean of the volumes fitted on,
        ``fold_spread`` (its standard error over folds), ``n_volumes``, ``n_voxels``, ``n_region``,
        ``n_folds``.
    """
    names = [name for name in BANDS if name != "blocks" or blocks is not None]
    subsets = [frozenset(one) for size in range(1, len(names) + 1) for one in combinations(names, size)]
    per_fold = [_errors(fold, subsets, sound, blocks, alphas, max_order) for fold in folds]
    null, errors = np.array([one[0] for one in per_fold]), {s: np.array([e[1][s] for e in per_fold]) for s in subsets}
    # Skill of all volumes, then of each fold alone: parts are linear in it, so their spread is that of their parts.
    skills = {s: np.r_[1 - e.sum() / null.sum(), 1 - e / null] for s, e in errors.items()}
    lines = [("model", subset, skills[subset]) for subset in subsets]
    parts = partition(skills, names)
    lines += [("unique" if len(subset) == 1 else "shared", subset, parts[subset]) for subset in subsets]
    return pd.DataFrame(
        {"kind": kind, "bands": "+".join(name for name in names if name in subset), "skill": values[0]}
        | {"fold_spread": np.std(values[1:], ddof=1) / np.sqrt(len(folds))}
        | nested.counts(folds)
        for kind, subset, values in lines
    )


def partition(skills, names):
    """Unique and shared parts of skills, by inclusion and exclusion.

    Parameters
    ----------
    skills : dict of frozenset of str to float or array
        Of every combination of bands but the empty one, whose skill is 0.
    names : sequence of str
        All bands.

    Returns
    -------
    dict of frozenset of str to float or array
        What exactly these bands share; of one band, what it alone has.

    Examples
    --------
    >>> f = frozenset
    >>> parts = partition({f("a"): 0.3, f("b"): 0.5, f("ab"): 0.6}, "ab")
    >>> {"".join(sorted(k)): round(v, 3) for k, v in parts.items()}
    {'a': 0.1, 'b': 0.3, 'ab': 0.2}
    """
    everything = frozenset(names)
    parts = {}
    for size in range(1, len(names) + 1):
        for one in map(frozenset, combinations(names, size)):
            rest = everything - one
            inner = [frozenset(b) for n in range(size + 1) for b in combinations(sorted(one), n)]
            parts[one] = sum((-1) ** (len(b) + 1) * skills[b | rest] for b in inner if b | rest)
    return parts


def _errors(fold, subsets, sound, blocks, alphas, max_order):
    """Held-out squared error of the mean, and of every combination of bands."""
    past = nested.choose_past(fold, max_order)
    ridge = nested.scaled(sound, fold.delay, fold.fit)
    free = None if blocks is None else nested.scaled(blocks, fold.delay, fold.fit)
    null = nested.squared_error(fold, nested.predict_held(fold))
    errors = {}
    for subset in subsets:
        given = {"free": free if "blocks" in subset else None, "past": past if "history" in subset else None}
        given |= {"ridge": ridge, "alphas": alphas} if "sound" in subset else {}
        errors[subset] = nested.squared_error(fold, nested.predict_held(fold, **given))
    return null, errors
