"""docs/faults.md, runs and outputs: runs that fail, end early or meet each other."""

import contextlib
import ctypes
import json
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from bs4 import BeautifulSoup
from faults import NOTE, OUTPUTS, Said, command_line, nothing_lost, one_line, refusal, rows
from processes import free_port, hears_ctrl_c, python
from refusals import tree_hash

from bold_audio import mlp, workflow

pytestmark = pytest.mark.slow


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


@rows("R04")
def test_lock_of_a_process_that_died(site, row):
    with python(HOLDER, site.folder / ".lock") as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
    before = tree_hash(site.root)
    said = site.call("run", "--dataset", "sim", "--subject", "sim", "--steps", "00", **site.given, data_note=NOTE)
    assert said.status == 0 and "sub-sim: 00_data_download is done" in said.out
    (line,) = said.lines
    assert f"process {process.pid} on {socket.gethostname()} " in line and line.endswith("of its lock; taken over")
    nothing_lost(before, tree_hash(site.root))


SMALL_NOTEBOOK = "import os\nsubject = 'sim'\nn_mfcc = 20"


def write_notebook(project, cell):
    """Put a notebook of two cells in place of the first one."""
    cells = [nbformat.v4.new_code_cell(text) for text in (SMALL_NOTEBOOK, cell)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(made, project / "notebooks/00_data_download.ipynb")


@pytest.fixture
def own_project(project, monkeypatch):
    """A project whose first notebook the test may write."""
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(project))
    return project


@rows("R02-SIGTERM", "R02-SIGINT", "R02-SIGHUP")
def test_run_that_is_stopped(site, own_project, row):
    """The kernel stops the program that started it, as a person would, and ends with it."""
    number, status = getattr(signal, row[4:]), {"R02-SIGTERM": 143, "R02-SIGINT": 130, "R02-SIGHUP": 129}[row]
    write_notebook(
        own_project,
        f"import time\nopen({str(own_project / 'kernel')!r}, 'w').write(str(os.getpid()))\n"
        f"os.kill(int(os.environ['JPY_PARENT_PID']), {int(number)})\ntime.sleep(600)",
    )
    words = command_line("run", "--dataset", "sim", "--subject", "sim", "--steps", "00", **site.given)
    with refusal(site.root, status, "sub-sim: stopped - run the same command again to go on") as said:
        program = [Path(sysconfig.get_path("scripts")) / "bold-audio", *words]
        done = subprocess.run(
            program, capture_output=True, text=True, timeout=300, check=False, preexec_fn=hears_ctrl_c
        )
        said.append(Said(done.returncode, done.stdout, done.stderr))
    assert not psutil.pid_exists(int((own_project / "kernel").read_text()))
    assert state(site.outputs, "sim") == "stopped"
    assert not [path for path in site.folder.iterdir() if path.name.endswith((".part", ".owner"))]


@rows("R13")
def test_run_again(site, own_project, row):
    write_notebook(own_project, "print(n_mfcc)")

    def again(**given):
        wanted = ("run", "--dataset", "sim", "--subject", "sim", "--steps", "00")
        said = site.call(*wanted, **(site.given | given))
        assert (said.status, said.err) == (0, "")
        return said.out

    again()
    before = tree_hash(site.root)
    site.scan.touch()
    for given in ({}, {"max_epochs": 3}):  # only what comes later depends on it
        assert "00_data_download is done, and nothing that it was made from has changed" in again(**given)
    after = tree_hash(site.root)
    tells = {f"{OUTPUTS}/sim/sub-sim/status.json", f"{OUTPUTS}/sim/.subjects.json"}  # when it was asked
    assert {path for path in before if after[path] != before[path]} == tells
    assert "parameter n_mfcc changed" in again(n_mfcc=13)


WRITER = """
import os, signal, sys
from bold_audio import workflow
from bold_audio.params import load_params
subject, killed, plain = workflow.open_subject(load_params("sim", "sim", **eval(sys.argv[1]))), 0, os.replace
status = -signal.SIGKILL
while status == -signal.SIGKILL:  # one that ends otherwise has written all, or failed
    if (child := os.fork()) == 0:
        calls = []
        def replace(*names):
            calls.append(names)
            if len(calls) > killed:  # after as many files as children died before
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*names)
        os.replace = replace
        workflow.ensure_sweep(subject)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed += 1
    print(status, flush=True)
    assert killed < 100, "it writes so many files?"
"""


@rows("R06")
def test_killed_between_any_two_files(site, row):
    """Each run is killed one file later than the one before, until one comes to its end."""
    whole = site.root / "whole"
    workflow.ensure_sweep(site.open(outputs_dir=str(whole)))
    with python(WRITER, site.given) as process:
        said = [int(line) for line in process.stdout]
    assert set(said[:-1]) == {-signal.SIGKILL} and said[-1] == 0 and len(said) > 8
    made = whole / "sim/sub-sim"
    for path in made.iterdir():
        if path.suffix in (".tsv", ".txt") or path.name.endswith(".nii.gz"):
            assert (site.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in made.iterdir()} <= {path.name for path in site.folder.iterdir()}


@rows("R07")
def test_disk_that_fills_while_a_checkpoint_is_saved(site, row):
    subject, before = site.open(lr=0.01), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        site.refuse_call(
            workflow.ensure_mlp, subject, status=5, says=["a checkpoint cannot be written in", "free space"]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _, facts = mlp.load_checkpoint(site.folder / "best.ckpt")
    assert facts["delay"] == 5.0


@rows("R08-as it is", "R08-required")
def test_mlflow_that_is_down(site, row):
    uri = f"http://127.0.0.1:{free_port()}"
    if row == "R08-required":
        subject = site.open(lr=0.01, mlflow_uri=uri, mlflow_required=True)
        says = f"MLflow does not answer at {uri} - start it, or set mlflow_required false"
        site.refuse_call(workflow.ensure_mlp, subject, status=4, says=says)
        return
    *_, (note,) = workflow.ensure_mlp(site.open(lr=0.01, mlflow_uri=uri))  # notebook 04 shows it
    assert note.startswith(f"MLflow does not answer at {uri}; runs are logged in {site.outputs / 'mlflow'} instead")
    assert "'bold-audio mlflow-sync'" in note and (site.outputs / "mlflow/mlflow.db").is_file()


@rows("R09")
def test_runs_reach_the_server_when_it_is_back(site, row, mlflow_server, mlflow_runs):
    nowhere = f"http://127.0.0.1:{free_port()}"
    site.refuse("mlflow-sync", status=4, says="MLflow does not answer at", mlflow_uri=nowhere)
    for said in ("1 runs sent to", "0 runs sent to"):
        done = site.call("mlflow-sync", **site.given, mlflow_uri=mlflow_server)
        assert (done.status, done.err) == (0, "") and said in done.out
    _, found = mlflow_runs(mlflow_server, "sim")
    assert [run.info.run_name for run in found] == ["subsim_dt5"]


# --- machine and kernel -------------------------------------------------------------------


@rows("R10")
def test_memory_that_does_not_suffice(site, row):
    taken, before = psutil.Process().memory_info().vms, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 5 * 10**8, before[1]))
    try:
        site.refuse_run(5, [" GB of memory needed, ", " GB free - end other programs"])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="root may write everywhere")
@rows("R05-outputs", "R05-data")
def test_folder_that_is_read_only(site, row):
    if row == "R05-data":
        with read_only(site.data):
            assert site.open().Y.size
        return
    with read_only(site.outputs):
        site.refuse_run(5, [f"cannot write in {site.folder} (Permission denied)", "permit writing"])


def state(outputs, subject):
    return json.loads((outputs / f"sim/sub-{subject}/status.json").read_text())["state"]


@rows("R11")
def test_kernel_that_dies_leaves_the_other_subjects_alone(site, own_project, row):
    write_notebook(own_project, "if subject == 'b':\n    os._exit(9)")
    wanted = ("run", "--dataset", "sim", "--subject", "b", "--subject", "sim", "--steps", "00")
    path = site.outputs / "sim/sub-b/00_data_download.ipynb"
    says = ["sub-b: 00_data_download: its kernel died - check the memory", str(path)]
    site.refuse(*wanted, status=5, says=says, subjects=("b", "sim"))
    assert path.is_file()
    page = (path.parent / "report/00_data_download.html").read_text(encoding="utf-8")
    text = " ".join(BeautifulSoup(page, "html.parser").get_text(" ").split())
    assert "its kernel died" in text and "What to do: check the memory" in text
    assert [state(site.outputs, one) for one in ("b", "sim")] == ["failed", "done"]


@rows("R12")
def test_subject_that_fails_does_not_stop_the_others(earlier, row):
    one_line(earlier.said, 3, "sub-nosuch: sub-nosuch is not there", "make it with 'bold-audio simulate'")
    assert "sub-sim: done in" in earlier.said.out
    assert [state(earlier.root / OUTPUTS, one) for one in ("nosuch", "sim")] == ["failed", "done"]
    index = (earlier.root / OUTPUTS / "sim/index.html").read_text(encoding="utf-8")
    text = BeautifulSoup(index, "html.parser").get_text(" ")
    assert "2 subjects, 1 of them failed" in text and "sub-nosuch is not there" in text


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
