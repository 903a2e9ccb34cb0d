"""Finished trainings → MLflow: the server where it answers, else a local file; nothing is lost and nothing doubled."""

import logging
import os
import tempfile
import time
from pathlib import Path

import requests

from bold_audio.files import AccessError, write_whole
from bold_audio.locking import lock, remove_scratch

KEY = "bold_audio.key"  # tag by which a training that is already there is known
FINISHED, RUNNING = "FINISHED", "RUNNING"


def require_server(uri, *, instead="set mlflow_required false"):
    """Refuse to begin where runs must go to a server and it does not answer.

    Raises
    ------
    AccessError
    """
    if uri and not _answers(uri):
        raise AccessError(f"MLflow does not answer at {uri} - start it, or {instead}")


def log_run(run_name, *, key, experiment, parameters, losses, files, tags, uri, local_folder):
    """Log one finished training: once, however often it is asked for.

    Parameters
    ----------
    run_name : str
        Such as ``sub09_dt4``.
    key : str
        Identity of the training; a finished run with this key is left alone.
    experiment : str
    parameters, tags : dict
        Parameters are written as text, of at most 500 characters each.
    losses : list of dict
        One per epoch, with ``epoch`` and the metrics of that epoch.
    files : list of path
        Artifacts.
    uri : str or None
        Address of the server where the runs go; None means the local sqlite file. MLflow's client takes a user and a
        password from the environment variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    local_folder : path
        Where the local store is, and where runs go when the server fails.

    Returns
    -------
    str or None
        What the reader should know: that the server failed and the runs are elsewhere.
    """
    content = {
        "key": key,
        "experiment": experiment,
        "parameters": {name: str(value)[:500] for name, value in parameters.items()},
        "losses": losses,
        "files": [Path(path) for path in files],
        "tags": tags,
    }
    _calm()
    if uri:
        reason = "does not answer"
        if _answers(uri):  # asked first, because MLflow's own retries are silent for minutes
            try:
                _write(run_name, uri=uri, artifacts=None, **content)
                return None
            except Exception as error:  # whatever a server or what stands before it can answer
                reason = f"failed ({type(error).__name__})"
        _write_locally(run_name, local_folder, content)
        return (
            f"MLflow {reason} at {uri}; runs are logged in {local_folder} instead - send them "
            "with 'bold-audio mlflow-sync' when it is back"
        )
    _write_locally(run_name, local_folder, content)
    return None


def send_runs(local_folder, uri, *, keys=None):
    """Send finished runs of the local store that a server does not have yet; what it has is left alone.

    Parameters
    ----------
    local_folder : path
    uri : str
    keys : set of str, optional
        Send the runs of these trainings alone: see `log_run`.

    Returns
    -------
    sent, known : int
        Runs that were sent now, and that were there before.

    Raises
    ------
    AccessError
        If the server does not answer, or fails; runs that it has then are not sent again.
    """
    _calm()
    require_server(uri, instead="give another mlflow_uri")
    counts = [0, 0]
    for client, experiment, run in _finished_runs(Path(local_folder) / "mlflow.db"):
        if keys is not None and run.data.tags[KEY] not in keys:
            continue
        with tempfile.TemporaryDirectory() as folder:
            content = _content_of(client, run, folder) | {"experiment": experiment}
            try:
                sent = _write(run.info.run_name, uri=uri, artifacts=None, **content)
            except Exception as error:  # whatever a server or what stands before it can answer
                raise AccessError(
                    f"MLflow failed ({type(error).__name__}) at {uri} after {counts[0]} runs - "
                    "try later, it goes on from there"
                ) from error
        counts[not sent] += 1
    return tuple(counts)


def _finished_runs(store):
    """Client, name of the experiment and run, of every finished run in a local store that was logged from here."""
    if not store.is_file():
        return
    client = _client(f"sqlite:///{store}")
    wanted = {"filter_string": f"attributes.status = '{FINISHED}'", "max_results": 1000}
    for experiment in client.search_experiments():
        page = client.search_runs([experiment.experiment_id], **wanted)
        while page:
            yield from ((client, experiment.name, run) for run in page if KEY in run.data.tags)
            page = page.token and client.search_runs([experiment.experiment_id], page_token=page.token, **wanted)


def _content_of(client, run, folder):
    """A run as `_write` takes it, its files copied into ``folder``."""
    number, rows = run.info.run_id, {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(number, name):
            rows.setdefault(metric.step, {"epoch": metric.step})[name] = metric.value
    files = [client.download_artifacts(number, one.path, folder) for one in client.list_artifacts(number)]
    own = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.") or ".git." in name}
    losses = [rows[step] for step in sorted(rows)]
    return {"key": own.pop(KEY), "parameters": run.data.params, "losses": losses, "files": files, "tags": own}


def _write_locally(run_name, folder, content):
    store, artifacts = Path(folder) / "mlflow.db", (Path(folder) / "artifacts").as_uri()
    _ensure_store(store, artifacts)
    _write(run_name, uri=f"sqlite:///{store}", artifacts=artifacts, **content)


def _ensure_store(path, artifacts):
    """Make a local store where there is none, whole or not at all: one with half of its tables never opens again."""
    if path.is_file():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with lock(path.with_name(f".{path.name}.lock"), wait=600, doing="MLflow's local store"):
        if not path.is_file():
            remove_scratch(path.parent, of=path.name)
            with write_whole(path) as part:
                SqlAlchemyStore(f"sqlite:///{part}", artifacts).engine.dispose()


def _write(run_name, *, key, experiment, parameters, losses, files, tags, uri, artifacts):
    """Write a run unless a finished one with its key is there: whether it was written."""
    from mlflow.entities import Metric, Param, RunTag

    client = _client(uri)
    number = _experiment(client, experiment, artifacts)
    known = client.search_runs([number], filter_string=f"tags.`{KEY}` = '{key}'")
    if any(run.info.status == FINISHED for run in known):
        return False
    for run in known:
        if run.info.status == RUNNING:  # by a process that was killed; one that lives sets it to finished
            client.set_terminated(run.info.run_id, "KILLED")
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now, int(row["epoch"]))
        for row in losses
        for name, value in row.items()
        if name != "epoch" and value == value
    ]
    run = client.create_run(number, run_name=run_name, tags=tags | {KEY: key}).info.run_id
    params = [Param(name, value) for name, value in parameters.items()]
    for start in range(0, max(len(metrics), len(params)), 100):  # the most that one request may hold of params
        part = slice(start, start + 100)
        client.log_batch(run, metrics=metrics[part], params=params[part], tags=[] if start else [RunTag(KEY, key)])
    for path in files:
        client.log_artifact(run, str(path))
    client.set_terminated(run, FINISHED)
    return True


def _client(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _experiment(client, name, artifacts):
    """Number of the experiment, made where it is missing, by whoever comes first."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return known.experiment_id


def _calm():
    """Few words, few retries, no telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def _answers(uri):
    """Whether an MLflow server says that it is well, within three seconds."""
    try:
        return requests.get(f"{uri.rstrip('/')}/health", timeout=3).ok
    except requests.RequestException:
        return False
