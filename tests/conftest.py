"""One small simulated BIDS tree for all tests, and the shared folder of real data where it is."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from processes import free_port

from bold_audio.access import TOKEN_VARIABLE
from bold_audio.files import project_root
from bold_audio.params import load_params
from bold_audio.simulate import simulate_subject

pytest.register_assert_rewrite("faults", "refusals", "release")
SMALL = (18, 22, 22)  # voxels: a small head in the same 641 volumes of the full-size run


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    """With the token of whoever runs the tests, missing subjects would be fetched."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture(scope="session")
def sim_dir(tmp_path_factory):
    """Root of a small SIMULATED dataset, 641 volumes, response hrf, delays 5.0 and 6.5 s."""
    root = tmp_path_factory.mktemp("data") / "sim"
    simulate_subject(root, subject="sim", shape=SMALL)
    return root


@pytest.fixture
def small_params(sim_dir, tmp_path):
    """Function: parameters of the small simulated subject, outputs in a folder of the test's own."""

    def make(**given):
        folders = {
            "data_dir": str(sim_dir),
            "outputs_dir": str(tmp_path / "outputs"),
            "models_dir": str(tmp_path / "models"),
        }
        return load_params("sim", **(folders | given))

    return make


@pytest.fixture(scope="session")
def earlier(tmp_path_factory):
    """A finished run of small simulated subjects, in folders with awkward names."""
    import faults  # which imports torch

    return faults.earlier_run(tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def site(earlier, tmp_path, monkeypatch, capfd):
    """A copy of the earlier run's files that the test may spoil; the token is set."""
    import faults

    monkeypatch.setenv(TOKEN_VARIABLE, faults.TOKEN)
    return faults.Site(faults.copy_of(earlier, tmp_path / "site"), capfd)


@pytest.fixture
def project(tmp_path):
    """A project folder of its own, without data."""
    folder = tmp_path / "project"
    for part in ("params", "notebooks"):
        shutil.copytree(project_root() / part, folder / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


@pytest.fixture(scope="session")
def shared():
    """Folder of real data; tests that need it are skipped, visibly, where it is absent."""
    folder = Path(os.environ.get("BOLD_AUDIO_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "realdata").is_dir():
        pytest.skip(f"no real data at {folder} - set BOLD_AUDIO_SHARED")
    return folder


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """Address of a real MLflow server on a free port."""
    folder = tmp_path_factory.mktemp("server")
    for last in (False, False, True):  # somebody else may take the port before the server does
        process, uri = _start_mlflow(folder)
        try:
            if _answers(process, uri):
                yield uri
                return
            assert not last, "the MLflow server did not start: " + (folder / "log").read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start_mlflow(folder):
    """Start an MLflow server on a port that is free just now: the process and the address."""
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "art")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]
    with (folder / "log").open("w") as said:
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=said, stderr=said, cwd=folder, start_new_session=True
        )
    return process, f"http://127.0.0.1:{port}"


def _answers(process, uri):
    """Whether a server of ours answers; another one may hold its port, and ours then ends."""
    for _ in range(240):
        with suppress(requests.RequestException):
            if requests.get(f"{uri}/health", timeout=2).ok:
                time.sleep(0.5)  # one that found its port taken needs a moment to end
                return process.poll() is None
        if process.poll() is not None:
            return False
        time.sleep(0.5)
    return False


@pytest.fixture
def mlflow_runs():
    """Function: MLflow's client at an address, and the runs of an experiment there."""

    def runs_in(uri, experiment="ds003688"):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        return client, [] if found is None else client.search_runs([found.experiment_id])

    return runs_in
