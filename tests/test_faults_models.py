"""docs/faults.md, model files and serving: a model that does not fit, is damaged or is not served ends in one line."""

import os
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch
from faults import rows
from refusals import Bomb

from bold_audio import export, serving, triton, workflow
from bold_audio.files import file_md5, read_json, write_json
from bold_audio.server import TritonServer, install

pytestmark = pytest.mark.slow
NAME = "sim_sub-sim"


@pytest.fixture
def version(site):
    """Folder of the exported version."""
    return site.models / NAME / "1"


def refuse(site, says, *, status=6, **given):
    """Refuse to predict a sound by the exported model."""
    arguments = ("predict", "--dataset", "sim", "--subject", "sim", "--sound", site.sound)
    return site.refuse(*arguments, status=status, says=says, **given)


def rewrite(version, **facts):
    """Change ``bundle.json``, and the hash of the ONNX file with it, as somebody who knows the format would."""
    path = version / "bundle.json"
    write_json(path, read_json(path) | {"onnx_md5": file_md5(version / "model.onnx")} | facts)


# --- the delay ----------------------------------------------------------------------------


@rows("M01")
def test_delay_that_is_missing(site, version, row):
    (version / "best_dt.txt").unlink()
    refuse(site, [f"{version / 'best_dt.txt'} is missing - export the model again"])


DELAYS = {"": "''", "abc": "'abc'", "4,5": "'4,5'", "nan": "nan", "-3": "-3", "4.5 s": "'4.5 s'", "5\n5": "5\\n5"}


@rows(*(f"M02-{text!r}" for text in DELAYS), "M02-1 MB")
def test_delay_that_is_none(site, version, row):
    text = {f"M02-{text!r}": text for text in DELAYS}.get(row, "5" * 2**20)
    (version / "best_dt.txt").write_text(text)
    line = refuse(site, ["best_dt.txt ", DELAYS.get(text, "inf"), "export"])
    assert len(line) < 500


@rows("M02-BOM", "M02-CRLF", "M02-spaces")
def test_delay_as_editors_write_it(site, version, row):
    content = {"M02-BOM": b"\xef\xbb\xbf5", "M02-CRLF": b"5\r\n", "M02-spaces": b" 5.0  "}[row]
    (version / "best_dt.txt").write_bytes(content)
    said = site.call("predict", "--dataset", "sim", "--subject", "sim", "--sound", site.sound, **site.given)
    assert (said.status, said.err) == (0, "") and "at Δt = 5 s" in said.out


@rows("M03-text", "M03-bundle", "M03-another model's")
def test_delay_of_another_model(site, version, row):
    if row == "M03-text":
        (version / "best_dt.txt").write_text("8\n")
        says = "says 8 s, but this model was trained at 5 s"
    elif row == "M03-bundle":
        (version / "best_dt.txt").write_text("8\n")
        rewrite(version, delay=8.0)
        says = "bundle.json was changed after the export"
    else:
        rewrite(version, bundle_hash="a1b2")
        says = "bundle.json was changed after the export"
    refuse(site, [says, "export "])


# --- whose model --------------------------------------------------------------------------


def predict_scan(site, **given):
    """Predict a measured scan by the exported model, as notebook 06 does."""
    subject = workflow.open_subject(site.params(model_version=1, **given))
    return serving.served_row(subject, workflow.open_exported(subject))


@rows("M04")
def test_model_of_somebody_else(site, row):
    says = ["the model was trained on sub-sim with mask ", "this is sub-b with mask", "set allow_other_subject"]
    site.refuse_call(
        lambda: predict_scan(site, subject="b", model_name=NAME), status=6, says=says, subjects=("b", "sim")
    )


@rows("M08")
def test_other_number_of_mfccs(site, row):
    says = "the model was made with n_mfcc 20, here it is 15 - set what it was made with"
    site.refuse_call(lambda: predict_scan(site, n_mfcc=15), status=6, says=says)


# --- the checkpoint -----------------------------------------------------------------------


@rows("M05", "M06-half", "M06-empty")
def test_checkpoint_that_is_not_one(site, row, tmp_path):
    path, canary = site.folder / "best.ckpt", tmp_path / "canary"
    whole = path.read_bytes()
    if row == "M05":
        torch.save(torch.load(path, weights_only=True) | {"more": Bomb(canary)}, path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if row == "M06-half" else b"")
    says = [f"{path} is damaged or not a safe checkpoint", "delete it and train again"]
    refuse(site, says, runtime="torch")
    assert not canary.exists()


@rows("M07")
def test_checkpoint_opens_without_running_anything(site, row):
    content = torch.load(site.folder / "best.ckpt", weights_only=True)
    assert content["bold_audio"]["subject"] == "sim" and content["hyper_parameters"]["hidden_dims"] == [64]


# --- the ONNX file ------------------------------------------------------------------------


@rows("M09-NaN", "M09-shape", "M09-name", "M09-float64")
def test_inputs(site, row):
    predictor = workflow.open_exported(site.open())
    X, _ = predictor.bundle.probe()
    if row == "M09-float64":
        assert predictor(X.astype(float)).dtype == "float32"
        return
    given = {"M09-NaN": (X * float("nan"),), "M09-shape": (X[:, :3],), "M09-name": (X, X[:, None])}[row]
    says = {"M09-NaN": "features hold NaN", "M09-shape": "expects features of width 20", "M09-name": "takes features"}
    site.refuse_call(predictor, *given, status=6, says=says[row])


@rows("M10-../", "M10-absolute", "M10-link")
def test_weights_in_another_file(site, version, row, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 65536)
    (version / "link").symlink_to(secret)
    proto = onnx.load(version / "model.onnx")
    tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    place = {"M10-../": os.path.relpath(secret, version), "M10-absolute": str(secret), "M10-link": "link"}[row]
    tensor.external_data.add(key="location", value=place)
    (version / "model.onnx").write_bytes(proto.SerializeToString())
    rewrite(version)
    refuse(site, "points to other files, which is not safe - export it again")


@rows("M11-half", "M11-empty")
def test_damaged_onnx_file(site, version, row):
    whole = (version / "model.onnx").read_bytes()
    (version / "model.onnx").write_bytes(whole[: len(whole) // 2] if row == "M11-half" else b"")
    refuse(site, "model.onnx is not the file that bundle.json describes - export it again")
    rewrite(version)
    refuse(site, ["model.onnx cannot be opened", "export it again"])


@rows("M12")
def test_runtimes_that_disagree_publish_nothing(site, row, monkeypatch):
    subject = site.open(model_version=2)
    torch_answers = export._answer
    monkeypatch.setattr(export, "_answer", lambda *given: [1.001 * made for made in torch_answers(*given)])
    says = "torch and onnxruntime differ by 0.001 - nothing was exported"
    site.refuse_call(workflow.ensure_export, subject, status=6, says=says)


@rows("M18")
def test_version_appears_whole(site, row):
    """Whoever looks all the time, as a polling server does, never sees a version without all its files."""
    whole = {path.name for path in (site.models / NAME / "1").iterdir()}
    seen, begun, stop = [], threading.Event(), threading.Event()

    def look():
        while not stop.is_set() or not seen:
            begun.set()
            if (site.models / NAME / "2").is_dir():
                seen.append({path.name for path in (site.models / NAME / "2").iterdir()})
            elif stop.is_set():
                raise AssertionError("there is no version 2")

    subject = site.open(model_version=2)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        assert begun.wait(60)  # it looks before there is anything to see
        try:
            workflow.ensure_export(subject)
        finally:
            stop.set()
        looking.result()
    assert seen and all(names == whole for names in seen)
    assert {path.name for path in (site.models / NAME / "2").iterdir()} == whole


# --- names --------------------------------------------------------------------------------


@rows("M17-name ../x", "M17-name a/b", "M17-name ", "M17-version 0", "M17-version 1/..", "M17-version -1")
def test_name_or_version_that_leads_elsewhere(site, row):
    kind, _, value = row.removeprefix("M17-").partition(" ")
    for command in (("run", "--steps", "05"), ("predict", "--sound", site.sound)):
        given = {f"model_{kind}": repr(value)}
        site.refuse(*command, "--dataset", "sim", "--subject", "sim", status=2, says=f"model_{kind}: ", **given)


# --- Triton -------------------------------------------------------------------------------


@rows("M13", "M14-never", "M14-half")
def test_server_that_does_not_answer(site, row, monkeypatch):
    monkeypatch.setattr(triton, "WAITS", (0.05, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"127.0.0.1:{server.getsockname()[1]}"
        if row == "M13":
            server.close()
        elif row == "M14-half":
            threading.Thread(target=_hang_up, args=(server,), daemon=True).start()
        says = [f"Triton not reachable at {url}", "start it (make triton), or use runtime onnxruntime"]
        given = {"runtime": "triton", "triton_url": url, "triton_timeout": 0.5}
        refuse(site, says, status=4, **given, triton_protocol="http" if row == "M14-half" else "grpc")


def _hang_up(server):
    """Answer half a response, to whoever asks."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")


@pytest.fixture(scope="module")
def served(earlier, tmp_path_factory):
    """A real server of the earlier run's models."""
    models = shutil.copytree(earlier.root / "models", tmp_path_factory.mktemp("served") / "models")
    with TritonServer(models, folder=install()).start(log=subprocess.DEVNULL) as running:
        yield {"runtime": "triton", "triton_url": running.url("grpc")}


@pytest.mark.thorough
@rows("M15", "M16", "M19-weights", "M19-bundle")
def test_server_that_serves_another_model(site, served, row, monkeypatch):
    if row == "M15":
        workflow.ensure_export(site.open(model_version=2))
        refuse(site, [f"{NAME} version 2 is not ready on Triton", f"ready are {NAME} version 1"], **served)
        return
    other = {"n_mfcc": 15} if row == "M16" else {"seed": 1}
    workflow.ensure_export(site.open(model_version=1, overwrite_model=True, **other))
    if row == "M19-weights":
        monkeypatch.setattr(triton.TritonModel, "_config", lambda self: ({}, 100))  # a server without our config
    says = {
        "M16": ["Triton serves", "the bundle says", "export it again"],
        "M19-bundle": ["of bundle", "let it load the version again"],
        "M19-weights": ["answers a stored input with other numbers", "let it load the version again"],
    }[row]
    refuse(site, says, **served)
