"""Many subjects: each a program of its own, on workers of this machine, of a Dask scheduler or of Slurm.

What is done stands in files (`done`), not in the engine: a worker or a scheduler that dies costs time, and the same
command finishes the rest.
"""

import contextlib
import json
import logging
import os
import queue
import tempfile
import time
import warnings
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bold_audio import machine, warm
from bold_audio.files import TIME, AccessError, BoldAudioError, DataError, MachineError, ParameterError, read_json
from bold_audio.subjects import STATUS

# Dask sets it for its workers, whose programs would give every array's memory back at once and spend a third of their
# processor time in the kernel, which hands it out again page by page.
TRIMMED = "MALLOC_TRIM_THRESHOLD_"


@dataclass(frozen=True)
class Task:
    """One subject's steps, as a command for any machine that sees the same files.

    Parameters
    ----------
    subject : str
    words : tuple of str
        Of ``bold-audio``.
    folder : str
        The subject's outputs.
    """

    subject: str
    words: tuple
    folder: str


@dataclass(frozen=True)
class Ended:
    """How a task ended: exit status, the line it said on stderr, seconds."""

    subject: str
    status: int
    said: str
    seconds: float


def make_task(params, steps, given, *, force=False):
    """The task of one subject; parameters go as JSON, which YAML reads.

    Parameters
    ----------
    params : Params
    steps : str
        As on the command line.
    given : dict
    force : bool
    """
    words = ["run", "--subject", params.subject, "--dataset", params.dataset, "--steps", steps]
    words += ["--force"] if force else []
    words += [word for name, value in given.items() for word in ("-p", name, json.dumps(value))]
    return Task(params.subject, tuple(words), str(params.subject_path))


def run_task(task, *, threads, root):
    """Run one subject in a program of its own, which ends when this process does.

    Returns
    -------
    Ended
    """
    begun = time.perf_counter()
    env = os.environ | dict.fromkeys(machine.THREADS, str(threads)) | {"BOLD_AUDIO_ROOT": str(root)}
    env.pop(TRIMMED, None)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said, open(os.devnull, "w") as nowhere:
        program = warm.start(["bold_audio", *task.words], env=env, cwd=root, stdout=nowhere, stderr=said)
        status = program.wait()
        said.seek(0)
        lines = [line for line in said.read().splitlines() if line.strip()]
    if status < 0:  # by the system, where memory was short, or by somebody
        said = f"its program was killed (signal {-status}) - check memory, or run it alone"
        lines = [f"bold_audio: sub-{task.subject}: {said}"]
        status = MachineError.exit_code
    return Ended(task.subject, status, lines[-1] if lines and status else "", time.perf_counter() - begun)


def plan(all_params, steps, *, force=False):
    """What each subject still lacks: dict of str to dict of step → why; a subject whose files are at fault lacks all.

    Parameters
    ----------
    all_params : list of Params
    steps : list of str
    force : bool
    """
    from bold_audio import done, runs

    def lacks(params):
        if not done.is_begun(params.subject_path, steps):  # terabytes of scans need not be read to know that
            return dict.fromkeys(steps, done.NOT_DONE)
        try:
            now = done.made_from(params, runs.locate_runs(params), steps)
        except BoldAudioError:
            return dict.fromkeys(steps, "not looked at yet")  # the run itself says what is wrong
        whys = {step: done.why_again(params.subject_path, step, now[step]) for step in steps}
        return {step: why or "asked for" for step, why in whys.items() if why or force}

    with ThreadPoolExecutor(4) as pool:  # most of it is MD5, which leaves the interpreter free
        return dict(zip((params.subject for params in all_params), pool.map(lacks, all_params), strict=True))


def memory_of(params):
    """Bytes that a subject takes at its peak; 0 where its scan cannot be read, which the run itself will say."""
    from bold_audio import runs

    try:
        return machine.memory_needed(runs.locate_runs(params), params)
    except BoldAudioError:
        return 0.0


def fitting_workers(wanted, needed, free):
    """How many of the workers wanted fit beside each other into memory; at least one.

    Examples
    --------
    >>> fitting_workers(4, 2e9, 5e9), fitting_workers(2, 0, 1e9), fitting_workers(2, 8e9, 1e9)
    (2, 2, 1)
    """
    return wanted if not needed else max(1, min(wanted, int(free // needed)))


@contextlib.contextmanager
def open_executor(n, *, scheduler=None, cluster=None):
    """Executor of Dask: of ``n`` processes on this machine, reachable from it alone, of a scheduler, or of a cluster.

    Parameters
    ----------
    n : int
    scheduler : str, optional
        Address of a running one, such as ``tcp://10.0.0.1:8786``.
    cluster : distributed.deploy.Cluster, optional
        Such as that of `slurm_cluster`, scaled already.

    Raises
    ------
    AccessError
        If the scheduler does not answer.
    """
    from distributed import Client, LocalCluster

    how = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of ports that another scheduler has taken
        if scheduler is None:
            cluster = stack.enter_context(cluster or LocalCluster(n_workers=n, host="127.0.0.1", **how))
        try:
            client = stack.enter_context(Client(scheduler or cluster, timeout=10))
        except (OSError, ValueError) as error:
            raise AccessError(f"no Dask scheduler answers at {scheduler} - start it: dask scheduler") from error
        yield client.get_executor(pure=False)


def slurm_cluster(options):
    """A `dask_jobqueue.SLURMCluster`, not yet scaled.

    Parameters
    ----------
    options : dict
        As dask-jobqueue names them: ``queue, account, walltime, cores, memory, …``.

    Raises
    ------
    ParameterError
        If an option is unknown or a needed one is missing.
    """
    from dask_jobqueue import SLURMCluster

    try:
        return SLURMCluster(**({"cores": 1, "processes": 1, "walltime": "04:00:00"} | options))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"--slurm-option: {error} - see dask-jobqueue's SLURMCluster for the names") from error


def follow(tasks, executor, *, threads, root):
    """Hand tasks to an executor and yield an `Ended` for each as it ends, and None every second.

    Raises
    ------
    AccessError
        If the executor's scheduler is gone; what had ended by then is on disk.
    """
    running, ended = {}, queue.SimpleQueue()
    for task in tasks:
        future = executor.submit(run_task, task, threads=threads, root=str(root))
        running[future] = task
        future.add_done_callback(ended.put)  # waiting for all of them would look at each whenever one ends
    try:
        while running:
            try:
                future = ended.get(timeout=1.0)
            except queue.Empty:
                yield None
            else:
                yield _result(future, running.pop(future))
    finally:
        for future in running:
            future.cancel()


def _result(future, task):
    try:
        return future.result()
    except CancelledError as error:
        raise AccessError("the scheduler is gone - run the same command again, it finishes the rest") from error
    except Exception as error:  # a worker that died again and again under this subject
        said = f"bold_audio: sub-{task.subject}: its workers died ({type(error).__name__}) - check memory, run it alone"
        return Ended(task.subject, MachineError.exit_code, said, float("nan"))


def state_of(task, since):
    """Where a subject stands, from its files.

    Parameters
    ----------
    task : Task
    since : datetime
        When the cohort began: a run that began before, or has ended, and left no result is to come.

    Returns
    -------
    tuple
        State, step, when it began (datetime or None) and headline.
    """
    folder = Path(task.folder)
    try:
        status = read_json(folder / STATUS, default={})
        summary = read_json(folder / "summary.json", default={})
    except DataError:
        return "unreadable", "", None, ""
    state, begun = status.get("state", "waiting"), None
    with contextlib.suppress(TypeError, ValueError):
        begun = datetime.strptime(status.get("started"), TIME)
    # A run says so of itself while it runs, and leaves it where it is stopped.
    if state == "stopped" and ("finished" in status or (begun is not None and begun < since)):
        state = "waiting"
    return state, status.get("step", ""), begun, next(iter(summary.get("sentences", [])), "")
