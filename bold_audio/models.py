"""The rows of the score table: how each model is fitted, how it predicts, and how it is scored beside the others.

Whatever a row is made of, it predicts

    ŷ[k] = drive[k] + Σ_l phi_l ∘ y[k−l] + step(k, y[k−1], …)

with ``drive`` what needs no past (intercept, sound, blocks), ``phi`` each voxel's own history, and ``step`` what whole
previous volumes add. One-step takes measured volumes for y, open loop its own predictions. A row with a past and sound
is measured against the same past without the sound, others against the train mean: `Row.reference`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from bold_audio import choices, encoding, scores
from bold_audio.space import SpatialHistory, principal_space

LINEAR_NAMES = (
    "constant",
    "copy_previous",
    "linear",
    "linear_delay",
    "blocks",
    "sound",
    "history",
    "history_sound",
    "history_blocks",
    "history_blocks_sound",
)
CHUNK_VOLUMES = 64  # predicted at once by a model with whole previous volumes among its inputs
REFERENCES = {"history_sound": "history", "history_blocks_sound": "history_blocks"}


class Row(NamedTuple):
    """A fitted model as a row of the score table.

    Parameters
    ----------
    phi : array of shape (order, n_voxels)
        Weights of the voxel's own previous volumes.
    drive : callable
        Contiguous volumes → the part of their prediction that needs no past, array of shape (n_volumes, n_voxels).
    step : callable, optional
        What whole previous volumes add: see `encoding.predict`.
    reference : str
        The row that its skill is measured against: a past without the sound, or ``constant``.
    """

    phi: np.ndarray
    drive: Callable
    step: Callable | None = None
    reference: str = "constant"


def linear_rows(fitted):
    """Rows of what `fit_rows` fitted."""

    def drive(model, X):
        return lambda volumes: encoding.drive_of(model, X[volumes])

    return {
        name: Row(model.phi, drive(model, X), model.space, REFERENCES.get(name, "constant"))
        for name, (model, X) in fitted.items()
    }


class PreviousVolumes:
    """A network that has previous volumes among its inputs, as the ``step`` of a row.

    Parameters
    ----------
    predict : callable
        Features (n, n_features) and previous volumes (n, order, n_voxels) → array (n, n_voxels).
    X : array of shape (n_volumes, n_features)
    order : int
    """

    def __init__(self, predict, X, order):
        self.predict, self.X, self.order = predict, X, order

    def __call__(self, rows, previous):
        """Prediction of the volumes ``rows``: array of shape (n_rows, n_voxels)."""
        made = np.empty_like(previous[0], dtype=np.float32)
        for start in range(0, len(rows), CHUNK_VOLUMES):  # the inputs are several times the prediction
            part = slice(start, start + CHUNK_VOLUMES)
            made[part] = self.predict(self.X[rows[part]], np.stack([lag[part] for lag in previous], axis=1))
        return made


def network_row(predict, X, *, target, n_voxels, n_previous=0, history=None, level=None, reference="constant"):
    """A network, or an exported linear model, as a row, whatever runtime answers for it.

    Parameters
    ----------
    predict : callable
        Features (n, n_features), and previous volumes where it has them as inputs → array (n, n_voxels).
    X : array of shape (n_volumes, n_features)
        Features of the run as the network wants them.
    target : {"whitened", "difference", "volume"}
        What it was trained on.
    n_voxels : int
    n_previous : int
        Previous volumes among its inputs.
    history : Row, optional
        Own history; for ``whitened`` it predicts, and the network adds what the sound does:
        s[k] − Σ_l phi_l ∘ s[k−l], with s the network's output less ``level``.
    level : array of shape (n_voxels,), optional
    reference : str
        What the row is measured against, where it is not ``whitened``.

    Returns
    -------
    Row
    """
    if target == "whitened":
        phi = history.phi.astype(np.float32)

        def drive(volumes):
            order = len(phi)
            s = predict(X[np.arange(volumes[0] - order, volumes[-1] + 1)]) - level
            made = history.drive(volumes) + s[order:]
            for lag, weight in enumerate(phi, start=1):
                made -= weight * s[order - lag : len(s) - lag]
            return made

        return Row(history.phi, drive, history.step, "history")
    phi = np.ones((1, n_voxels), np.float32) if target == "difference" else np.zeros((0, n_voxels), np.float32)
    if n_previous:
        nothing = np.zeros((1, n_voxels), np.float32)
        return Row(
            phi,
            lambda volumes: np.repeat(nothing, len(volumes), axis=0),
            PreviousVolumes(predict, X, n_previous),
            reference,
        )
    return Row(phi, lambda volumes: predict(X[volumes]), reference=reference)


def fit_rows(
    Y,
    *,
    rows,
    folds,
    sound,
    sound_at_zero,
    blocks,
    alphas,
    max_order,
    n_components=0,
    follows=None,
    history_voxels=None,
    chunk_voxels=8192,
    names=LINEAR_NAMES,
):
    """Fit the linear rows of the score table.

    Parameters
    ----------
    Y, rows, folds, alphas, chunk_voxels
        As for `encoding.fit_linear`.
    sound, sound_at_zero : arrays of shape (n_volumes, n_features)
        Sound features at the chosen delay and at Δt = 0, scaled on ``rows``.
    blocks : array of shape (n_volumes, 1) or None
        Speech/music boxcar at the chosen delay; None where the film has no blocks.
    max_order : int
        Most previous volumes tried.
    n_components : int
        Principal components of the previous volume in every past; 0: own history alone.
    follows : array of bool, shape (n_voxels,), optional
        Voxels in which the sound may add to the past.
    history_voxels : array of int, optional
        Voxels whose errors choose the order and strength of the history that serves all; all without it.
    names : sequence of str
        Which rows to fit.

    Returns
    -------
    dict of str to (encoding.LinearModel, array of shape (n_volumes, n_features))
        Each model with its own features.
    """
    nothing = np.zeros((len(Y), 0))
    common = {"rows": rows, "chunk_voxels": chunk_voxels}
    chosen = {**common, "folds": folds, "alphas": alphas}
    past, before, space, space_alpha = {"order": 0}, nothing, None, 0.0
    if any("history" in name for name in names):
        choosing = Y if history_voxels is None else np.asarray(Y[:, history_voxels])
        found = choices.choose_history(choosing, folds=folds, max_order=max_order, **common)
        past = {"order": found.order, "history_alpha": found.alpha}
        if n_components:
            space = principal_space(Y, rows=rows, n_components=n_components, chunk_voxels=chunk_voxels)
            before = space.scores_before(Y)
            space_alpha = choices.choose_space_alpha(Y, n_components, found, folds=folds, **common)

    def fit_past(shared, **options):
        """A model of the past, components of the previous volume first among its free features."""
        free_alphas = np.r_[np.full(before.shape[1], space_alpha), np.zeros(shared.shape[1])]
        model = encoding.fit_linear(Y, free=np.hstack([before, shared]), free_alphas=free_alphas, **past, **options)
        if space is None:
            return model
        k = before.shape[1]
        added = SpatialHistory(space, model.weights[:k].astype(np.float32))
        return replace(model, weights=model.weights[k:], space=added)

    fits = {
        "constant": lambda: (encoding.fit_constant(Y, rows), nothing),
        "copy_previous": lambda: (encoding.fit_copy_previous(Y), nothing),
        "linear": lambda: (encoding.fit_linear(Y, free=sound_at_zero, target="difference", **common), sound_at_zero),
        "linear_delay": lambda: (encoding.fit_linear(Y, ridge=sound, target="difference", **chosen), sound),
        "blocks": lambda: (encoding.fit_linear(Y, ridge=blocks, **chosen), blocks),
        "sound": lambda: (encoding.fit_linear(Y, ridge=sound, **chosen), sound),
        "history": lambda: (fit_past(nothing, **common), nothing),
        "history_sound": lambda: (fit_past(nothing, ridge=sound, follows=follows, **chosen), sound),
        "history_blocks": lambda: (fit_past(blocks, **common), blocks),
        "history_blocks_sound": lambda: (
            fit_past(blocks, ridge=sound, follows=follows, **chosen),
            np.hstack([blocks, sound]),
        ),
    }
    return {name: fits[name]() for name in names if blocks is not None or "blocks" not in name}


def fit_subject(subject, delay, *, rows=None, folds=None, **options):
    """Fit linear rows of a subject on ``rows`` (train by default); options, returns and raises as `fit_rows`."""
    rows, params = subject.split.train if rows is None else rows, subject.params
    return fit_rows(
        subject.Y,
        rows=rows,
        folds=subject.folds if folds is None else folds,
        sound=subject.scaled("sound", delay, rows)[0],
        sound_at_zero=subject.scaled("zero", 0.0, rows)[0],
        blocks=subject.scaled("blocks", delay, rows)[0] if subject.blocks is not None else None,
        alphas=params.alphas,
        max_order=params.history_order,
        n_components=params.history_components,
        chunk_voxels=params.chunk_voxels,
        **options,
    )


def predict_row(subject, row, volumes, prediction, *, fitted_on):
    """Predict ``volumes`` by one row, ``one_step`` or ``open_loop``.

    Open loop starts right after the last volume of ``fitted_on``: nothing measured after it, not even in the gap, is
    used. In a run of which nothing was fitted it starts with the first of ``volumes``.

    Parameters
    ----------
    subject : prepare.Subject
    row : Row
    volumes : array of int
        Increasing.
    prediction : {"one_step", "open_loop"}
    fitted_on : array of int

    Returns
    -------
    array of shape (len(volumes), n_voxels)
        Raw intensities.
    """
    made = []
    for path, stretch in subject.paths(volumes, fitted_on):
        if prediction == "one_step":
            made.append(encoding.predict(row.phi, row.drive(stretch), subject.Y, stretch, row.step))
        else:
            made.append(encoding.rollout(row.phi, row.drive(path), subject.Y, path, row.step)[-len(stretch) :])
    return made[0] if len(made) == 1 else np.concatenate(made)


def score_rows(subject, rows, volumes, regions, *, fitted_on, predictions=("one_step", "open_loop")):
    """Score every model on ``volumes``, one table row per model, prediction and region.

    Parameters
    ----------
    subject : Subject
    rows : dict of str to Row
        Models; ``constant`` is among them, and each one's reference before it.
    volumes : array of int
        Volumes that nothing was fitted on.
    regions : dict of str to array of bool
    fitted_on : array of int
        Volumes fitted on: open loop starts right after the last of them.
    predictions : sequence of str

    Returns
    -------
    table : DataFrame
        The columns of ``scores.tsv``.
    voxels : dict of (str, str) to dict
        Per model and prediction: ``mse`` and ``r`` of every voxel, and ``partial_r`` for the
        models that add sound to a past.
    """
    Y = np.asarray(subject.Y[volumes])
    value_range = subject.run.value_range
    references = {row.reference for row in rows.values()} - {"constant"}
    lines, voxels = [], {}
    for prediction in predictions:
        predicted = {}
        for name, row in rows.items():
            reference = row.reference
            made = predict_row(subject, row, volumes, prediction, fitted_on=fitted_on)
            found = {
                "mse": scores.voxel_mse(Y, made, value_range=value_range),
                "r": scores.pearson_r(Y, made),
            }
            if reference != "constant" and prediction == "one_step":
                found["partial_r"] = scores.partial_r(Y, predicted[reference], made)
            voxels[name, prediction] = found
            if name in references:
                predicted[name] = made
            r2, reference_mse = scores.voxel_r2(Y, made), voxels[reference, prediction]["mse"]
            for region, roi in regions.items():
                line = scores.score_row(found["mse"], found["r"], r2, reference_mse, roi)
                partial = scores.median_of(found["partial_r"][roi]) if "partial_r" in found else np.nan
                lines.append(
                    {"model": name, "prediction": prediction, "region": region}
                    | {k: line[k] for k in ("mse", "r_median", "n_with_r", "r_best", "r2", "skill")}
                    | {"reference": reference, "n_volumes": len(Y), "n_voxels": line["n_voxels"]}
                    | {"partial_r_median": partial}
                )
    return pd.DataFrame(lines), voxels
