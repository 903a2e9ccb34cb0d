"""Trained model → ``triton_models/<name>/<version>``, and predictors that answer alike from it."""

import contextlib
import io
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from bold_audio.files import (
    DataError,
    ModelError,
    file_md5,
    fingerprint,
    read_json,
    write_json,
    write_text,
    write_whole,
)

OPSET = 18
BUNDLE_KEYS = {"delay", "onnx_md5"}
MAX_DIFFERENCE = 1e-4  # between torch and onnxruntime, relative to the largest value


def mask_fingerprint(mask, affine):
    """Hash of a mask and its place in the head: a model serves the voxels it was trained on."""
    return fingerprint(list(mask.shape), np.packbits(mask).tobytes().hex(), np.round(affine, 4).tolist())


def next_version(models_dir, name):
    """The first version number above all that exist."""
    folder = Path(models_dir) / name
    taken = [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()]
    return max(taken, default=0) + 1


def find_same_model(models_dir, name, checkpoint):
    """The version that was exported from this very checkpoint; None where there is none."""
    folder = Path(models_dir) / name
    for path in folder.glob("[0-9]*/bundle.json"):
        try:
            same = _read_bundle(path).get("checkpoint_md5") == file_md5(checkpoint)
        except ModelError:
            continue  # a damaged old version is not this model, and stops nobody from exporting
        if same:
            return int(path.parent.name)
    return None


def export_model(model, facts, *, checkpoint, models_dir, name, version, overwrite=False):
    """Write a model version as ONNX with all that inference needs; whole or not at all.

    Parameters
    ----------
    model : AudioFmriMLP
        Folded network, features → voxels.
    facts : dict
        What goes into ``bundle.json`` beside the model's shape: delay, target, scaling, …
    checkpoint : path
        The file the model came from; its MD5 is kept.
    models_dir : path
        The model repository, ``triton_models``.
    name : str
        Model name.
    version : int
        Version number.
    overwrite : bool
        Whether an existing version may be replaced.

    Returns
    -------
    folder : Path
        ``models_dir/name/version``.
    max_difference : float
        Largest difference between torch and onnxruntime on random features, relative to the largest value.

    Raises
    ------
    ModelError
        If the version exists, or the two runtimes disagree.
    """
    folder = Path(models_dir) / name / str(version)
    if folder.exists() and not overwrite:
        raise ModelError(f"{name} version {version} exists - choose another model_version, or set overwrite_model")
    with write_whole(folder, replace_folder=overwrite) as part:
        part.mkdir()
        _write_onnx(model, part / "model.onnx", {"delay": f"{facts['delay']:.10g}", "model_name": name})
        difference = _parity(model, part / "model.onnx")
        if not difference <= MAX_DIFFERENCE:
            raise ModelError(f"torch and onnxruntime differ by {difference:.2g} - nothing was exported")
        write_text(part / "best_dt.txt", f"{facts['delay']:.10g}\n")
        shape = {"n_features": model.hparams.n_features, "n_voxels": model.hparams.n_outputs, "opset": OPSET}
        hashes = {"checkpoint_md5": file_md5(checkpoint), "onnx_md5": file_md5(part / "model.onnx")}
        write_json(part / "bundle.json", {**facts, **shape, **hashes, "model_name": name, "model_version": version})
    return folder, difference


def _write_onnx(model, path, metadata):
    """One file, batch of any size, checked by onnx itself."""
    import onnx
    import torch

    widths = _widths(model)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            model,
            tuple(torch.zeros(2, width) for width in widths.values()),
            str(path),
            input_names=list(widths),
            output_names=["voxels"],
            dynamic_shapes=tuple({0: batch} for _ in widths),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, path)
    onnx.checker.check_model(str(path), full_check=True)


def _widths(model):
    """Inputs of a network and their widths: features and, where it has them, previous volumes."""
    widths = {"features": model.hparams.n_features}
    return widths | ({"previous": model.hparams.n_past} if model.hparams.n_past else {})


def _parity(model, path):
    """Largest difference between torch and onnxruntime, relative to the largest value."""
    from bold_audio.mlp import mlp_output

    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(7, width)).astype(np.float32) for width in _widths(model).values()]
    expected = mlp_output(model, *inputs)
    return float(np.abs(_session(path)(*inputs) - expected).max() / max(np.abs(expected).max(), 1e-6))


def _session(path):
    """Open an ONNX file in onnxruntime; return a function features (and previous volumes) → voxels."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for each kind of damage
        raise ModelError(f"{path} cannot be opened ({type(error).__name__}) - export it again") from error

    def predict(X, previous=None):
        inputs = {"features": X} | ({} if previous is None else {"previous": np.reshape(previous, (len(X), -1))})
        return session.run(["voxels"], {name: np.asarray(a, dtype=np.float32) for name, a in inputs.items()})[0]

    return predict


def open_predictor(runtime, *, models_dir, name, version, checkpoint):
    """Open a trained model in the runtime asked for; no other is ever taken instead.

    Parameters
    ----------
    runtime : {"onnxruntime", "torch"}
        ``onnxruntime`` reads ``models_dir/name/version``, ``torch`` the checkpoint, the last
        trained model.
    models_dir, name, version, checkpoint
        Where they are. ``version`` None means the newest.

    Returns
    -------
    predict : function
        Scaled features (n, n_features), and previous volumes (n, n_previous, n_voxels) where the model has them as
        inputs → array (n, n_voxels), float32.
    facts : dict
        What the model was made for: delay, target, feature settings and scaling, mask hash, …

    Raises
    ------
    ModelError
        If there is no such model, or its files contradict each other.
    """
    if runtime == "torch":
        from bold_audio.mlp import load_checkpoint, mlp_output

        model, facts = load_checkpoint(checkpoint)
        return partial(mlp_output, model), facts
    version = version or next_version(models_dir, name) - 1
    folder = Path(models_dir) / name / str(version)
    facts = _read_bundle(folder / "bundle.json")
    if facts is None or not (folder / "model.onnx").is_file():
        raise ModelError(f"no model {name} version {version} in {models_dir} - run notebook 05 to export it")
    _check_delay(folder / "best_dt.txt", facts["delay"])
    if file_md5(folder / "model.onnx") != facts["onnx_md5"]:
        raise ModelError(f"{folder / 'model.onnx'} is not the file that bundle.json describes - export it again")
    return _session(folder / "model.onnx"), facts


def _read_bundle(path):
    """What a version's bundle says; None where there is none."""
    try:
        facts = read_json(path)
    except DataError as error:
        raise ModelError(f"{path} is damaged - export the model again") from error
    if facts is not None and not (isinstance(facts, dict) and set(facts) >= BUNDLE_KEYS):
        raise ModelError(f"{path} lacks what inference needs - export the model again")
    return facts


def _check_delay(path, delay):
    """``best_dt.txt`` is a copy for people; it must say what the bundle says."""
    text = ""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace").strip()
        written = float(text)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing - export the model again") from None
    except ValueError:
        raise ModelError(f"{path} holds {text[:40]!r}, not a delay in s - export the model again") from None
    if not abs(written - delay) <= 1e-6:
        raise ModelError(f"{path} says {written:g} s, but this model was trained at {delay:g} s - export it again")


def check_fits(facts, *, n_features, subject, mask_hash):
    """Refuse a model that was trained on another subject, mask or set of features.

    Raises
    ------
    ModelError
    """
    if facts["n_inputs"] != n_features:
        raise ModelError(
            f"the model expects {facts['n_inputs']} features, the parameters make {n_features} - set n_mfcc"
        )
    if facts["subject"] != subject or facts["mask_hash"] != mask_hash:
        raise ModelError(
            f"the model was trained on sub-{facts['subject']} with mask {facts['mask_hash']}, this is sub-{subject} "
            f"with mask {mask_hash} - train a model for this scan"
        )
