"""Ask a Triton server: what it serves is checked against the bundle first, and nothing waits for ever.

Every request has a deadline; one that fails for want of a server is repeated twice, after growing waits. Large batches
go in parts below the message limits, a few of them in flight at once, and come back whole or not at all.
"""

import functools
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPException

import numpy as np

from bold_audio.bundle import input_widths
from bold_audio.files import AccessError, ModelError, ParameterError

PORTS = {"grpc": 8001, "http": 8000}
WAITS = (0.5, 2.0)  # s before the second and the third try
MESSAGE_BYTES = 8 * 2**20
IN_FLIGHT = 4
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROBE_TOLERANCE = 1e-4  # relative to the largest value: other machines round in another order


class _Unavailable(Exception):
    """No answer for now; another try may find one."""


class TritonModel:
    """A version of a model on a server.

    Parameters
    ----------
    name : str
    version : int
    url : str, optional
        ``host:port``, with or without a scheme; https and grpcs ask for encryption. Default: loopback.
    protocol : {"grpc", "http"}
    timeout : float
        Seconds that each request may take.

    Raises
    ------
    ParameterError
        If the scheme is another protocol's.
    """

    def __init__(self, name, version, *, url=None, protocol="grpc", timeout=30.0):
        scheme, _, place = (url or f"127.0.0.1:{PORTS[protocol]}").rpartition("://")
        if scheme.removesuffix("s") not in ("", protocol):
            raise ParameterError(
                f"triton_url begins with {scheme}://, but triton_protocol is {protocol} - make them the same "
                f"({protocol} answers on port {PORTS[protocol]} by default)"
            )
        self.name, self.version, self.protocol, self.timeout = name, str(version), protocol, timeout
        self.place, self.secure = place.rstrip("/"), scheme in ("https", "grpcs")
        self.max_rows = None  # of one request; the server's config says
        self._own = threading.local()  # the HTTP client belongs to one thread

    @property
    def _client(self):
        if not hasattr(self._own, "client"):
            if self.protocol == "grpc":
                from tritonclient import grpc

                channel = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]  # no limit
                if self.place.rpartition(":")[0].strip("[]") in LOOPBACK:  # no proxy knows this machine
                    channel.append(("grpc.enable_http_proxy", 0))
                self._own.client = grpc.InferenceServerClient(self.place, ssl=self.secure, channel_args=channel)
            else:
                from tritonclient import http

                limits = {"connection_timeout": self.timeout, "network_timeout": self.timeout}
                self._own.client = http.InferenceServerClient(self.place, ssl=self.secure, **limits)
        return self._own.client

    def _call(self, what, *args, **options):
        """One call of the client, tried again where the server is not there for now.

        Raises
        ------
        AccessError
            If the server does not answer in time.
        ModelError
            If the server refuses.
        """
        if self.protocol == "grpc":
            options["client_timeout"] = self.timeout
        for pause in (*WAITS, None):
            try:
                return self._once(what, args, options)
            except _Unavailable as error:
                if pause is None:
                    where = f"{self.place} ({self.protocol}, {error})"
                    raise AccessError(
                        f"Triton not reachable at {where} - start it (make triton), or use runtime onnxruntime"
                    ) from error
                time.sleep(pause)

    def _once(self, what, args, options):
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, what)(*args, **options)
        except InferenceServerException as error:
            status, text = str(error.status() or ""), " ".join(str(error.message()).split())
            if any(word in status for word in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "502", "503", "504")):
                self._own.__dict__.clear()  # a new connection for the next try
                raise _Unavailable(status.removeprefix("StatusCode.").lower().replace("_", " ")) from error
            raise ModelError(f"Triton at {self.place} refused: {text[:300]}") from error
        except (OSError, HTTPException, ValueError, RuntimeError) as error:  # what a broken HTTP connection comes as
            self._own.__dict__.clear()
            raise _Unavailable(type(error).__name__) from error

    def check(self, bundle):
        """See that the server serves this very version: ready, the bundle's names, shapes and types, its answers.

        Raises
        ------
        ModelError
            If it does not; where the version is absent, with what is ready instead.
        """
        if not self._call("is_model_ready", self.name, self.version):
            raise ModelError(
                f"{self.name} version {self.version} is not ready on Triton at {self.place} - ready are "
                f"{', '.join(self._ready()) or 'no models'}"
            )
        facts = bundle.facts
        if (served := self._shapes()) != (mine := _expected_shapes(facts)):
            raise ModelError(f"Triton serves {self.name} with {served}, the bundle says {mine} - export it again")
        said, self.max_rows = self._config()
        said = said.get(f"bundle_hash_{self.version}")
        if said is not None and said != facts["bundle_hash"]:
            raise ModelError(
                f"Triton serves {self.name} version {self.version} of bundle {said}, this is {facts['bundle_hash']} - "
                "point models_dir to the repository that it serves, or let it load the version again"
            )
        if not self._answers_probe(bundle):
            raise ModelError(
                f"Triton's {self.name} version {self.version} answers a stored input with other numbers than the "
                "bundle - it serves other weights; let it load the version again"
            )

    def check_again(self, bundle):
        """See that the version is still the bundle's: a server loads a version anew whose files are replaced.

        Asked after the answers: had it been replaced before or between them, it would be another one now. The config
        does not tell: where the files are replaced while the server loads, it says the old bundle with the new weights.

        Raises
        ------
        ModelError
        """
        if not self._answers_probe(bundle, rows=1):
            raise ModelError(
                f"{self.name} version {self.version} was replaced on Triton while it was asked - open it again"
            )

    def _answers_probe(self, bundle, rows=None):
        """Whether the server answers the bundle's stored input, or ``rows`` of it, as the bundle does."""
        X, previous = bundle.probe()
        inputs = {"features": X} | ({} if previous is None else {"previous": np.reshape(previous, (len(X), -1))})
        made = self.infer({name: array[:rows] for name, array in inputs.items()}, "coordinates")
        known = bundle.arrays["probe_coordinates"][:rows]
        same = made.shape == known.shape
        return same and np.abs(made - known).max() <= PROBE_TOLERANCE * max(np.abs(known).max(), 1e-6)

    def _ready(self):
        """Models and versions that are ready."""
        index = self._call("get_model_repository_index")
        if self.protocol == "grpc":
            return [f"{m.name} version {m.version}" for m in index.models if m.state == "READY"]
        return [f"{m['name']} version {m['version']}" for m in index if m.get("state") == "READY"]

    def _shapes(self):
        """Inputs and outputs that the server names: name → (type, shape)."""
        said = self._call("get_model_metadata", self.name, self.version)
        if self.protocol == "grpc":
            return {one.name: (one.datatype, tuple(one.shape)) for one in (*said.inputs, *said.outputs)}
        return {one["name"]: (one["datatype"], tuple(one["shape"])) for one in (*said["inputs"], *said["outputs"])}

    def _config(self):
        """Parameters in the server's config of the model, and the most rows of one request."""
        said = self._call("get_model_config", self.name, self.version)
        if self.protocol == "grpc":
            config = said.config
            return {key: value.string_value for key, value in config.parameters.items()}, config.max_batch_size
        parameters = {key: value["string_value"] for key, value in said.get("parameters", {}).items()}
        return parameters, int(said["max_batch_size"])

    def infer(self, inputs, output, *, max_rows=None, progress=False):
        """One output for a batch of any size.

        Parameters
        ----------
        inputs : dict of str to array of shape (n, width), float32
        output : str
        max_rows : int, optional
            Most rows of one request.
        progress : bool
            Whether to draw a progress bar.

        Returns
        -------
        array of shape (n, width)
        """
        n = len(next(iter(inputs.values())))
        starts = range(0, n, max_rows or n)
        parts = [{name: array[k : k + (max_rows or n)] for name, array in inputs.items()} for k in starts]
        if len(parts) == 1:
            return self._request(parts[0], output)
        made, pool = None, _pool()
        waiting = deque(pool.submit(self._request, part, output) for part in parts)
        try:
            for k in _bar(starts, progress):
                rows = waiting.popleft().result()  # a future that is kept keeps its answer too
                made = np.empty((n, rows.shape[1]), np.float32) if made is None else made
                made[k : k + len(rows)] = rows
        finally:
            wait([one for one in waiting if not one.cancel()])
        return made

    def _request(self, inputs, output):
        from tritonclient import grpc, http

        kit = grpc if self.protocol == "grpc" else http
        tensors = []
        for name, array in inputs.items():
            tensors.append(kit.InferInput(name, array.shape, "FP32"))
            tensors[-1].set_data_from_numpy(np.ascontiguousarray(array))
        answer = self._call(
            "infer",
            self.name,
            tensors,
            model_version=self.version,
            outputs=[kit.InferRequestedOutput(output)],
        ).as_numpy(output)
        n = len(next(iter(inputs.values())))
        if answer is None or answer.ndim != 2 or len(answer) != n:
            shape = None if answer is None else answer.shape
            raise ModelError(f"Triton answered {n} rows with {output} of shape {shape} - look at the server's log")
        return answer


@functools.cache
def _pool():
    """Threads for parts in flight, the same for all models: one that ends leaves descriptors of its event loop open."""
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="triton")


def _expected_shapes(facts):
    """Inputs and outputs that the server should name: name → (type, shape)."""
    widths = input_widths(facts, facts["n_voxels"]) | {"voxels": facts["n_voxels"], "coordinates": -1}
    return {name: ("FP32", (-1, width)) for name, width in widths.items()}


def _bar(starts, progress):
    from tqdm.auto import tqdm

    return tqdm(starts, desc="Triton", unit="request", disable=not progress)


def open_served(bundle, *, url=None, protocol="grpc", timeout=30.0, progress=False):
    """A function (inputs, output) → array that a server answers, after all checks.

    Parameters
    ----------
    bundle : bundle.Bundle
    url, protocol, timeout
        As for `TritonModel`.
    progress : bool
        Whether to draw progress bars.
    """
    facts = bundle.facts
    model = TritonModel(facts["model_name"], facts["model_version"], url=url, protocol=protocol, timeout=timeout)
    model.check(bundle)
    outputs = {"voxels": facts["n_voxels"], "coordinates": bundle.n_coordinates}

    def run(inputs, output):
        per_row = 4 * max(sum(array.shape[1] for array in inputs.values()), outputs[output])
        rows = max(1, MESSAGE_BYTES // per_row)
        made = model.infer(inputs, output, max_rows=min(rows, model.max_rows or rows), progress=progress)
        model.check_again(bundle)
        return made

    return run
