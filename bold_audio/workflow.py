"""Each notebook's result, made once and re-read by the next: sweep, training, scores, maps."""

from functools import partial

import numpy as np

# One door for notebooks: a subject is opened and its results are made from here.
from bold_audio import brain, candidates, mlp, models, scores, sentences, serving, sweep
from bold_audio.candidates import checkpoint_folder, inner_validation  # noqa: F401
from bold_audio.delays import ensure_sweep, open_feature_grid  # noqa: F401
from bold_audio.files import write_json, write_text, write_whole
from bold_audio.models import LINEAR_NAMES, predict_row, score_rows  # noqa: F401
from bold_audio.prepare import Subject, annotation_paths, ensure_scan, open_subject, read_features  # noqa: F401
from bold_audio.serving import (  # noqa: F401
    compare_runtimes,
    ensure_export,
    measured_inputs,
    model_name,
    open_exported,
    served_row,
)


def ensure_mlp(subject, *, progress=None):
    """Train the MLP at every candidate delay (or at the sweep's) and keep the best; see `candidates.ensure_mlp`."""
    delays = subject.params.mlp_delays or [ensure_sweep(subject).delay]
    return candidates.ensure_mlp(subject, delays, progress=progress)


def fit_linear_rows(subject, delay, *, rows=None, folds=None, follows=None, names=LINEAR_NAMES):
    """Fit the linear rows of the score table on ``rows`` (train by default).

    ``follows`` are the voxels in which the sound may add to the past, such as ``found.follows`` of the sweep.

    Returns
    -------
    dict of str to models.Row
    """
    return models.linear_rows(models.fit_subject(subject, delay, rows=rows, folds=folds, follows=follows, names=names))


def trained_row(subject, model, facts, *, history=None, rows=None):
    """A network that was just trained, as a row beside the linear ones.

    Parameters
    ----------
    subject : Subject
    model, facts
        From `ensure_mlp`.
    history : models.Row, optional
        Own history, which a model of whitened volumes adds its sound to.
    rows : array of int, optional
        Volumes that ``history`` was fitted on; train by default.
    """
    X, predict = serving.network_inputs(subject, facts), partial(mlp.mlp_output, model)
    common = {"n_voxels": subject.run.n_voxels, "n_previous": facts["n_previous"], "history": history}
    level = None
    if facts["target"] == "whitened":
        level = predict(X[subject.split.train if rows is None else rows]).mean(axis=0, dtype=np.float64)
        level = level.astype(np.float32)
    return models.network_row(predict, X, target=facts["target"], level=level, **common)


def score_regions(subject, found):
    """The regions of a subject's tables: its own, and the responsive voxels that the sweep found."""
    regions = dict(subject.run.regions)
    if len(found.responsive) > 1 / sweep.RESPONSIVE_SHARE:
        regions["responsive"] = found.responsive
    return regions


def write_predictions(subject, predicted, *, facts):
    """Write what notebook 06 predicted: the four files that the original project's users know, and a NIfTI run.

    Returns
    -------
    float
        The MSE of the test part, for BOLD scaled to [0, 1].
    """
    Y = np.asarray(subject.Y[subject.split.test])
    mse = float(scores.voxel_mse(Y, predicted, value_range=subject.run.value_range).mean())
    for name, array in (("y_test_full.npy", Y), ("y_test_pred.npy", predicted)):
        with write_whole(subject.path(name)) as part:
            np.save(part, np.asarray(array, dtype=np.float32))
    write_text(subject.path("mse_test.txt"), f"{mse:.10g}\n")
    write_text(subject.path("dt_used.txt"), f"{facts['delay']:.10g}\n")
    chosen = {"prediction": subject.params.prediction, "runtime": subject.params.runtime}
    run, test = subject.run, subject.split.test
    name = f"{run.files.entities}_desc-predicted_bold.nii.gz"
    said = {
        "Description": f"test part, predicted by the {facts['kind']}, {chosen['prediction']}; 0 outside the mask",
        "StartTime": float(run.files.volume_times[test[0]]),
        "Sources": [f"bids:raw:{brain.raw_path(run, subject.params)}"],
    }
    where = {"mask": run.mask, "affine": run.affine, "t_r": run.files.t_r, "form_codes": run.files.form_codes}
    brain.write_volumes(subject.path(name), predicted, about=said, **where)
    subject.record("inference", **chosen, kind=facts["kind"], delay=facts["delay"], mse_test=mse)
    return mse


def write_maps(subject, voxels, found):
    """Write the test part's maps: r of the sound, gain and partial r of the sound over the past.

    Returns
    -------
    list of Path
    """
    test = f"test part, one-step, {len(subject.split.test)} volumes; NaN outside the mask"
    past, both = voxels["history", "one_step"]["mse"], voxels["history_sound", "one_step"]["mse"]
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(past > 0, 1 - both / past, np.nan)
    maps = [
        ("sound", "r", voxels["sound", "one_step"]["r"], f"Pearson r of the sound alone at {found.delay:g} s; {test}"),
        ("historySound", "gain", gain, f"share of the squared error of own history that the sound removes; {test}"),
        (
            "historySound",
            "partialr",
            voxels["history_sound", "one_step"]["partial_r"],
            f"partial r, sound given past; {test}",
        ),
    ]
    return [
        brain.write_map(subject.run, subject.params, values, model=model, stat=stat, description=text)
        for model, stat, values, text in maps
    ]


def write_summary(subject, answer, region):
    """Keep the computed sentences for the report's index."""
    about = sentences.about_data(subject.params, subject.sound)
    kept = {"about": about, "alarms": list(subject.sound.alarms), "sentences": answer, "region": region}
    write_json(subject.path("summary.json"), kept)
