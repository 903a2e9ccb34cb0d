"""Triton's python backend as an onnxruntime backend, for servers that come without one.

Serves an ordinary ``<name>/<version>/model.onnx`` whose ``config.pbtxt`` says ``backend: "onnxruntime"``. The server
imports this file; the package does not.
"""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [path for path in os.environ.get("BOLD_AUDIO_TRITON_PATH", "").split(os.pathsep) if path]

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """One version of one model."""

    def initialize(self, args):
        """Open ``model.onnx`` of the version that the server asks for."""
        self.proto = onnx.load(Path(args["model_repository"]) / args["model_version"] / "model.onnx")
        config = json.loads(args["model_config"])
        self.inputs = [one["name"] for one in config["input"]]
        self.sessions = {}
        self.session(sorted(one["name"] for one in config["output"]))  # a damaged model is noticed now

    def session(self, wanted):
        """A session that computes these outputs and no others: onnxruntime runs all that a graph holds."""
        if tuple(wanted) not in self.sessions:
            part = onnx.utils.Extractor(self.proto).extract_model(self.inputs, list(wanted))
            options = onnxruntime.SessionOptions()
            # Threads that spin while they wait take the cores that a client on this machine computes with.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self.sessions[tuple(wanted)] = onnxruntime.InferenceSession(
                part.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return self.sessions[tuple(wanted)]

    def execute(self, requests):
        """Answer each request with the outputs that it asks for."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """One request; what onnxruntime objects to is an error of this request alone."""
        wanted = sorted(request.requested_output_names())
        try:
            given = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            made = self.session(wanted).run(wanted, given)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnxruntime: {error}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(wanted, made, strict=True)])
