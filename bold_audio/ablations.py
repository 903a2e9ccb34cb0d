"""Feature sets compared in a region: out-of-fold skill alone, and what each adds to the voxels' own history.

Every set has the same volumes and the same voxels, and in every outer fold a delay, voxels that may have it (`nested`)
and ridge strengths of its own, chosen inside the volumes fitted on. So each does as well as it can; a set that needs
more choices has more ways to go wrong on volumes it never saw.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from bold_audio import nested, out_of_fold, scores, sweep
from bold_audio.feature_sets import covered
from bold_audio.significance import clear_of_0

COLUMNS = (
    "features", "n_features", "delay", "skill", "fold_spread", "ratio", "r_median", "gain", "gain_spread", "n_follow",
    "n_volumes", "n_voxels", "n_region", "n_folds", "note",
)  # fmt: skip
ENOUGH = 0.8  # share of the volumes that a set must cover to be compared at all


def compare_sets(folds, sets, *, alphas, max_order):
    """Score feature sets on the same held-out volumes of a region.

    Parameters
    ----------
    folds : list of nested.RegionFold
    sets : list of feature_sets.FeatureSet
    alphas : sequence of float
    max_order : int

    Returns
    -------
    DataFrame
        One row per set: ``features`` (name), ``n_features``, ``delay`` (median over folds, s), ``skill`` over the mean
        of the volumes fitted on and its ``fold_spread``, ``ratio`` of the skill to the largest one (where that is
        `significance.clear_of_0`), ``r_median``, ``gain`` over own history and its ``gain_spread``, ``n_follow``
        (voxels that may have it, median over folds), ``n_volumes``, ``n_voxels``, ``n_region``, ``n_folds``, ``note``
        (why a set was not done).
    """
    folds, reasons = _same_volumes(folds, sets, max_order)
    kept = [one for one in sets if one.name not in reasons]
    seen = {one.name: [] for one in kept}
    for fold in folds:
        past = nested.choose_past(fold, max_order)
        known = {
            "null": nested.squared_error(fold, nested.predict_held(fold)),
            "past": nested.squared_error(fold, nested.predict_held(fold, past=past)),
        }
        for one in kept:
            seen[one.name].append(known | _one_set(fold, one, past, alphas, max_order))
    same = all(np.array_equal(fold.at, folds[0].at) for fold in folds)
    lines = [
        {"features": one.name}
        | _line(seen.get(one.name), reasons.get(one.name, ""), same=same, counts=nested.counts(folds))
        for one in sets
    ]
    table = pd.DataFrame(lines).reindex(columns=COLUMNS)
    best = table.loc[table["skill"].idxmax()] if table["skill"].notna().any() else None
    # A share of a skill that may be nothing would be a number made of noise.
    if best is not None and best["skill"] > 0 and clear_of_0(best["skill"], best["fold_spread"], len(folds)):
        table["ratio"] = table["skill"] / best["skill"]
    return table


def _same_volumes(folds, sets, max_order):
    """Leave out what some set does not cover, the same for all; a set that covers too little is left out instead."""
    used = np.unique(np.concatenate([np.r_[fold.fit, fold.held] for fold in folds]))
    reasons = {one.name: f"not done: {one.reason}" for one in sets if one.design is None}
    made = [one for one in sets if one.design is not None]
    n_volumes = len(folds[0].Y)
    keep = np.zeros(n_volumes, bool)
    keep[used] = True
    for one, there in zip(made, covered(made, n_volumes), strict=True):
        known = there.copy()
        for lag in range(1, max_order + 1):  # whitening needs the features of the previous volumes too
            there[lag:] &= known[:-lag]
        if there[used].mean() < ENOUGH:
            reasons[one.name] = f"not done: covers {there[used].mean():.0%} of the volumes"
        elif not all((keep & there)[fold.held].any() for fold in folds):
            reasons[one.name] = "not done: leaves nothing of a held-out block"
        else:
            keep &= there
    return [
        replace(
            fold,
            fit=fold.fit[keep[fold.fit]],
            held=fold.held[keep[fold.held]],
            inner=[(fit[keep[fit]], held[keep[held]]) for fit, held in fold.inner],
        )
        for fold in folds
    ], reasons


def _one_set(fold, one, past, alphas, max_order):
    """One set in one fold: its choices, its errors alone and with the past, and the sums for its correlation."""
    sound = sweep.DelayedSound(np.asarray(one.delays), np.stack([one.design.at(delay) for delay in one.delays]))
    found = nested.choose_delay(fold.smooth, sound, rows=fold.fit, order=max_order, alphas=alphas)
    X = nested.scaled(one.design, found.delay, fold.fit)
    alone = nested.predict_held(fold, ridge=X, alphas=alphas)
    both = nested.predict_held(fold, ridge=X, alphas=alphas, past=past, follows=found.follows)
    return {
        "delay": found.delay,
        "n_features": X.shape[1],
        "n_follow": int(found.follows.sum()),
        "alone": nested.squared_error(fold, alone),
        "both": nested.squared_error(fold, both),
        "moments": out_of_fold.moments(fold.Y[fold.held], alone),
    }


def _line(seen, note, *, same, counts):
    """A row of the table; where each fold has ``same`` voxels, r is over all volumes, else that of each block."""
    if not seen:
        return {"note": note}
    column = {name: np.array([one[name] for one in seen]) for name in ("null", "past", "alone", "both")}
    skill, spread = out_of_fold.skill_and_spread(column["alone"], column["null"])
    gain, gain_spread = out_of_fold.skill_and_spread(column["both"], column["past"])
    join = (lambda parts: np.sum(parts, axis=0)) if same else np.concatenate
    sums = {name: join([one["moments"][name] for one in seen]) for name in ("yp", "yy", "pp")}
    r = scores.median_of(out_of_fold.correlation(*sums.values()))
    return {
        "n_features": seen[0]["n_features"],
        "delay": float(np.median([one["delay"] for one in seen])),
        "skill": skill,
        "fold_spread": spread,
        "r_median": r,
        "gain": gain,
        "gain_spread": gain_spread,
        "n_follow": float(np.median([one["n_follow"] for one in seen])),
        **counts,
        "note": note,
    }
