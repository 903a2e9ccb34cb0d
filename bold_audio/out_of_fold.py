"""Every volume of the run predicted by a model that never saw it or its neighbours, and what that says of each voxel.

For every outer fold (a contiguous held-out block, a gap on both sides of it) the delay, the voxels that may have the
sound (`nested`: by evidence, not by surrogates), the order and strength of the history and every ridge strength are
chosen inside the volumes fitted on.
The mask, what ``realign``, ``detrend`` and ``confounds`` take off, and the range that scales ``mse`` are those of the
subject's train part, as everywhere; none of them knows the sound.

**No prediction is kept.** Of each fold, model and voxel a few sums remain (`moments`): of 24,000 voxels, 5 folds and 7
models about 33 MB, where the predictions would be 420 MB. Correlations take off each block's own mean, of the measured
and of the predicted volumes: the mean of the other blocks is high where the held-out one is low, so over all blocks
together a model that knows nothing would have a negative r.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bold_audio import models, scores
from bold_audio.scores import evenly_spaced

MODELS = ("constant", "blocks", "sound", "history", "history_sound", "history_blocks", "history_blocks_sound")
HISTORY_VOXELS = 2000  # evenly spaced, whose errors choose the order of the history that serves all
NOTHING = 1e-7  # of a series' largest value: less variation is rounding


@dataclass(frozen=True)
class Tally:
    """What is kept of one model's out-of-fold predictions.

    Parameters
    ----------
    n_held : array of shape (n_folds,)
        Held-out volumes.
    sums : dict of str to array of shape (n_folds, n_voxels)
        From `moments`, and for models that add sound to a past from `partial_moments`.
    reference : str
        The model that its skill is measured against.
    """

    n_held: np.ndarray
    sums: dict
    reference: str = "constant"

    def pooled(self, inside):
        """Sums over the folds in which each voxel is ``inside``, (n_folds, n_voxels) or (n_voxels,): dict."""
        inside = np.broadcast_to(inside, next(iter(self.sums.values())).shape)
        made = {name: np.where(inside, values, 0).sum(axis=0) for name, values in self.sums.items()}
        return made | {"n": (inside * self.n_held[:, None]).sum(axis=0)}


def moments(Y, predicted):
    """Sums over the volumes of a block that errors and correlations are made of.

    Parameters
    ----------
    Y, predicted : arrays of shape (n_volumes, n_voxels)

    Returns
    -------
    dict of str to array of shape (n_voxels,)
        ``sse`` (squared error); ``yy``, ``pp``, ``yp`` (squares and product, each without its mean over the block).
        Squares of what does not vary are 0.
    """
    y, p = np.asarray(Y, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    return {"sse": np.sum((y - p) ** 2, axis=0)} | _products(y, p, np.abs(Y).max(axis=0), np.abs(predicted).max(axis=0))


def partial_moments(Y, past, past_and_sound):
    """Sums over volumes for the partial correlation of the sound.

    Parameters
    ----------
    Y, past, past_and_sound : arrays of shape (n_volumes, n_voxels)
        Measured; predicted without and with the sound.

    Returns
    -------
    dict of str to array of shape (n_voxels,)
        ``ee`` of what the past left over, ``aa`` of what the sound adds, ``ea`` of both.
    """
    left_over = np.asarray(Y, dtype=np.float64) - past
    added = np.asarray(past_and_sound, dtype=np.float64) - past
    # Less than float32 can hold of the volume is nothing.
    size = 10 * np.abs(past).max(axis=0)
    made = _products(left_over, added, np.abs(left_over).max(axis=0), size)
    return {"ee": made["yy"], "aa": made["pp"], "ea": made["yp"]}


def _products(y, p, y_size, p_size):
    y, p = y - y.mean(axis=0), p - p.mean(axis=0)
    yy, pp, yp = np.sum(y**2, axis=0), np.sum(p**2, axis=0), np.sum(y * p, axis=0)
    yy[yy <= len(y) * (NOTHING * y_size) ** 2] = 0
    pp[pp <= len(y) * (NOTHING * p_size) ** 2] = 0
    return {"yy": yy, "pp": pp, "yp": np.where((yy > 0) & (pp > 0), yp, 0)}


def correlation(product, square, other_square):
    """Correlation from sums of products; NaN where something does not vary."""
    below = square * other_square
    return np.where(below > 0, product / np.sqrt(np.where(below > 0, below, 1)), np.nan)


def fit_fold(subject, choice, *, names=MODELS):
    """Fit the linear rows of an outer fold, every choice inside its ``fit``: dict of str to models.Row."""
    fitted = models.fit_subject(
        subject,
        choice.delay,
        rows=choice.fit,
        folds=choice.inner,
        follows=choice.follows,
        names=names,
        history_voxels=evenly_spaced(np.arange(subject.run.n_voxels), HISTORY_VOXELS),
    )
    return models.linear_rows(fitted)


def tally_folds(subject, chosen, *, names=MODELS):
    """Predict every outer fold's held-out block one step ahead and keep the sums.

    Parameters
    ----------
    subject : prepare.Subject
    chosen : list of nested.FoldChoice
    names : sequence of str
        Linear rows of `models`, each one's reference before it.

    Returns
    -------
    dict of str to Tally
    """
    seen, references = {}, {}
    for choice in chosen:
        rows = fit_fold(subject, choice, names=names)
        Y, predicted, pasts = np.asarray(subject.Y[choice.held]), {}, {row.reference for row in rows.values()}
        for name, row in rows.items():
            made = models.predict_row(subject, row, choice.held, "one_step", fitted_on=choice.fit)
            found = _in_slabs(moments, Y, made)
            if row.reference != "constant":
                found |= _in_slabs(partial_moments, Y, predicted[row.reference], made)
            if name in pasts:
                predicted[name] = made
            references[name] = row.reference
            seen.setdefault(name, []).append(found)
    n_held = np.array([len(choice.held) for choice in chosen])
    return {
        name: Tally(n_held, {key: np.stack([one[key] for one in folds]) for key in folds[0]}, references[name])
        for name, folds in seen.items()
    }


def _in_slabs(sums, *arrays):
    """`moments` or `partial_moments` of some voxels at a time: their float64 copies are many times the block."""
    slabs = scores.column_slabs(arrays[0].shape[1])
    parts = [sums(*(array[:, slab] for array in arrays)) for slab in slabs]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def score_table(tallies, masks, *, value_range):
    """Score every model in every region, out of fold.

    Parameters
    ----------
    tallies : dict of str to Tally
    masks : dict of str to array of bool, shape (n_folds, n_voxels) or (n_voxels,)
        Regions; one whose voxels were chosen inside each fold has other ones in each.
    value_range : (float, float)
        As for `scores.voxel_mse`.

    Returns
    -------
    DataFrame
        The columns of ``scores.tsv``, ``fold_spread`` (standard error of the skill over folds) and ``n_folds``.
        ``n_volumes`` are all that were held out once.
    """
    lines = []
    for region, inside in masks.items():
        for name, tally in tallies.items():
            known, against = tally.pooled(inside), tallies[tally.reference]
            there = known["n"] > 0
            r, partial = correlation(known["yp"], known["yy"], known["pp"])[there], np.full(1, np.nan)
            if "ee" in known:
                partial = correlation(known["ea"], known["ee"], known["aa"])[there]
            scale = known["n"].sum() * (value_range[1] - value_range[0]) ** 2
            varies = there & (known["yy"] > 0)
            lines.append(
                {"model": name, "prediction": "one_step", "region": region}
                | {"mse": known["sse"].sum() / scale if scale else np.nan, "r_median": scores.median_of(r)}
                | {"n_with_r": int(np.isfinite(r).sum())}
                | {"r_best": float(np.nanmax(r)) if np.isfinite(r).any() else np.nan}
                | {"r2": scores.median_of(1 - known["sse"][varies] / known["yy"][varies])}
                | dict(zip(("skill", "fold_spread"), fold_skill(tally, against, inside), strict=True))
                | {"reference": tally.reference, "n_volumes": int(tally.n_held.sum()), "n_voxels": int(there.sum())}
                | {"partial_r_median": scores.median_of(partial), "n_folds": len(tally.n_held)}
            )
    return pd.DataFrame(lines)


def fold_skill(tally, against, inside):
    """Skill over a reference and its standard error over folds, by sums over voxels.

    Parameters
    ----------
    tally, against : Tally
        Of the model and of the reference.
    inside : array of bool, shape (n_voxels,) or (n_folds, n_voxels)

    Returns
    -------
    (float, float)
    """
    inside = np.broadcast_to(inside, tally.sums["sse"].shape)
    return skill_and_spread(*(np.where(inside, one.sums["sse"], 0).sum(axis=1) for one in (tally, against)))


def skill_and_spread(errors, reference_errors):
    """Skill over all folds and its standard error over folds, from the squared errors of each, (n_folds,) both."""
    per_fold = [scores.skill(e, r) for e, r in zip(errors, reference_errors, strict=True)]
    return scores.skill(errors, reference_errors), float(np.std(per_fold, ddof=1) / np.sqrt(len(per_fold)))


def voxel_scores(tallies, *, value_range):
    """Every voxel's own scores, in the form that `models.score_rows` gives: ``mse``, ``r``, ``gain``, ``partial_r``.

    Returns
    -------
    dict of (str, str) to dict of str to array of shape (n_voxels,)
        By model and ``one_step``; ``gain`` and ``partial_r`` of models that add sound to a past.
    """
    made = {}
    for name, tally in tallies.items():
        known = tally.pooled(True)
        found = {"mse": known["sse"] / known["n"] / (value_range[1] - value_range[0]) ** 2}
        found["r"] = correlation(known["yp"], known["yy"], known["pp"])
        if "ee" in known:
            past = tallies[tally.reference].pooled(True)["sse"]
            found["gain"] = np.where(past > 0, 1 - known["sse"] / np.where(past > 0, past, 1), np.nan)
            found["partial_r"] = correlation(known["ea"], known["ee"], known["aa"])
        made[name, "one_step"] = found
    return made
