"""FAULTS.md, runs and outputs: runs that fail, end early or meet each other."""

import contextlib
import ctypes
import json
import signal
import socket
import sys

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from faults import NOTE, OUTPUTS, one_line, rows, tree_hash
from processes import python

from bold_audio import mlp, workflow


@contextlib.contextmanager
def no_right_of_root():
    """For a while not even root may write where permissions forbid it (Linux)."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    capabilities = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, capabilities) == 0
    held, capabilities[0] = capabilities[0], capabilities[0] & ~0b10  # without CAP_DAC_OVERRIDE
    libc.capset(header, capabilities)
    try:
        yield
    finally:
        capabilities[0] = held
        libc.capset(header, capabilities)


@contextlib.contextmanager
def read_only(folder):
    """For a while nobody may write below a folder."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with no_right_of_root():
            yield
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


# --- killed, and met by others ------------------------------------------------------------

KILLED = """
import os, signal, sys
from bold_audio import mlp, workflow
from bold_audio.params import load_params
plain, seen = mlp.AudioFmriMLP.training_step, []
def step(self, *batch):
    seen.append(1)
    if len(seen) > 12:  # of a batch an epoch: after the second look, which leaves a checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *batch)
mlp.AudioFmriMLP.training_step = step
workflow.ensure_mlp(workflow.open_subject(load_params("sim", "sim", **eval(sys.argv[1]))))
"""


@pytest.mark.slow
@rows("R01")
def test_killed_training_goes_on(site, row, monkeypatch):
    given = {"max_epochs": 20, "lr": 0.01}
    with python(KILLED, site.given | given) as process:
        assert process.wait(timeout=120) == -signal.SIGKILL
    before = tree_hash(site.root)
    assert [path for path in before if path.endswith("/last.ckpt")], "something to go on from"
    epochs, plain = [], mlp.AudioFmriMLP.on_train_epoch_start

    def count(self):
        epochs.append(self.current_epoch)
        return plain(self)

    monkeypatch.setattr(mlp.AudioFmriMLP, "on_train_epoch_start", count)
    workflow.ensure_mlp(site.open(**given))
    assert epochs[0] == 10
    again = torch.load(site.folder / "best.ckpt", weights_only=True)
    other = str(site.root / "uninterrupted")
    workflow.ensure_mlp(site.open(**given, outputs_dir=other))
    whole = torch.load(site.root / "uninterrupted/sim/sub-sim/best.ckpt", weights_only=True)
    assert whole["bold_audio"] == again["bold_audio"]
    assert all(torch.equal(whole["state_dict"][name], value) for name, value in again["state_dict"].items())


HOLDER = """
import sys
from pathlib import Path
from bold_audio.locking import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@rows("R03")
def test_second_run_of_a_subject(site, row):
    with python(HOLDER, site.folder / ".lock") as process:
        assert process.stdout.readline() == "held\n"
        who = f"is locked by process {process.pid} on {socket.gethostname()} since "
        site.refuse_run(5, [who, "wait until it is done"])


@rows("R08")
def test_mlflow_that_is_down(site, row):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
    *_, notes = workflow.ensure_mlp(site.open(lr=0.01, mlflow_uri=uri))  # notebook 04 shows the notes
    assert notes == [f"MLflow does not answer at {uri}; runs are logged in {site.outputs / 'mlflow'} instead"]
    assert (site.outputs / "mlflow/mlflow.db").is_file()


# --- machine and kernel -------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="root may write everywhere")
@rows("R05-outputs", "R05-data")
def test_folder_that_is_read_only(site, row):
    if row == "R05-data":
        with read_only(site.data):
            assert site.open().Y.size
        return
    with read_only(site.outputs):
        site.refuse_run(5, [f"cannot write in {site.folder} (Permission denied)", "permit writing"])


KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
NOTEBOOK = "import os\nsubject = 'sim'", "if subject == 'b':\n    os._exit(9)"


def state(outputs, subject):
    return json.loads((outputs / f"sim/sub-{subject}/status.json").read_text())["state"]


@pytest.mark.slow
@rows("R11")
def test_kernel_that_dies_leaves_the_other_subjects_alone(site, row, project, monkeypatch):
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(project))
    cells = [nbformat.v4.new_code_cell(text) for text in NOTEBOOK]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), project / "notebooks/00_data_download.ipynb")
    wanted = ("run", "--dataset", "sim", "--subject", "b", "--subject", "sim", "--steps", "00")
    path = site.outputs / "sim/sub-b/00_data_download.ipynb"
    says = ["sub-b: 00_data_download: its kernel died - check the memory", str(path)]
    site.refuse(*wanted, status=5, says=says, subjects=("b", "sim"))
    assert path.is_file()
    states = {
        one: json.loads((site.outputs / f"sim/sub-{one}/status.json").read_text())["state"] for one in ["b", "sim"]
    }
    assert states == {"b": "failed", "sim": "done"}


@rows("R12")
def test_subject_that_fails_does_not_stop_the_others(earlier, row):
    one_line(earlier.said, 3, "sub-nosuch: sub-nosuch is not there", "make it with 'bold-audio simulate'")
    assert "sub-sim: done in" in earlier.said.out
    assert [state(earlier.root / OUTPUTS, one) for one in ("nosuch", "sim")] == ["failed", "done"]
    index = (earlier.root / OUTPUTS / "sim/index.html").read_text(encoding="utf-8")
    text = BeautifulSoup(index, "html.parser").get_text(" ")
    assert "1 of them failed" in text and "sub-nosuch is not there" in text


def pages(earlier):
    """The subject's pages by name: path, and what a browser makes of it."""
    found = (earlier.root / OUTPUTS / "sim/sub-sim/report").glob("*.html")
    return {path.name: (path, BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")) for path in found}


@rows("R14")
def test_report_opens_without_a_network(earlier, row):
    found = pages(earlier)
    assert found.keys() >= {"index.html", "00_data_download.html", "model_card.html"}
    for path, page in found.values():
        loaded = [tag.get("src") or tag["href"] for tag in page.select("[src], link[href]")]
        assert all(where.startswith("data:") or (path.parent / where).is_file() for where in loaded), path
        assert path.stat().st_size < 10e6
    path, page = found["00_data_download.html"]
    cells = nbformat.read(path.parents[1] / "00_data_download.ipynb", as_version=4).cells
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    n_figures = sum("application/vnd.plotly.v1+json" in output for output in outputs)
    assert n_figures == len(page.select("figure.plot script[type='application/json']")) >= 6


@rows("R15")
def test_words_that_are_programs_are_shown(earlier, row):
    shown = []
    for path, page in pages(earlier).values():
        for script in page("script"):
            if script.get("type") == "application/json":
                json.loads(script.get_text())
            else:
                assert "hacked" not in script.get_text(), path
            script.decompose()
        shown += [path.name] if NOTE in page.get_text(" ") else []
    assert "00_data_download.html" in shown


@rows("R16")
def test_loss_that_is_not_a_number(site, row):
    subject = site.open(lr=1e30)
    site.refuse_call(
        workflow.ensure_mlp, subject, status=6, says=["the loss is not a number at epoch", "lower lr 1e+30"]
    )
