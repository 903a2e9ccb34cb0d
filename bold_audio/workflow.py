"""Each notebook's result, made once and re-read by the next: sweep, training, export, scores, maps."""

import numpy as np

# One door for notebooks: a subject is opened and its results are made from here.
from bold_audio import brain, candidates, export, models, scores, sentences, sweep
from bold_audio.candidates import checkpoint_folder, inner_validation  # noqa: F401
from bold_audio.delays import ensure_sweep, open_feature_grid  # noqa: F401
from bold_audio.files import write_json, write_text, write_whole
from bold_audio.models import LINEAR_NAMES, predict_row, score_rows  # noqa: F401
from bold_audio.prepare import Subject, annotation_paths, ensure_scan, open_subject, read_features  # noqa: F401


def ensure_mlp(subject, *, progress=None):
    """Train the MLP at every candidate delay (or at the sweep's) and keep the best; see `candidates.ensure_mlp`."""
    delays = subject.params.mlp_delays or [ensure_sweep(subject).delay]
    return candidates.ensure_mlp(subject, delays, progress=progress)


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


def fit_linear_rows(subject, delay, *, rows=None, folds=None, follows=None, names=LINEAR_NAMES):
    """Fit the linear rows of the score table on ``rows`` (train by default).

    ``follows`` are the voxels in which the sound may add to the past, such as ``found.follows`` of the sweep.

    Returns
    -------
    dict of str to models.Row
    """
    rows = subject.split.train if rows is None else rows
    fitted = models.fit_rows(
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
    return models.linear_rows(fitted)


def network_inputs(subject, facts):
    """Features of every volume as the network wants them, array of shape (n_volumes, n_features).

    Raises
    ------
    ModelError
        If the network was trained on another subject, mask or set of features.
    """
    raw = subject.designs["sound"].at(facts["delay"])
    hash_here = export.mask_fingerprint(subject.run.mask, subject.run.affine)
    export.check_fits(facts, n_features=raw.shape[1], subject=subject.params.subject, mask_hash=hash_here)
    return (raw - np.array(facts["feature_mean"])) / np.array(facts["feature_scale"])


def measured_inputs(subject, facts, volumes):
    """All that the network is given for ``volumes``: features and, where it has them, measured previous volumes."""
    X = network_inputs(subject, facts)[volumes]
    lags = range(1, facts["n_previous"] + 1)
    return (X, np.stack([subject.Y[volumes - lag] for lag in lags], axis=1)) if lags else (X,)


def mlp_row(subject, predict, facts, *, history=None, rows=None):
    """The MLP as a row beside the linear ones, whatever runtime answers for it.

    Parameters
    ----------
    subject : Subject
    predict, facts
        From a runtime: see `export.open_predictor`.
    history : models.Row, optional
        Own history, which a model of whitened volumes adds its sound to.
    rows : array of int, optional
        Volumes that ``history`` was fitted on; train by default.
    """
    return models.network_row(
        predict,
        network_inputs(subject, facts),
        target=facts["target"],
        n_voxels=subject.run.n_voxels,
        n_previous=facts["n_previous"],
        history=history,
        train=subject.split.train if rows is None else rows,
    )


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
