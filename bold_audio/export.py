"""Trained model → ``triton_models/<name>/<version>``: ONNX and bundle, whole or not at all, and Triton's config."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np

from bold_audio.bundle import ARRAYS_FILE, facts_hash, input_widths, next_version, shapes_in, version_folder
from bold_audio.files import (
    ModelError,
    file_md5,
    read_json,
    write_arrays,
    write_json,
    write_text,
    write_whole,
)
from bold_audio.locking import EXPORT_LOCK, lock

OPSET = 18
MAX_DIFFERENCE = 1e-4  # between torch and onnxruntime, relative to the largest value
PROBE_VOLUMES = 3
BATCH_BYTES = 64 * 2**20  # what the voxels of one batch may take in a server
QUEUE_DELAY = 1000  # microseconds that a request waits for others to share a batch with


def export_model(served, facts, *, extra, source, models_dir, name, version, overwrite=False):
    """Write a model version as ONNX with all that inference needs; whole or not at all.

    Parameters
    ----------
    served : served.ServedModel
    facts : dict
        What goes into ``bundle.json``: kind, delay, target, scaling, ``n_inputs``, ``n_previous``, …
    extra : dict of str to array
        Arrays of the bundle besides the model's own: ``mask``, own history.
    source : str
        Identity of what the model came from: see `bundle.find_same_model`.
    models_dir : path
        The model repository, ``triton_models``.
    name : str
        Model name.
    version : int or None
        Version number; None: the next free one.
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
    ParameterError
        If name or version cannot be one.
    """
    home = version_folder(models_dir, name, 1 if version is None else version).parent
    with lock(home / EXPORT_LOCK, wait=600, doing=f"export of {name}"):
        version = (
            next_version(models_dir, name) if version is None else version
        )  # under the lock: of two at once each has its own
        folder = home / str(version)
        if folder.exists() and not overwrite:
            raise ModelError(f"{name} version {version} exists - choose another model_version, or set overwrite_model")
        with write_whole(folder, replace_folder=overwrite) as part:
            part.mkdir()
            difference, bundle_hash = _write_version(served, facts, extra, source, part, name, version)
            write_config(folder.parent, facts, {version: bundle_hash}, n_voxels=len(served.level))
    return folder, difference


def _write_version(served, facts, extra, source, part, name, version):
    """All files of a version into ``part``; the difference between the runtimes, and the hash of all that is in it."""
    arrays = served.bundle_arrays() | {k: v for k, v in extra.items() if k != "mask"}
    arrays = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in arrays.items()}
    arrays["mask"] = np.packbits(extra["mask"])
    arrays |= _probe(served, facts, extra["mean_volume"])
    write_arrays(part / ARRAYS_FILE, arrays)
    sizes = {"n_voxels": len(served.level), "n_coordinates": len(served.to_coordinates), "opset": OPSET}
    about = facts | sizes | {"source": source, "arrays_md5": file_md5(part / ARRAYS_FILE)}
    about |= {"model_name": name, "model_version": version}
    bundle_hash = facts_hash(about)
    metadata = {"delay": f"{facts['delay']:.10g}", "model_name": name, "bundle_hash": bundle_hash}
    _write_onnx(served, part / "model.onnx", facts, metadata)
    difference = _parity(served, part / "model.onnx", facts)
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(f"torch and onnxruntime differ by {difference:.2g} - nothing was exported")
    write_text(part / "best_dt.txt", f"{facts['delay']:.10g}\n")
    made = {"bundle_hash": bundle_hash, "onnx_md5": file_md5(part / "model.onnx"), "max_difference": difference}
    write_json(part / "bundle.json", about | made)
    return difference, bundle_hash


def _answer(served, inputs):
    """Voxels and coordinates by torch, as arrays."""
    import torch

    with torch.no_grad():
        return [made.numpy() for made in served(*(torch.from_numpy(a) for a in inputs))]


def _probe(served, facts, mean_volume):
    """A stored input and its answer, by which a served model is known: see `bundle.Bundle.probe`."""
    X = np.random.default_rng(0).normal(size=(PROBE_VOLUMES, facts["n_inputs"])).astype(np.float32)
    previous = [np.tile(mean_volume, (PROBE_VOLUMES, facts["n_previous"]))] if facts["n_previous"] else []
    coordinates = _answer(served, [X, *(p.astype(np.float32) for p in previous)])[1]
    return {"probe_features": X, "probe_coordinates": coordinates}


def _write_onnx(served, path, facts, metadata):
    """One file, batch of any size, checked by onnx itself."""
    import onnx
    import torch

    widths = input_widths(facts, len(served.level))
    batch = torch.export.Dim("batch")
    with _quiet_exporter():
        torch.onnx.export(
            served,
            tuple(torch.zeros(2, width) for width in widths.values()),
            str(path),
            input_names=list(widths),
            output_names=["voxels", "coordinates"],
            dynamic_shapes=tuple({0: batch} for _ in widths),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    proto = onnx.load(path)
    # A repository has one config for all versions of a model, and these may differ in their number of coordinates.
    proto.graph.output[1].type.tensor_type.shape.dim[1].dim_param = "n_coordinates"
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, path)
    onnx.checker.check_model(str(path), full_check=True)


@contextlib.contextmanager
def _quiet_exporter():
    """Without the exporter's own deprecations and its word on packages that are not needed."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _parity(served, path, facts):
    """Largest difference between torch and onnxruntime, relative to the largest value of each output."""
    import onnxruntime

    rng = np.random.default_rng(0)
    widths = input_widths(facts, len(served.level))
    inputs = [rng.normal(size=(7, width)).astype(np.float32) for width in widths.values()]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    made = session.run(["voxels", "coordinates"], dict(zip(widths, inputs, strict=True)))
    pairs = zip(made, _answer(served, inputs), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in pairs)


def write_config(folder, facts, bundle_hashes, *, n_voxels):
    """Write ``config.pbtxt`` of a model through Triton's own protobuf, and read it back.

    It serves all versions, forms batches of requests, and names each version's bundle.

    Parameters
    ----------
    folder : path
        ``models_dir/name``.
    facts : dict
        ``n_inputs, n_previous`` of the version to come.
    bundle_hashes : dict of int to str
        Of the version to come; those of versions that are there are kept.
    n_voxels : int

    Raises
    ------
    ModelError
        If versions that are there take or give other shapes: a server has one config for all.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    folder, path = Path(folder), Path(folder) / "config.pbtxt"
    widths = input_widths(facts, n_voxels)
    config = model_config_pb2.ModelConfig(
        name=folder.name,
        backend="onnxruntime",
        default_model_filename="model.onnx",
        max_batch_size=max(1, BATCH_BYTES // (4 * (n_voxels + sum(widths.values())))),
    )
    for name, width in widths.items():
        config.input.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=[width])
    for name, width in {"voxels": n_voxels, "coordinates": -1}.items():
        config.output.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=[width])
    config.version_policy.all.SetInParent()
    config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY
    for version, theirs in shapes_in(folder).items():
        if version not in bundle_hashes:
            _check_shapes(folder.name, version, theirs, (widths, n_voxels))
            known = read_json(folder / str(version) / "bundle.json")
            bundle_hashes = bundle_hashes | {version: known["bundle_hash"]}
    for version, bundle_hash in sorted(bundle_hashes.items()):
        config.parameters[f"bundle_hash_{version}"].string_value = bundle_hash
    write_text(path, text_format.MessageToString(config))
    if text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig()) != config:
        raise ModelError(f"{path} does not read back as it was written - nothing was exported")


def _check_shapes(name, version, theirs, own):
    if theirs != own:
        had, new = (", ".join(f"{k} {v}" for k, v in widths.items()) for widths, _ in (theirs, own))
        raise ModelError(
            f"{name} version {version} takes {had} and gives {theirs[1]} voxels, this model {new} and {own[1]} - "
            "choose another model_name"
        )
