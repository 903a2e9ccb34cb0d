"""One MLP per candidate delay of a subject, the best kept; each training is a run in MLflow."""

import shutil
from functools import partial

import numpy as np
import pandas as pd

from bold_audio import brain_figures, coordinates, data, evidence, figures, gram, renderer, space, tracking
from bold_audio.bundle import mask_fingerprint
from bold_audio.coordinates import MONITOR
from bold_audio.files import AccessError, fingerprint, project_root, write_table, write_text
from bold_audio.locking import lock
from bold_audio.provenance import git_commit
from bold_audio.splits import stretches

HISTORY = "mlp_history.tsv"
LOGGED = "Logged to MLflow."
HUGE = 1e300
SOUND = ("sample_rate", "n_mfcc", "n_fft", "hop_length")  # how MFCCs are made
# What else decides what a model is given: features at all, and how the scan was prepared.
GIVEN = (
    "feature_source", "response", "sound_lags", "realign", "detrend", "smoothing_fwhm", "downsample", "confounds",
)  # fmt: skip


def _this():
    """This module, whose own code the results depend on too."""
    import bold_audio.candidates as this

    return this


def networks():
    """The modules `mlp` and `training`: torch and Lightning take seconds to import, and most notebooks need neither."""
    from bold_audio import mlp, training

    return mlp, training


def inner_validation(subject):
    """The last block of train to validate on, and what lies before its gap to fit on."""
    return subject.folds[-1]


def subject_targets(subject):
    """What the network has to predict, from the volumes before the validation block and its gap alone."""
    params, whitening = subject.params, None
    fit, val = inner_validation(subject)
    if params.target == "whitened":
        order = params.history_order
        volumes = np.arange(fit[0] - order, fit[-1] + 1)
        whitening = gram.shared_filter(
            subject.Y, volumes=volumes, train=fit, order=order, chunk_voxels=params.chunk_voxels
        )
    return coordinates.make_targets(
        subject.Y,
        target=params.target,
        fit=fit,
        val=val,
        whitening=whitening,
        n_components=params.n_components,
        smooth=partial(data.smooth_rows, subject.run, fwhm=params.sweep_fwhm) if params.sweep_fwhm else None,
        value_range=subject.run.value_range,
    )


def previous_scores(subject, fit):
    """Scores of the previous volumes, nearest first, and the space they are in; nothing where none are asked for.

    Returns
    -------
    array of shape (n_volumes, mlp_history · n_components)
        The first rows of the array, before which there are no volumes, hold 0. No volume of the split is among them,
        and none has another run's volumes: `prepare.open_subject` leaves out as many at the start of every run.
    space : Space or None
    """
    params = subject.params
    if not params.mlp_history:
        return np.zeros((len(subject.Y), 0)), None
    found = space.principal_space(
        subject.Y, rows=fit, n_components=params.mlp_history_components, chunk_voxels=params.chunk_voxels
    )
    scores = found.scores(subject.Y)
    lagged = [np.vstack([np.zeros((lag, scores.shape[1])), scores[:-lag]]) for lag in range(1, params.mlp_history + 1)]
    return np.hstack(lagged), found


def training_key(subject):
    """Hash of all that a training depends on but its delay."""
    return subject.result_key(*networks(), coordinates, evidence, gram, space, _this())


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
    list of training.TrainedMLP
    warnings : list of str
        What the reader should know about the logging.

    Raises
    ------
    AccessError
        If ``mlflow_required`` and the server does not take what is logged.
    """
    params, key, (_, training) = subject.params, training_key(subject), networks()
    if params.mlflow_required:
        tracking.require_server(params.mlflow_uri)
    targets = subject_targets(subject)
    past, found = previous_scores(subject, targets.fit)
    trained, notes = [], []
    for delay in delays:
        folder = params.checkpoint_path / "training" / f"dt{delay:g}-{key}"
        one = training.train_mlp(
            np.hstack([subject.scaled("sound", delay)[0], past]),
            targets,
            delay=delay,
            settings=params,
            folder=folder,
            space=found,
            n_previous=params.mlp_history,
            progress=progress,
        )
        trained.append(one)
        notes.append(_log(subject, one, targets, key=fingerprint(key, delay), folder=folder))
        if notes[-1] and params.mlflow_required:
            raise AccessError(f"{notes[-1]}, or set mlflow_required false")
    return trained, sorted({note for note in notes if note})


def _log(subject, one, targets, *, key, folder):
    """One training as a run in MLflow, with its pictures and its model."""
    params, (mlp, _) = subject.params, networks()
    name = f"sub{params.subject}_dt{one.delay:g}"
    mlp.save_checkpoint(folder / "whole" / "best.ckpt", one.model, model_facts(subject, one.delay))
    losses = pd.DataFrame(one.losses).assign(run=name)
    true, predicted = one.middle
    run, k = subject.run, targets.val[len(targets.val) // 2]
    said = params.data_note or params.label  # simulated data say so on every picture
    pictures = [
        figures.plot_loss(losses),
        brain_figures.plot_truth_prediction(
            true,
            predicted,
            title=f"{name} ({said}): {params.target}, middle of the validation block, without its mean",
            unit="raw intensity (a.u.)",
            time=run.files.volume_times[k],
            affine=run.shown_affine,
            mask=run.mask,
            names=list(run.regions)[1:],
        ),
    ]
    write_text(folder / "whole" / "figures.html", renderer.offline_page(pictures, title=f"{params.label} {name}"))
    return tracking.log_run(
        name,
        key=key,
        experiment=params.mlflow_experiment or params.label,
        parameters={**params.model_dump(), "delay": one.delay, "kept_share": one.kept, **subject.input_md5},
        losses=one.losses,
        files=[folder / "whole" / "best.ckpt", folder / "whole" / "figures.html"],
        tags={"mlflow.source.git.commit": git_commit(project_root()) or "unknown"},
        uri=params.mlflow_uri,
        local_folder=params.mlflow_path,
    )


def model_facts(subject, delay):
    """What inference needs besides the weights of the subject's MLP; plain values only."""
    params, run = subject.params, subject.run
    _, mean, scale = subject.scaled("sound", delay)
    return {
        **{name: getattr(params, name) for name in (*SOUND, *GIVEN, "target")},
        "kind": "mlp",
        "delay": float(delay),
        "t_r": run.files.t_r,
        "subject": params.subject,
        "dataset": params.dataset,
        "n_inputs": len(mean),
        "n_previous": params.mlp_history,
        "feature_mean": [float(v) for v in mean],
        "feature_scale": [min(float(v), HUGE) for v in scale],  # JSON knows no infinity
        "mask_shape": list(run.mask.shape),
        "affine": np.asarray(run.affine, dtype=float).tolist(),
        "mask_hash": mask_fingerprint(run.mask, run.affine),
        "value_range": list(run.value_range),
        "train_volumes": [int(subject.split.train[0]), int(subject.split.train[-1])],
        # Of several runs, gaps and test parts of the earlier ones lie between the first volume and the last.
        "train_stretches": [[int(one[0]), int(one[-1])] for one in stretches(subject.split.train)],
        "n_runs": len(run.files.parts),
        "input_md5": subject.input_md5,
        "sound": subject.sound.source,
        "n_bands": subject.sound.n_bands,
        "onsets": [part.onset for part in run.files.parts],
    }


def ensure_mlp(subject, candidates, *, progress=None, log=False):
    """Train the MLP at every candidate delay and keep the best, unless ``best.ckpt`` is this very training.

    Two processes that want the same subject's model are safe: the second waits for the first. One that was killed
    goes on where it was.

    Parameters
    ----------
    subject : Subject
    candidates : sequence of float
        Delays, in seconds.
    progress : bool, optional
        Whether to draw progress bars; without it, where somebody watches.
    log : bool
        Whether runs of a training that is there already are sent to the server that is named now.

    Returns
    -------
    model : mlp.AudioFmriMLP
        Folded network: features (and previous volumes) → voxels.
    facts : dict
        With ``delay``, the model's own.
    losses : DataFrame
        ``run, delay, epoch, train_MSE``, and every few epochs ``val_MSE, val_Pearson, val_evidence, …``.
    notes : list of str
        Where the runs were logged, or why they were not.

    Raises
    ------
    AccessError
        If ``mlflow_required`` and the server does not take what is logged.
    """
    mlp, _ = networks()
    folder, key = subject.params.checkpoint_path, fingerprint(training_key(subject), list(candidates))
    with lock(folder / ".training.lock", wait=3600, doing=f"training of sub-{subject.params.subject}"):
        notes = []
        if not (subject.has("mlp", key, HISTORY) and (folder / "best.ckpt").is_file()):
            progress = renderer.somebody_watches() if progress is None else progress
            notes = _train_and_keep_best(subject, candidates, key=key, progress=progress)
            notes = notes or [LOGGED]
        elif log:
            notes = [_log_again(subject, candidates)]
        shutil.rmtree(folder / "training", ignore_errors=True)  # also what a killed process left
        model, facts = mlp.load_checkpoint(folder / "best.ckpt")
        # What was written is what is shown, by whichever process.
        return model, facts, pd.read_csv(subject.path(HISTORY), sep="\t"), notes


def _log_again(subject, candidates):
    """Send a training's runs to the server that is named now, unless it has them: what came of it."""
    params, key = subject.params, training_key(subject)
    if params.mlflow_uri is None:
        return "Trained earlier, nothing was logged now."
    try:
        keys = {fingerprint(key, delay) for delay in candidates}
        sent, known = tracking.send_runs(params.mlflow_path, params.mlflow_uri, keys=keys)
    except AccessError as error:
        if params.mlflow_required:
            raise
        return f"Trained earlier; its runs were not sent: {error}"
    if not sent + known:
        return "Trained earlier, and logged to a server then: there is nothing in the local store to send."
    return f"Trained earlier; {sent} of its runs were sent to MLflow now, {known} were there already."


def _train_and_keep_best(subject, candidates, *, key, progress):
    """Train at every delay, write the best with the losses of all, and record it last: what to know of the logging."""
    mlp, _ = networks()
    trained, notes = train_candidates(subject, candidates, progress=progress)
    best = max(trained, key=lambda one: one.best[MONITOR])
    mlp.save_checkpoint(subject.params.checkpoint_path / "best.ckpt", best.model, model_facts(subject, best.delay))
    losses = pd.concat(
        pd.DataFrame(one.losses).assign(run=f"sub{subject.params.subject}_dt{one.delay:g}", delay=one.delay)
        for one in trained
    )
    write_table(subject.path(HISTORY), losses)
    subject.record(
        "mlp",
        key=key,
        delay=best.delay,
        candidates=list(candidates),
        why="the only candidate" if len(trained) == 1 else f"largest {MONITOR} on the last block of train",
        kept_share=best.kept,
        **{f"best_{name}": value for name, value in best.best.items()},
    )
    return notes
