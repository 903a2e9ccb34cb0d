"""Finished trainings → MLflow: the server where it answers, else a local file; nothing is lost and nothing doubled."""

import logging
import os
import time
from pathlib import Path

import requests

from bold_audio.files import without_credentials

KEY = "bold_audio.key"  # tag by which a training that is already there is known
FINISHED = "FINISHED"


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
        Parameters are written as text; URLs lose their user and password.
    losses : list of dict
        One per epoch, with ``epoch`` and the metrics of that epoch.
    files : list of path
        Artifacts.
    uri : str or None
        Where the runs go; None means the local sqlite file.
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
        "parameters": {name: without_credentials(str(value))[:500] for name, value in parameters.items()},
        "losses": losses,
        "files": [Path(path) for path in files],
        "tags": tags,
    }
    _calm()
    if uri and uri.startswith("http"):
        reason = "does not answer"
        if _answers(uri):  # asked first, because MLflow's own retries are silent for minutes
            try:
                _write(run_name, uri=uri, artifacts=None, **content)
                return None
            except Exception as error:  # whatever a server or what stands before it can answer
                reason = f"failed ({type(error).__name__})"
        _write_locally(run_name, local_folder, content)
        return f"MLflow {reason} at {without_credentials(uri)}; runs are logged in {local_folder} instead"
    if uri:
        _write(run_name, uri=uri, artifacts=None, **content)
    else:
        _write_locally(run_name, local_folder, content)
    return None


def _write_locally(run_name, folder, content):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(run_name, uri=f"sqlite:///{folder / 'mlflow.db'}", artifacts=(folder / "artifacts").as_uri(), **content)


def _write(run_name, *, key, experiment, parameters, losses, files, tags, uri, artifacts):
    from mlflow.entities import Metric, Param, RunTag

    client = _client(uri)
    number = _experiment(client, experiment, artifacts)
    done = client.search_runs([number], filter_string=f"tags.`{KEY}` = '{key}' and attributes.status = '{FINISHED}'")
    if done:
        return
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
