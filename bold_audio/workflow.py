"""Each notebook's result, made once and re-read by the next: sweep, training, export, scores, maps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

# One door for notebooks: a subject is opened and its results are made from here.
from bold_audio import brain, delays, encoding, evidence, export, gram, mlp, scores, sentences, significance, sweep
from bold_audio.delays import ensure_sweep, open_feature_grid  # noqa: F401
from bold_audio.files import read_json, write_json, write_table, write_text, write_whole
from bold_audio.prepare import Subject, annotation_paths, ensure_scan, open_subject, read_features  # noqa: F401
from bold_audio.space import SpatialHistory


def _this():
    """This module, whose own code the results depend on too."""
    import bold_audio.workflow as this

    return this


def targets(subject):
    """What the MLP predicts: volumes, or differences to the previous volume (row 0 is 0)."""
    if subject.params.target == "volume":
        return subject.Y
    difference = np.zeros_like(subject.Y)
    np.subtract(subject.Y[1:], subject.Y[:-1], out=difference[1:])
    return difference


def history_weights(target, n_voxels):
    """Weights of previous volumes that turn a prediction of ``target`` into a volume."""
    return np.ones((1, n_voxels), np.float32) if target == "difference" else np.zeros((0, n_voxels), np.float32)


def inner_validation(subject):
    """The last block of train to validate on, and what lies before its gap to fit on."""
    return subject.folds[-1]


def train_candidates(subject, delays, *, progress=False):
    """Train one MLP per candidate delay and log each to MLflow.

    Parameters
    ----------
    subject : Subject
    delays : sequence of float
        Candidate delays, in seconds.
    progress : bool
        Whether to draw progress bars.

    Returns
    -------
    list of mlp.TrainedMLP
    warnings : list of str
        What the reader should know about the logging.
    """
    params = subject.params
    fit, val = inner_validation(subject)
    T = targets(subject)
    trained, notes = [], []
    for delay in delays:
        X = subject.scaled("sound", delay)[0]
        logger, note = mlp.mlflow_logger(
            params.mlflow_uri,
            params.mlflow_experiment or params.label,
            f"sub{params.subject}_dt{delay:g}",
            local_folder=params.resolve(params.outputs_dir) / "mlflow",
        )
        logger.log_hyperparams({**params.model_dump(), "delay": delay, **subject.input_md5})
        one = mlp.train_mlp(
            X,
            T,
            fit=fit,
            val=val,
            delay=delay,
            value_range=subject.run.value_range,
            settings=params,
            folder=checkpoint_folder(params) / "training" / f"dt{delay:g}",
            loggers=[logger],
            progress=progress,
        )
        logger.finalize("success")
        trained.append(one)
        notes += [note] if note else []
    return trained, sorted(set(notes))


def checkpoint_folder(params):
    """Folder of checkpoints: the subject's outputs, or its own folder below ``checkpoint_dir``."""
    if params.checkpoint_dir is None:
        return params.subject_path
    return params.resolve(params.checkpoint_dir) / params.label / f"sub-{params.subject}"


def model_facts(subject, delay):
    """What inference needs besides the weights; plain values only."""
    params, run = subject.params, subject.run
    _, mean, scale = subject.scaled("sound", delay)
    settings = ("sample_rate", "n_mfcc", "n_fft", "hop_length", "feature_source", "response", "sound_lags", "target")
    return {
        **{name: getattr(params, name) for name in settings},
        "delay": float(delay),
        "t_r": run.files.t_r,
        "subject": params.subject,
        "dataset": params.dataset,
        "n_inputs": len(mean),
        "feature_mean": [float(v) for v in mean],
        "feature_scale": [float(v) for v in scale],
        "mask_shape": list(run.mask.shape),
        "mask_hash": export.mask_fingerprint(run.mask, run.affine),
        "value_range": list(run.value_range),
        "train_volumes": [int(subject.split.train[0]), int(subject.split.train[-1])],
        "input_md5": subject.input_md5,
        "sound": subject.sound.source,
    }


def ensure_mlp(subject, *, progress=False):
    """Train the MLP at every candidate delay and keep the best, unless ``best.ckpt`` is this very training.

    Returns
    -------
    model : mlp.AudioFmriMLP
        Folded network, features → voxels.
    facts : dict
        With ``delay``, the model's own.
    history : DataFrame
        ``run, delay, epoch, train_MSE, val_MSE, val_Pearson``.
    warnings : list of str
    """
    params = subject.params
    candidates = params.mlp_delays or [ensure_sweep(subject).delay]
    key = subject.result_key(mlp, delays, gram, evidence, significance, sweep, _this())
    checkpoint, history_path = checkpoint_folder(params) / "best.ckpt", subject.path("mlp_history.tsv")
    done = read_json(subject.path("provenance.json"), default={}).get("mlp", {})
    if done.get("key") == key and checkpoint.is_file() and history_path.is_file():
        model, facts = mlp.load_checkpoint(checkpoint)
        return model, facts, pd.read_csv(history_path, sep="\t"), []
    trained, notes = train_candidates(subject, candidates, progress=progress)
    best = min(trained, key=lambda one: one.val_mse)
    facts = model_facts(subject, best.delay)
    mlp.save_checkpoint(checkpoint, best.model, facts)
    history = pd.concat(
        pd.DataFrame(one.history).assign(run=f"sub{params.subject}_dt{one.delay:g}", delay=one.delay) for one in trained
    )
    write_table(history_path, history)
    chosen = {
        "delay": best.delay,
        "val_MSE": best.val_mse,
        "val_Pearson": best.val_pearson,
        "best_epoch": best.best_epoch,
    }
    subject.record("mlp", key=key, candidates=list(candidates), why="smallest val_MSE inside train", **chosen)
    return best.model, facts, history, notes


def ensure_export(subject):
    """Export ``best.ckpt`` to the model repository, unless it is there already.

    Returns
    -------
    version : int
    max_difference : float or None
        Torch against onnxruntime; None where the version was there already.
    """
    params = subject.params
    model, facts, _, _ = ensure_mlp(subject)
    checkpoint, models_dir = checkpoint_folder(params) / "best.ckpt", params.resolve(params.models_dir)
    version = params.model_version or export.find_same_model(models_dir, params.exported_name, checkpoint)
    there = models_dir / params.exported_name / str(version)
    if (
        there.is_dir()
        and not params.overwrite_model
        and version == export.find_same_model(models_dir, params.exported_name, checkpoint)
    ):
        return version, None
    version = version or export.next_version(models_dir, params.exported_name)
    _, difference = export.export_model(
        model,
        facts,
        checkpoint=checkpoint,
        models_dir=models_dir,
        name=params.exported_name,
        version=version,
        overwrite=params.overwrite_model,
    )
    subject.record("export", model_name=params.exported_name, model_version=version, max_difference=difference)
    return version, difference


class Row(NamedTuple):
    """A model as a row of the score table.

    Parameters
    ----------
    phi : array of shape (order, n_voxels)
        Weights of the voxel's own previous volumes.
    drive : callable
        Volumes → the part of their prediction that needs no past, array of shape (n_volumes, n_voxels).
    space : SpatialHistory, optional
        What components of the whole previous volume add.
    """

    phi: np.ndarray
    drive: Callable
    space: SpatialHistory | None = None


def fit_linear_rows(subject, delay, *, rows=None, folds=None, follows=None, names=encoding.LINEAR_NAMES):
    """Fit the linear rows of the score table on ``rows`` (train by default).

    ``follows`` are the voxels in which the sound may add to the past, such as ``found.follows`` of the sweep.

    Returns
    -------
    dict of str to Row
    """
    rows = subject.split.train if rows is None else rows
    fitted = encoding.fit_rows(
        subject.Y,
        rows=rows,
        folds=subject.folds if folds is None else folds,
        sound=subject.scaled("sound", delay, rows)[0],
        sound_at_zero=subject.scaled("zero", 0.0, rows)[0],
        blocks=subject.scaled("blocks", delay, rows)[0] if subject.blocks is not None else None,
        alphas=subject.params.alphas,
        max_order=subject.params.history_order,
        n_components=subject.params.history_components,
        follows=follows,
        chunk_voxels=subject.params.chunk_voxels,
        names=names,
    )

    def drive(model, X):
        return lambda volumes: encoding.drive_of(model, X[volumes])

    return {name: Row(model.phi, drive(model, X), model.space) for name, (model, X) in fitted.items()}


def mlp_row(subject, predict, facts):
    """The MLP as a row beside the linear ones, whatever runtime answers for it."""
    raw = subject.designs["sound"].at(facts["delay"])
    X = (raw - np.array(facts["feature_mean"])) / np.array(facts["feature_scale"])
    hash_here = export.mask_fingerprint(subject.run.mask, subject.run.affine)
    export.check_fits(facts, n_features=X.shape[1], subject=subject.params.subject, mask_hash=hash_here)
    return Row(history_weights(facts["target"], subject.run.n_voxels), lambda volumes: predict(X[volumes]))


def predict_row(subject, row, volumes, prediction, *, fitted_until):
    """Predict ``volumes`` by one row, ``one_step`` or ``open_loop``.

    Open loop starts right after ``fitted_until``, the last volume fitted on: nothing measured
    after it, not even in the gap, is used.
    """
    if prediction == "one_step":
        return encoding.predict(row.phi, row.drive(volumes), subject.Y, volumes, row.space)
    path = np.arange(fitted_until + 1, volumes[-1] + 1)
    return encoding.rollout(row.phi, row.drive(path), subject.Y, path, row.space)[-len(volumes) :]


def score_rows(subject, rows, volumes, regions, *, fitted_until, predictions=("one_step", "open_loop")):
    """Score every model on ``volumes``, one table row per model, prediction and region.

    Parameters
    ----------
    subject : Subject
    rows : dict of str to Row
        Models; ``constant`` is among them.
    volumes : array of int
        Contiguous volumes that nothing was fitted on.
    regions : dict of str to array of bool
    fitted_until : int
        The last volume fitted on: open loop starts right after it.
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
    lines, voxels = [], {}
    for prediction in predictions:
        predicted = {}
        for name, row in rows.items():
            reference = encoding.reference_of(name)
            made = predict_row(subject, row, volumes, prediction, fitted_until=fitted_until)
            found = {
                "mse": scores.voxel_mse(Y, made, value_range=value_range),
                "r": scores.pearson_r(Y, made),
            }
            if name in encoding.REFERENCES and prediction == "one_step":
                found["partial_r"] = scores.partial_r(Y, predicted[reference], made)
            voxels[name, prediction] = found
            if name in encoding.REFERENCES.values():
                predicted[name] = made
            for region, roi in regions.items():
                line = scores.score_row(Y, made, voxels[reference, prediction]["mse"], roi, value_range=value_range)
                partial = scores.median_of(found["partial_r"][roi]) if "partial_r" in found else np.nan
                lines.append(
                    {"model": name, "prediction": prediction, "region": region}
                    | {k: line[k] for k in ("mse", "r_median", "r_best", "r2", "skill")}
                    | {"reference": reference, "n_volumes": line["n_volumes"], "n_voxels": line["n_voxels"]}
                    | {"partial_r_median": partial}
                )
    return pd.DataFrame(lines), voxels


def score_regions(subject, found):
    """The regions of a subject's tables: its own, and the responsive voxels that the sweep found."""
    regions = dict(subject.run.regions)
    if len(found.responsive) > 1 / sweep.RESPONSIVE_SHARE:
        regions["responsive"] = found.responsive
    return regions


def write_predictions(subject, predicted, *, facts):
    """Write what notebook 06 predicted: the four files that the original project's users know.

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
    subject.record("inference", **chosen, delay=facts["delay"], mse_test=mse)
    return mse


def open_exported(subject, version):
    """Open the subject's model in the runtime that the parameters name: ``predict`` and ``facts``."""
    params = subject.params
    return export.open_predictor(
        params.runtime,
        models_dir=params.resolve(params.models_dir),
        name=params.exported_name,
        version=version,
        checkpoint=checkpoint_folder(params) / "best.ckpt",
    )


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
    write_json(subject.path("summary.json"), {"about": about, "sentences": answer, "region": region})
