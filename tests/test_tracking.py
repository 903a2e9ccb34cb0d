"""Finished trainings in MLflow: once each, in a real server or in the local file, never lost."""

import base64
import http.server
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import python

from bold_audio import tracking
from bold_audio.files import AccessError

pytestmark = pytest.mark.slow

LOSSES = [{"epoch": k, "train_MSE": 2.0 - k / 10} | ({"val_MSE": 3.0 + k} if k % 5 == 4 else {}) for k in range(10)]


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "made" / "best.ckpt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def log(artifact, tmp_path):
    """Function: log one training; its warning."""

    def run(name="sub09_dt4", **given):
        what = {"key": f"key of {name}", "experiment": "ds003688", "parameters": {"lr": 0.001, "delays": [4, 5]}}
        what |= {"losses": LOSSES, "files": [artifact], "tags": {"mlflow.source.git.commit": "abc"}}
        what |= {"uri": None, "local_folder": tmp_path / "mlflow"}
        return tracking.log_run(name, **(what | given))

    return run


@pytest.fixture
def local(mlflow_runs, tmp_path):
    """Function: client and runs of the local store."""
    return lambda: mlflow_runs(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")


def test_a_run_holds_parameters_losses_files_and_commit(log, local):
    assert log() is None
    client, (run,) = local()
    assert run.info.run_name == "sub09_dt4" and run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.001", "delays": "[4, 5]"}
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    for name in ("train_MSE", "val_MSE"):
        seen = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert seen == [(row["epoch"], row[name]) for row in LOSSES if name in row]
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["best.ckpt"]


def test_the_same_training_is_one_run_however_often_it_is_logged(log, local):
    log(), log(), log("sub09_dt5")
    assert sorted(run.info.run_name for run in local()[1]) == ["sub09_dt4", "sub09_dt5"]


DIES = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from bold_audio import tracking
left = int(sys.argv[2])
@event.listens_for(Engine, "before_cursor_execute")
def count(*_):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
what = {"key": "key of sub09_dt4", "experiment": "ds003688", "parameters": {}, "losses": [], "files": [], "tags": {}}
tracking.log_run("sub09_dt4", uri=None, local_folder=sys.argv[1], **what)
"""


@pytest.mark.parametrize("statement", [533, 880])
def test_a_store_whose_maker_was_killed_is_made_again(log, local, tmp_path, statement):  # R06
    with python(DIES, tmp_path / "mlflow", statement) as other:
        assert other.wait(120) == -signal.SIGKILL
    assert not (tmp_path / "mlflow" / "mlflow.db").exists(), "killed after its tables were made"
    log()
    assert [run.info.status for run in local()[1]] == ["FINISHED"]


def test_a_run_that_a_killed_process_left_is_closed_and_logged_anew(log, local, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    log("sub09_dt5")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mlflow.MlflowClient.log_artifact", die)
        log()
    log()
    states = sorted((run.info.run_name, run.info.status) for run in local()[1])
    assert states == [("sub09_dt4", "FINISHED"), ("sub09_dt4", "KILLED"), ("sub09_dt5", "FINISHED")]


def test_a_server_gets_the_runs(log, mlflow_server, mlflow_runs, tmp_path):
    assert log(uri=mlflow_server) is None and log(uri=mlflow_server) is None
    client, (run,) = mlflow_runs(mlflow_server)
    assert run.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "train_MSE")] == [
        r["train_MSE"] for r in LOSSES
    ]
    path = client.download_artifacts(run.info.run_id, "best.ckpt", str(tmp_path))
    with open(path, "rb") as handle:
        assert handle.read() == b"weights"
    assert not (tmp_path / "mlflow").exists(), "the local store is for when the server fails"


@pytest.mark.parametrize("port_is", ["closed", "mute"])
def test_a_server_that_does_not_answer_costs_one_warning(log, local, tmp_path, monkeypatch, port_is):
    asked = []
    write = tracking._write
    monkeypatch.setattr(tracking, "_write", lambda *a, **k: (asked.append(k["uri"]), write(*a, **k)))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1] if port_is == "mute" else 9
        said = log(uri=f"http://127.0.0.1:{port}")
    assert f"MLflow does not answer at http://127.0.0.1:{port}; " in said and str(tmp_path / "mlflow") in said
    assert "\n" not in said
    assert [uri[:7] for uri in asked] == ["sqlite:"], "MLflow itself would try for minutes"
    assert [run.info.run_name for run in local()[1]] == ["sub09_dt4"]


ASKED = set()  # who did


class Broken(http.server.BaseHTTPRequestHandler):
    """Says that it is well, and fails at all that it is asked."""

    def do_GET(self):
        ASKED.add(self.headers.get("Authorization"))
        self.send_response(200 if self.path == "/health" else 500)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *args):
        pass


def test_a_server_that_fails_half_way_costs_one_warning_and_nothing_is_lost(log, local, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    with http.server.HTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        said = log(uri=f"http://127.0.0.1:{broken.server_port}")
        broken.shutdown()
    assert said.startswith("MLflow failed (") and "runs are logged in" in said
    assert f"Basic {base64.b64encode(b'me:hunter2').decode()}" in ASKED and "hunter2" not in said
    _, (run,) = local()
    assert run.info.status == "FINISHED"


def test_runs_that_were_logged_locally_are_sent_later_each_once(log, mlflow_server, mlflow_runs, tmp_path):  # R09
    for name in ("sub09_dt4", "sub09_dt5"):
        log(name, experiment="later")
    log("sub09_dt4", experiment="later", uri=mlflow_server)
    assert tracking.send_runs(tmp_path / "mlflow", mlflow_server) == (1, 1)
    assert tracking.send_runs(tmp_path / "mlflow", mlflow_server) == (0, 2)
    client, runs = mlflow_runs(mlflow_server, "later")
    sent = {run.info.run_name: run for run in runs}
    assert sorted(sent) == ["sub09_dt4", "sub09_dt5"] and len(runs) == 2
    one, other = sent["sub09_dt5"], sent["sub09_dt4"]
    assert one.data.params == other.data.params and one.data.metrics == other.data.metrics
    assert one.data.tags["mlflow.source.git.commit"] == "abc"
    history = client.get_metric_history(one.info.run_id, "val_MSE")
    assert [(m.step, m.value) for m in history] == [(r["epoch"], r["val_MSE"]) for r in LOSSES if "val_MSE" in r]
    with open(client.download_artifacts(one.info.run_id, "best.ckpt", str(tmp_path)), "rb") as handle:
        assert handle.read() == b"weights"


def test_a_store_that_is_not_there_sends_nothing(mlflow_server, tmp_path):
    assert tracking.send_runs(tmp_path / "nowhere", mlflow_server) == (0, 0)
    assert not (tmp_path / "nowhere").exists()


def test_sending_to_a_server_that_fails_half_way_is_one_line(log, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    log()
    with http.server.HTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        with pytest.raises(AccessError, match="MLflow failed .* after 0 runs - try later, it goes on from there"):
            tracking.send_runs(tmp_path / "mlflow", f"http://127.0.0.1:{broken.server_port}")
        broken.shutdown()
    with pytest.raises(AccessError, match="not answer at http://127.0.0.1:9 - start it, or give another mlflow_uri"):
        tracking.send_runs(tmp_path / "mlflow", "http://127.0.0.1:9")


def test_twenty_that_log_at_once_share_one_experiment(mlflow_server, mlflow_runs, log):  # R09
    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda k: log(f"run {k}", experiment="shared", uri=mlflow_server), range(20)))
    client, runs = mlflow_runs(mlflow_server, "shared")
    assert said == [None] * 20 and sorted(run.info.run_name for run in runs) == sorted(f"run {k}" for k in range(20))
    assert [one.name for one in client.search_experiments()].count("shared") == 1


def test_a_deleted_experiment_is_taken_up_again(log, local):
    log()
    client, (run,) = local()
    client.delete_experiment(run.info.experiment_id)
    log("sub09_dt5")
    assert "sub09_dt5" in [one.info.run_name for one in local()[1]]
