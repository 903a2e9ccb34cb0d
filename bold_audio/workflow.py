"""Each notebook's result, made once and re-read by the next: sweep, training, scores, maps."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

# One door for notebooks: a subject is opened and its results are made from here.
from bold_audio import (
    __version__,
    anatomy,
    brain,
    candidates,
    confounds,
    data,
    models,
    motion,
    prepare,
    quality,
    runs,
    scores,
    sentences,
    serving,
    sweep,
)
from bold_audio.candidates import inner_validation  # noqa: F401
from bold_audio.delays import ensure_sweep, open_feature_grid  # noqa: F401
from bold_audio.files import fingerprint, write_json, write_table, write_text, write_whole
from bold_audio.hearing import annotation_paths, first_sound, read_features  # noqa: F401
from bold_audio.locking import cached_folder
from bold_audio.models import LINEAR_NAMES, predict_row, score_rows  # noqa: F401
from bold_audio.prepare import Subject, ensure_scan, level_volumes  # noqa: F401
from bold_audio.provenance import code_fingerprint
from bold_audio.serving import (  # noqa: F401
    compare_runtimes,
    ensure_export,
    measured_inputs,
    open_exported,
    served_row,
    time_calls,
)


def open_subject(params):
    """Open the subject that is run: `prepare.open_subject`, and what belongs into its outputs from the beginning.

    That is the description of the dataset, and the transform that says where the scan lies in the template.

    Parameters
    ----------
    params : Params

    Returns
    -------
    Subject

    Raises
    ------
    DataError, ParameterError
        As `prepare.open_subject`.
    MachineError
        If the outputs cannot be written.
    """
    subject = prepare.open_subject(params)
    brain.write_dataset_description(params, __version__)
    anatomy.write_transform(subject.run, params, subject.anatomy)
    return subject


def ensure_quality(subject):
    """Measure the quality of a subject's scan as it came, before ``realign``, ``detrend`` and ``confounds``, once.

    Writes ``…_desc-quality_timeseries.tsv`` into the subject's outputs: one row per volume, named as fMRIPrep names its
    confounds where both have them.

    Returns
    -------
    quality.ScanQuality
    """
    run, params = as_measured(subject), subject.params
    made_of = Path(run.volumes.filename).parent.name  # names the scan, the mask and the train volumes
    parts = {name: getattr(subject.split, name) for name in ("train", "gap", "test")}
    listed = {name: list(map(int, rows)) for name, rows in parts.items()}
    code = code_fingerprint(quality, motion)
    begins = [float(part.start) for part in run.files.parts]  # a sidecar's, which the scan's name does not hold
    key = f"quality-{fingerprint(made_of, listed, run.files.t_r, begins, code)}"

    def make(folder):
        moved = None
        if motion.can_align(run.files.grid):
            moved = motion.cached_motion(run.files, params.cache_path, train=subject.split.train)
        measured = quality.scan_quality(
            run.volumes,
            t_r=run.files.t_r,
            train=subject.split.train,
            parts=parts,
            moved=moved,
            starts=run.files.starts,
            begins=begins,
        )
        np.savez(folder / "arrays.npz", mean=measured.mean, sd=measured.sd, tsnr=measured.tsnr, carpet=measured.carpet)
        write_table(folder / "volumes.tsv", measured.volumes.replace({"": None}))
        write_table(folder / "spectrum.tsv", measured.spectrum)

    folder = cached_folder(params.cache_path, key, make)
    volumes, spectrum = (pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("volumes", "spectrum"))
    volumes = volumes.astype({"part": object, "finding": object}).fillna({"part": "", "finding": ""})
    with np.load(folder / "arrays.npz") as arrays:
        found = quality.ScanQuality(**arrays, volumes=volumes, spectrum=spectrum)
    write_table(subject.path(f"{run.files.entities}_desc-quality_timeseries.tsv"), volumes.replace({"": None}))
    write_json(subject.path(f"{run.files.entities}_desc-quality_timeseries.json"), quality.COLUMNS)
    return found


def shown_rates(t_r):
    """Heart and breathing rates (per minute), and the frequency (Hz) at which a scan with this TR (s) shows them."""
    steps = {"heart": range(50, 121, 10), "breathing": range(10, 31, 5)}
    return {name: {rate: float(quality.alias(rate / 60, t_r)) for rate in rates} for name, rates in steps.items()}


def motion_with_blocks(subject, found):
    """Share of the film's boxcar at 5 s that head motion explains in train, and of the shifted boxcar in the median.

    Returns
    -------
    (float, float) or None
        None without blocks or without an estimate of motion.
    """
    moved = found.volumes[list(motion.NAMES)]
    if subject.blocks is None or moved.isna().all(axis=None):
        return None
    return confounds.shared_by_chance(moved, subject.designs["blocks"].at(5.0)[:, 0], subject.split.train)


def cleaning_effect(subject):
    """How much the median voxel changes over time before and after ``realign``, ``detrend`` and ``confounds``.

    Returns
    -------
    dict or None
        None where none of them is asked for. ``before`` and ``after``: part of the run → standard deviation in % of the
        voxel's train mean; ``columns``: how many nuisance columns, apart from components; ``blocks``: the share of the
        film's boxcar at 5 s that these columns explain in train, NaN without blocks.
    """
    raw, split = as_measured(subject), subject.split
    if raw is subject.run:
        return None
    parts = {"train": split.train, "test": split.test}
    files = subject.run.files
    tables = [runs.read_confounds(part) for part in files.parts]
    columns = pd.concat(
        confounds.run_columns(files, subject.params, train=split.train, tables=tables), ignore_index=True
    )
    blocks = float("nan")
    if subject.blocks is not None:
        blocks = confounds.shared_variance(columns, subject.designs["blocks"].at(5.0)[:, 0], split.train)
    before, after = (quality.median_spread(run.volumes, parts, train=split.train) for run in (raw, subject.run))
    return {"before": before, "after": after, "columns": columns.shape[1], "blocks": blocks}


def as_measured(subject):
    """The subject's run before ``realign``, ``detrend`` and ``confounds``: its own where none of them is asked for."""
    plain = subject.params.model_copy(update=data.AS_MEASURED)
    if plain == subject.params:
        return subject.run
    level_on = level_volumes(subject.run.files, subject.split, plain)
    return data.load_run(subject.run.files, plain, train=subject.split.train, level_on=level_on)


def ensure_mlp(subject, *, progress=None):
    """Train the MLP at every candidate delay (or at the sweep's) and keep the best; see `candidates.ensure_mlp`."""
    delays = subject.params.mlp_delays or [ensure_sweep(subject).delay]
    return candidates.ensure_mlp(subject, delays, progress=progress, log=True)


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
    mlp, _ = candidates.networks()
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
    """Write what notebook 06 predicted: the four files that users of the earlier project know, and a NIfTI run.

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
        "Sources": brain.sources(run, subject.params),
    }
    where = {"mask": run.mask, "affine": run.affine, "t_r": run.files.t_r, "form_codes": run.files.form_codes}
    brain.write_volumes(subject.path(name), predicted, about=said, **where)
    chosen |= {name: facts[name] for name in ("kind", "delay", "model_name", "model_version", "bundle_hash")}
    subject.record("inference", **chosen, mse_test=mse)
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
