"""One model version, three runtimes that answer alike: torch, onnxruntime, Triton."""

from functools import partial

import numpy as np

from bold_audio.bundle import input_widths, open_bundle
from bold_audio.files import ModelError, ParameterError, file_md5

OUTPUTS = ("voxels", "coordinates")
RETURNS = {"torch": "voxels", "onnxruntime": "voxels", "triton": "coordinates"}  # the faster one: benchmarks/serving.py


class Predictor:
    """A model version that answers, whatever computes.

    Parameters
    ----------
    bundle : bundle.Bundle
    run : callable
        (inputs, output) → array: dict of float32 arrays of shape (n, width), and ``voxels`` or ``coordinates``.
    returns : str
        What is asked of the runtime for volumes: ``voxels``, or ``coordinates`` that are unfolded here.
    """

    def __init__(self, bundle, run, *, returns="voxels"):
        self.bundle, self.run, self.returns = bundle, run, returns

    @property
    def facts(self):
        """What the model was made for: delay, target, feature settings and scaling, mask hash, …"""
        return self.bundle.facts

    def __call__(self, X, previous=None):
        """Volumes, array of shape (n, n_voxels), float32.

        Parameters
        ----------
        X : array of shape (n, n_features)
            Scaled features.
        previous : array of shape (n, n_previous, n_voxels), optional
            Measured previous volumes, nearest first, for a model that has them as inputs.

        Raises
        ------
        ModelError
            If the inputs are not what the model takes, or an answer is not finite.
        """
        previous = self._stacked(X, previous)
        if self.returns == "voxels":
            return self._ask("voxels", X, previous)
        return self.bundle.unfold(self.coordinates(X, previous), previous)

    def coordinates(self, X, previous=None):
        """Coordinates of volumes, array of shape (n, n_coordinates): see `bundle.Bundle.unfold`."""
        return self._ask("coordinates", X, self._stacked(X, previous))

    def _stacked(self, X, previous):
        """Previous volumes as array of shape (n, n_previous, n_voxels), from that or from rows of them, float32."""
        n, n_voxels = self.facts["n_previous"], self.facts["n_voxels"]
        if previous is None or not n:
            return previous
        previous = np.asarray(previous, np.float32)
        if previous.shape not in ((len(X), n, n_voxels), (len(X), n * n_voxels)):
            raise ModelError(
                f"the model expects previous volumes of shape {(len(X), n, n_voxels)}, got {previous.shape} - give "
                f"{n} for each row, nearest first"
            )
        return previous.reshape(len(X), n, n_voxels)

    def _ask(self, output, X, previous):
        inputs = self._inputs(X, previous)
        width = {"voxels": self.facts["n_voxels"], "coordinates": self.bundle.n_coordinates}[output]
        if not len(X):
            return np.empty((0, width), np.float32)
        made = self.run(inputs, output)
        if made.shape != (len(X), width) or not np.isfinite(made).all():
            what = "with numbers that are not finite" if made.shape == (len(X), width) else f"in shape {made.shape}"
            raise ModelError(
                f"the model answered {what}, {output} of {(len(X), width)} were asked for - export it again"
            )
        return made

    def _inputs(self, X, previous):
        """Inputs by name, float32, of the widths that the model takes, all of them finite."""
        given = {"features": X} | ({} if previous is None else {"previous": _rows_of(previous)})
        widths = input_widths(self.facts, self.facts["n_voxels"])
        if set(given) != set(widths):
            raise ModelError(f"the model takes {' and '.join(widths)}, got {' and '.join(given)} - give just these")
        for name, array in given.items():
            array = given[name] = np.ascontiguousarray(array, dtype=np.float32)
            if array.ndim != 2 or array.shape[1] != widths[name]:
                raise ModelError(
                    f"the model expects {name} of width {widths[name]}, got shape {array.shape} - make them with the "
                    "settings of the bundle"
                )
            if not np.isfinite(array).all():
                raise ModelError(f"{name} hold NaN or infinite numbers - leave out volumes without sound")
        return given


def _rows_of(previous):
    """Previous volumes one after the other in a row: array of shape (n, n_previous · n_voxels)."""
    previous = np.asarray(previous)
    return previous.reshape(len(previous), int(np.prod(previous.shape[1:])))


def open_predictor(runtime, *, models_dir, name, version=None, checkpoint=None, triton=None, returns=None):
    """Open a version of a model in the runtime asked for; no other is ever taken instead.

    Whatever the runtime, the delay and all else that is not arithmetic come from the version's bundle.

    Parameters
    ----------
    runtime : {"onnxruntime", "torch", "triton"}
        ``onnxruntime`` reads ``model.onnx``; ``torch`` the checkpoint that the version was exported from (a linear
        model has none, its arrays are all there is); ``triton`` asks a server.
    models_dir, name, version
        Where the version is; None: the newest.
    checkpoint : path, optional
        For ``torch``.
    triton : dict, optional
        For ``triton``: ``url, protocol, timeout``, see `triton.TritonModel`.
    returns : {"voxels", "coordinates"}, optional
        What is asked of the runtime for volumes; None: the faster one.

    Returns
    -------
    Predictor

    Raises
    ------
    ParameterError
        If there is no such runtime.
    ModelError, AccessError
        If there is no such model, its files or the server's contradict each other, or the server is not there.
    """
    if runtime not in RETURNS:
        raise ParameterError(f"runtime must be {', '.join(sorted(RETURNS))}, got {str(runtime)[:60]!r} - choose one")
    bundle = open_bundle(models_dir, name, version)
    run = {"onnxruntime": _open_onnx, "torch": partial(_open_torch, checkpoint=checkpoint)}.get(runtime)
    if run is None:
        from bold_audio.triton import open_served

        run = partial(open_served, **(triton or {}))
    return Predictor(bundle, run(bundle), returns=returns or RETURNS[runtime])


def _open_torch(bundle, *, checkpoint):
    """The checkpoint that the version was exported from, or the linear model of its arrays, in torch."""
    import torch

    from bold_audio import mlp, served

    if bundle.facts["kind"] == "mlp":
        model, _ = mlp.load_checkpoint(checkpoint)
        if file_md5(checkpoint) != bundle.facts["checkpoint_md5"]:
            raise ModelError(
                f"{checkpoint} is not what version {bundle.facts['model_version']} was exported from - "
                "use runtime onnxruntime, or export it"
            )
        network = served.from_mlp(model)
    else:
        network = served.from_arrays(bundle.arrays)

    def run(inputs, output):
        with torch.no_grad():
            made = network(*(torch.from_numpy(array) for array in inputs.values()))
        return made[OUTPUTS.index(output)].numpy()

    return run


def _open_onnx(bundle):
    """``model.onnx`` in onnxruntime, after a look at what it says about itself."""
    import onnx
    import onnxruntime

    path = bundle.folder / "model.onnx"
    try:
        proto = onnx.load(path, load_external_data=False)
        if any(t.external_data or t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
            raise ModelError(f"{path} points to other files, which is not safe - export it again")
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 4  # it prints what it raises as well
        quiet.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would hold up BLAS
        options = {"sess_options": quiet, "providers": ["CPUExecutionProvider"]}
        session = onnxruntime.InferenceSession(str(path), **options)
        # onnxruntime runs the whole graph whatever is asked for; coordinates need but its small beginning.
        inputs = [node.name for node in proto.graph.input]
        beginning = onnx.utils.Extractor(proto).extract_model(inputs, ["coordinates"])
        small = onnxruntime.InferenceSession(beginning.SerializeToString(), **options)
    except ModelError:
        raise
    except Exception as error:  # onnx and onnxruntime raise a class of their own for each kind of damage
        raise ModelError(f"{path} cannot be opened ({type(error).__name__}) - export it again") from error
    said = session.get_modelmeta().custom_metadata_map
    facts = bundle.facts
    if said.get("bundle_hash") != facts["bundle_hash"] or said.get("delay") != f"{facts['delay']:.10g}":
        raise ModelError(
            f"{path} was made with a delay of {said.get('delay')} s and bundle {said.get('bundle_hash')}, bundle.json "
            f"says {facts['delay']:.10g} s and {facts['bundle_hash']} - export it again"
        )
    sessions = {"voxels": session, "coordinates": small}

    def run(inputs, output):
        try:
            return sessions[output].run([output], inputs)[0]
        except Exception as error:  # as above, where nodes do not fit the inputs
            raise ModelError(f"{path} cannot answer ({type(error).__name__}) - export it again") from error

    return run
