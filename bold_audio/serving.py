"""A subject's models in the repository ``triton_models``, and predictions by whatever runtime answers."""

import sys
import time
import timeit
from functools import partial

import numpy as np
import pandas as pd

from bold_audio import bundle, candidates, export, models, renderer, runtimes
from bold_audio.delays import ensure_sweep
from bold_audio.files import ModelError, file_md5, fingerprint, read_json
from bold_audio.prepare import scans_in
from bold_audio.space import Space, SpatialHistory


def ensure_export(subject, kind="mlp"):
    """Export a subject's model to the repository, unless it is there already.

    Parameters
    ----------
    subject : Subject
    kind : {"mlp", "history_sound"}

    Returns
    -------
    version : int
    max_difference : float or None
        Torch against onnxruntime; None where the version was there already.
    """
    params, name = subject.params, subject.params.exported_as(kind)
    models_dir = params.resolve(params.models_dir)
    make, facts, key = {"mlp": _mlp_to_serve, "history_sound": _history_sound_to_serve}[kind](subject)
    source = fingerprint(key, subject.result_key(sys.modules[__name__]))
    if params.model_name is None:
        n_voxels, replaced = subject.run.n_voxels, params.model_version if params.overwrite_model else None
        widths = bundle.input_widths(facts, n_voxels)
        name = bundle.fitting_name(models_dir, name, widths, n_voxels, replaced=replaced)
    there = bundle.find_same_model(models_dir, name, source, version=params.model_version)
    if there is not None and params.model_version in (None, there) and _is_whole(models_dir, name, there):
        _record(subject, kind, models_dir / name / str(there))
        return there, None
    network, extra = make()
    folder, difference = export.export_model(
        network,
        facts,
        extra=extra | {"mask": subject.run.mask, "mean_volume": _train_mean(subject)},
        source=source,
        models_dir=models_dir,
        name=name,
        version=params.model_version or (there if params.overwrite_model else None),
        overwrite=params.overwrite_model,
    )
    _record(subject, kind, folder)
    return int(folder.name), difference


def _is_whole(models_dir, name, version):
    """Whether a version can be opened; one that was damaged is exported again."""
    try:
        bundle.open_bundle(models_dir, name, version)
    except ModelError:
        return False
    return True


def exported_name(params, kind):
    """Name in ``models_dir`` of a subject's model: the one of its newest export, if its parameters name none.

    Models of other shapes have names of their own, see `bundle.fitting_name`.
    """
    name = params.exported_as(kind)
    known = read_json(params.subject_path / "provenance.json", default={}).get(f"export_{kind}", {}).get("model_name")
    names = [path.name for path in bundle.folders_of(params.resolve(params.models_dir), name)]
    return known if params.model_name is None and known in names else name


def _record(subject, kind, folder):
    """Record an exported version, unless it is recorded already: a process may have been killed after the export."""
    about = read_json(folder / "bundle.json")
    facts = {name: about.get(name) for name in ("model_name", "model_version", "bundle_hash", "max_difference")}
    known = subject.recorded(f"export_{kind}")
    if any(known.get(name) != value for name, value in facts.items()):
        subject.record(f"export_{kind}", **facts)


def served_code():
    """The module of the served network, which needs torch: imported only where a network is made to be exported."""
    from bold_audio import served

    return served


def _train_mean(subject):
    return np.asarray(subject.Y[subject.split.train]).mean(axis=0, dtype=np.float64)


def _mlp_to_serve(subject):
    """How to make the MLP that is served, its facts, and what it depends on."""
    params = subject.params
    delays = params.mlp_delays or [ensure_sweep(subject).delay]
    model, facts, _, _ = candidates.ensure_mlp(subject, delays)
    checkpoint_md5 = file_md5(params.checkpoint_path / "best.ckpt")
    facts = facts | {"checkpoint_md5": checkpoint_md5, "training": _how_chosen(subject, "mlp")}

    def make():
        extra = {}
        if facts["target"] == "whitened":
            X = network_inputs(subject, facts)[subject.split.train]
            mlp, _ = candidates.networks()
            extra["sound_level"] = mlp.mlp_output(model, X).mean(axis=0, dtype=np.float64)
            past, _ = models.fit_subject(subject, facts["delay"], names=("history",))["history"]
            extra |= {"history_phi": past.phi, "history_level": past.intercept} | _space_arrays(past.space)
        return served_code().from_mlp(model), extra

    return make, facts, checkpoint_md5


def _how_chosen(subject, step):
    """How the delay and, of a network, the epoch were chosen, as the step recorded it."""
    known = subject.recorded(step)
    kept = [name for name in known if name in ("delay", "candidates", "why", "region") or name.startswith("best_")]
    return {name: known[name] for name in kept}


def _space_arrays(found):
    """Components of the previous volume as arrays; nothing where there are none."""
    if found is None:
        return {}
    return {
        "history_space_centre": found.space.centre,
        "history_space_loadings": found.space.loadings,
        "history_space_weights": found.weights,
    }


def _history_sound_to_serve(subject):
    """How to make the ``history_sound`` that is served, its facts, and what it depends on."""
    found = ensure_sweep(subject)
    fitted, _ = models.fit_subject(subject, found.delay, follows=found.follows, names=("history_sound",))[
        "history_sound"
    ]
    n_previous = max(len(fitted.phi), fitted.space.order if fitted.space else 0)
    facts = candidates.model_facts(subject, found.delay)
    facts |= {"kind": "history_sound", "target": "volume", "n_previous": n_previous}
    facts |= {"training": _how_chosen(subject, "dt_sweep")}
    return lambda: (served_code().from_linear(fitted), {}), facts, (found.delay, n_previous)


def open_exported(subject, kind="mlp", **options):
    """Open an exported model of a subject: see `open_named`."""
    return open_named(subject.params, exported_name(subject.params, kind), **options)


def open_named(params, name, *, version=None, runtime=None, returns=None):
    """Open a model of the repository by its name, in the runtime that the parameters name where none is given.

    Returns
    -------
    runtimes.Predictor
    """
    address = {"url": params.triton_url, "protocol": params.triton_protocol, "timeout": params.triton_timeout}
    return runtimes.open_predictor(
        runtime or params.runtime,
        models_dir=params.resolve(params.models_dir),
        name=name,
        version=version or params.model_version,
        checkpoint=params.checkpoint_path / "best.ckpt",
        triton=address | {"progress": renderer.somebody_watches()},
        returns=returns or params.returns,
    )


def compare_runtimes(subject, exported, *, runtimes):
    """Ask every runtime for the volumes after train, as voxels and as coordinates, and lay the answers side by side.

    Parameters
    ----------
    subject : Subject
    exported : dict of str to (int, …)
        Kind of model → version, and what else `ensure_export` returns.
    runtimes : sequence of str
        The first one is what the others are compared with.

    Returns
    -------
    DataFrame
        ``model, runtime, returns``; ``difference``, the largest from the first answer, in scaled BOLD as the MSE is;
        ``seconds``.
    """
    lines = []
    for kind, (version, *_) in exported.items():
        first = None
        for runtime in runtimes:
            for returns in ("voxels", "coordinates"):
                predictor = open_exported(subject, kind, version=version, runtime=runtime, returns=returns)
                inputs = measured_inputs(subject, predictor.facts, subject.after_train)
                begun = time.perf_counter()
                made = predictor(*inputs)
                took = time.perf_counter() - begun
                first = made if first is None else first
                difference = float(np.abs(made - first).max() / np.ptp(subject.run.value_range))
                lines.append((kind, runtime, returns, difference, took))
    return pd.DataFrame(lines, columns=["model", "runtime", "returns", "difference", "seconds"])


def network_inputs(subject, facts):
    """Features of every volume as the model wants them, array of shape (n_volumes, n_features).

    Raises
    ------
    ModelError
        If the model was trained on another subject, mask or set of features, or on features or a scan that were made in
        another way.
    """
    _check_made_alike(subject, facts)
    raw = subject.designs["sound"].at(facts["delay"])
    bundle.check_fits(
        facts,
        n_features=raw.shape[1],
        subject=subject.params.subject,
        mask_hash=bundle.mask_fingerprint(subject.run.mask, subject.run.affine),
        allow_other_subject=subject.params.allow_other_subject,
    )
    return (raw - np.array(facts["feature_mean"])) / np.array(facts["feature_scale"])


def _check_made_alike(subject, facts):
    """Refuse to give a model features, or a scan, that were made in another way than those it was trained on."""
    params, parts = subject.params, subject.run.files.parts
    names = (*candidates.SOUND, *candidates.GIVEN) if params.feature_source == "audio" else candidates.GIVEN
    now = {name: getattr(params, name) for name in names} | {"n_bands": subject.sound.n_bands}
    if scans_in(facts["input_md5"]) & scans_in(subject.input_md5):  # another run has an onset of its own
        now["onsets"] = [part.onset for part in parts]
    for name, value in now.items():
        if facts.get(name) != value:
            told = {"n_bands": "mel bands", "onsets": "onset of the sound (s)"}.get(name, name)
            raise ModelError(
                f"the model was made with {told} {facts.get(name)}, here it is {value} - set what it was made with, or "
                "train and export a model with what is set now"
            )


def measured_inputs(subject, facts, volumes):
    """All that a model is given for ``volumes``.

    Parameters
    ----------
    subject : prepare.Subject
    facts : dict
        Of the model: ``delay``, ``n_previous`` and more.
    volumes : array of int

    Returns
    -------
    tuple of array
        Features (n, n_features) and, where the model has them, measured previous volumes (n, n_previous, n_voxels),
        nearest first.
    """
    X = network_inputs(subject, facts)[volumes]
    lags = range(1, facts["n_previous"] + 1)
    return (X, np.stack([subject.Y[volumes - lag] for lag in lags], axis=1)) if lags else (X,)


def served_row(subject, predictor, *, history=None):
    """An exported model as a row beside the linear ones, all it needs taken from its bundle.

    Parameters
    ----------
    subject : Subject
    predictor : runtimes.Predictor
    history : models.Row, optional
        This scan's own history, which the sound's part of another person's model is added to.

    Returns
    -------
    models.Row

    Raises
    ------
    ModelError
        If the model is another person's and cannot be carried over.
    """
    facts, arrays, run = predictor.facts, predictor.bundle.arrays, subject.run
    X = network_inputs(subject, facts)
    common = {"target": facts["target"], "n_voxels": run.n_voxels, "n_previous": facts["n_previous"]}
    if facts["target"] != "whitened":
        if facts["mask_hash"] != bundle.mask_fingerprint(run.mask, run.affine):
            raise ModelError(
                f"a {facts['kind']} of target {facts['target']} predicts whole volumes of the voxels it was fitted on, "
                "not of this scan - use a model of target whitened"
            )
        reference = models.REFERENCES.get(facts["kind"], "constant")
        return models.network_row(predictor, X, reference=reference, **common)
    level, predict = arrays["sound_level"], predictor
    if facts["mask_hash"] != bundle.mask_fingerprint(run.mask, run.affine):
        level, predict = np.zeros(run.n_voxels, np.float32), _carried_over(subject, predictor)
    elif facts["subject"] == subject.params.subject:
        history = history_row(arrays)
    return models.network_row(predict, X, history=history, level=level, **common)


def history_row(arrays):
    """Own history as a bundle keeps it, as a row."""
    space = None
    if "history_space_loadings" in arrays:
        parts = [arrays[f"history_space_{name}"] for name in ("centre", "loadings", "weights")]
        space = SpatialHistory(Space(*parts[:2]), parts[2])
    level = arrays["history_level"]
    return models.Row(arrays["history_phi"], lambda volumes: np.tile(level, (len(volumes), 1)), space)


def _carried_over(subject, predictor):
    """The sound's part of another person's model, by place: 0 in voxels that its mask does not have."""
    facts, arrays, run = predictor.facts, predictor.bundle.arrays, subject.run
    if list(run.mask.shape) != facts["mask_shape"] or not np.allclose(run.affine, facts["affine"], atol=1e-3):
        raise ModelError(
            f"the model of sub-{facts['subject']} is of a grid {facts['mask_shape']}, this scan of another "
            f"{list(run.mask.shape)}, or of another place - only scans on one grid share a model"
        )
    number = np.full(run.mask.shape, -1)
    number[arrays["mask"]] = np.arange(facts["n_voxels"])
    theirs = number[run.mask]

    def predict(X):
        s = predictor(X) - arrays["sound_level"]
        return np.where(theirs >= 0, s[:, np.maximum(theirs, 0)], np.float32(0))

    return predict


def time_calls(subject, predictor, *, sizes=(1, 8, 64), repeats=7):
    """Time one call of a model by the number of volumes in it, at most those of the test part.

    Parameters
    ----------
    subject : Subject
    predictor : runtimes.Predictor
    sizes : sequence of int
        Volumes per call.
    repeats : int

    Returns
    -------
    DataFrame
        ``s per call``, the median; the index is ``volumes per call``.
    """
    inputs = measured_inputs(subject, predictor.facts, subject.split.test)
    timing = {}
    for size in sorted({min(size, len(subject.split.test)) for size in sizes}):
        few = [array[:size] for array in inputs]
        timing[size] = np.median(timeit.repeat(partial(predictor, *few), number=1, repeat=repeats))
    return pd.Series(timing, name="s per call").rename_axis("volumes per call").to_frame()
