"""Triton's python backend as an onnxruntime backend, for servers that come without one.

Serves an ordinary ``<name>/<version>/model.onnx`` whose ``config.pbtxt`` says ``backend: "onnxruntime"``. The server
imports this file; the package does not.
"""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [path for path in os.environ.get("BOLD_AUDIO_TRITON_PATH", "").split(os.pathsep) if path]

import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """One version of one model."""

    def initialize(self, args):
        """Open ``model.onnx`` of the version that the server asks for."""
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BOLD_AUDIO_TRITON_THREADS", "0"))
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [one["name"] for one in json.loads(args["model_config"])["input"]]

    def execute(self, requests):
        """Answer each request with the outputs that it asks for."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """One request; what onnxruntime objects to is an error of this request alone."""
        wanted = list(request.requested_output_names())
        try:
            given = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            made = self.session.run(wanted, given)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnxruntime: {error}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(wanted, made, strict=True)])
