"""Triton's python backend as an onnxruntime backend, for servers that come without one.

Serves an ordinary ``<name>/<version>/model.onnx`` whose ``config.pbtxt`` says ``backend: "onnxruntime"``. The server
imports this file; the package does not.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [path for path in os.environ.get("BOLD_AUDIO_TRITON_PATH", "").split(os.pathsep) if path]

import numpy  # noqa: E402
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
        """Answer each request with the outputs that it asks for; those that ask for the same share one batch."""
        alike = {}
        for k, request in enumerate(requests):
            alike.setdefault(tuple(sorted(request.requested_output_names())), []).append(k)
        answers = [None] * len(requests)
        for places in alike.values():
            for k, answer in zip(places, self.answer_together([requests[k] for k in places]), strict=True):
                answers[k] = answer
        return answers

    def answer_together(self, requests):
        """Requests for the same outputs as one batch; one by one where that fails, so that each gets its own error."""
        if len(requests) > 1:
            with contextlib.suppress(Exception):
                wanted = sorted(requests[0].requested_output_names())
                given = [
                    {name: pb_utils.get_input_tensor_by_name(one, name).as_numpy() for name in self.inputs}
                    for one in requests
                ]
                batch = {name: numpy.concatenate([one[name] for one in given]) for name in self.inputs}
                ends = numpy.cumsum([len(one[self.inputs[0]]) for one in given])[:-1]
                made = self.session(wanted).run(wanted, batch)
                parts = zip(*(numpy.split(array, ends) for array in made), strict=True)
                return [
                    pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(wanted, part, strict=True)])
                    for part in parts
                ]
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
