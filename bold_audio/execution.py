"""One subject's notebooks, executed headlessly one after the other; what came of it is kept beside them."""

import contextlib
import logging
import os
import platform
import sys
import tempfile
import threading
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import chain
from pathlib import Path

import nbformat
import psutil

from bold_audio import __version__, machine, warm
from bold_audio.access import token_hidden
from bold_audio.bundle import folders_of
from bold_audio.files import (
    SCRATCH,
    AccessError,
    BoldAudioError,
    DataError,
    MachineError,
    ModelError,
    ParameterError,
    project_root,
    time_of_day,
    write_json,
    write_text,
)
from bold_audio.locking import DATASET_LOCK, EXPORT_LOCK, remove_scratch, remove_unlocked_scratch
from bold_audio.provenance import git_commit, package_versions
from bold_audio.schema import MODEL_KINDS
from bold_audio.steps import GROUP_STEP

EXIT_CODES = {e.__name__: e.exit_code for e in (ParameterError, DataError, AccessError, MachineError, ModelError)}
EXIT_CODES |= {"MemoryError": 5, "PermissionError": 5, "OSError": 5}
OPENING = "scan and sound"  # what comes before the first notebook
KERNEL = "ipykernel_launcher"
LOG = logging.getLogger(__name__)
# ipykernel warns about loopback TCP at every start, and at times answers its last message when its sockets are closed.
QUIET = [
    "--log-level=CRITICAL",
    '--IPKernelApp.logging_config={"loggers": {"tornado.general": {"level": "CRITICAL"}}}',
]
WIDGET = "application/vnd.jupyter.widget-view+json"


class StepError(BoldAudioError):
    """A notebook that did not run to its end; ``exit_code`` is that of the error inside it."""

    def __init__(self, message, exit_code):
        super().__init__(message)
        self.exit_code = exit_code


def run_subject(params, steps, given, *, say, force=False):
    """Execute a subject's notebooks and write its report, also when one of them fails.

    Scan and sound are opened before the first kernel starts, so that a fault in them is told at once. A step whose
    parameters, inputs, notebook and code are those of its last run is left alone.

    Parameters
    ----------
    params : Params
    steps : list of str
        Names of notebooks.
    given : dict
        Parameters for papermill.
    say : callable
        Is told a line after each step.
    force : bool
        Whether to execute steps that are done, too.

    Returns
    -------
    Path
        The report's index.

    Raises
    ------
    BoldAudioError
        With the line that names what is wrong and what to do.
    """
    from bold_audio.report import INDEX, write_report
    from bold_audio.subjects import STATUS

    folder, name = params.subject_path, f"sub-{params.subject}"
    status = {"state": "stopped", "step": OPENING, "started": time_of_day()}

    def tell(error):
        nonlocal status
        if isinstance(error, Exception):
            said = str(error) if isinstance(error, BoldAudioError) else f"{type(error).__name__}: {str(error)[:200]}"
            status |= {"state": "failed", "error": " ".join(said.split())}
        write_json(folder / STATUS, status | {"finished": time_of_day()})
        stopped = error is not None and not isinstance(error, Exception)  # somebody waits for the prompt
        write_report(
            params, wait=5 if stopped else 600
        )  # always: the run before may have been killed in the midst of it

    with _at_the_end(tell):
        write_json(folder / STATUS, status)
        _remove_leftovers(params)
        begun = time.perf_counter()
        made_from, todo = _open(params, steps, force)
        for step in steps:
            if step not in todo:
                say(f"{name}: {step} is done, and nothing that it was made from has changed")
        if todo:
            say(f"{name}: {OPENING} {time.perf_counter() - begun:6.1f} s")
        for status["step"] in todo:
            write_json(folder / STATUS, status)
            seconds = _run_and_note(params, status["step"], given, made_from[status["step"]])
            say(f"{name}: {status['step']} {seconds:6.1f} s ({todo[status['step']]})")
        status = {"state": "done", "steps": list(steps), "started": status["started"]}
    return folder / "report" / INDEX


@contextlib.contextmanager
def _at_the_end(work):
    """Do ``work(error)`` after a block, whatever becomes of it: of two errors the block's own is raised."""
    try:
        yield
    except BaseException as error:
        try:
            work(error)
        except Exception as another:
            LOG.warning("and then: %s", " ".join(str(another).split()) or type(another).__name__)
        raise
    work(None)


def run_group(params, given):
    """Execute the notebook of the group answer and write its page, also when it fails.

    Parameters
    ----------
    params : Params
        Of any of the dataset's subjects.
    given : dict
        Parameters for papermill.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BoldAudioError
        If fewer than two people can be counted, before anything is executed; or as `run_step` does.
    """
    from bold_audio import group, report

    folder = group.folder_of(params)
    group.open_group(params)
    remove_scratch(folder, below=True)

    def tell(error):
        stamp(folder / f"{GROUP_STEP}.ipynb", report.STAMP, {})
        report.write_group_page(params, folder)

    with _at_the_end(tell):
        run_step(GROUP_STEP, folder, given)
    return folder.parent / report.GROUP_PAGE


def _remove_leftovers(params):
    """Remove what killed processes left half-written, but where another process is writing now."""
    from bold_audio.viewed import kept_folder

    models = params.resolve(params.models_dir)
    for folder in (params.subject_path, params.checkpoint_path, kept_folder(params)):
        remove_scratch(folder, below=True)
    for folder in (params.cache_path, params.mlflow_path):
        remove_unlocked_scratch(folder)
    remove_unlocked_scratch(params.subject_path.parent, lock_name=DATASET_LOCK)
    for folder in chain.from_iterable(folders_of(models, params.exported_as(kind)) for kind in MODEL_KINDS):
        remove_unlocked_scratch(folder, lock_name=EXPORT_LOCK)


def _open(params, steps, force):
    """What each step would be made from, and why it has to be made, by step; scan and sound are opened if any has."""
    from bold_audio import done, prepare

    files = prepare.ensure_scan(params)
    made_from = done.made_from(params, files, steps)
    whys = {step: done.why_again(params.subject_path, step, made_from[step]) for step in steps}
    todo = {step: why or "asked for" for step, why in whys.items() if why or force}
    if todo:
        warm.prepare()
        machine.check_memory(files, params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notebooks show them
            subject = prepare.open_subject(params)
        subject.check_folds([step[:2] for step in todo])
    return made_from, todo


def _run_and_note(params, step, given, made_from):
    """Execute one step, write its page and put it on the list of those that are done: seconds."""
    from bold_audio import done
    from bold_audio.report import STAMP, write_page

    folder, begun = params.subject_path, time.perf_counter()
    before = done.begin(params, step)
    md5 = {name: value for name, value in made_from["inputs"].items() if name != done.OWN_ROW}
    with _at_the_end(lambda error: stamp(folder / f"{step}.ipynb", STAMP, md5)):
        executed = run_step(step, folder, given)
    write_page(executed, folder / "report" / f"{step}.html", who=f"sub-{params.subject} · {params.label}")
    seconds = time.perf_counter() - begun
    files = done.files_written(before, done.snapshot(params), step=step)
    done.mark_done(folder, step, made_from, files=files, seconds=seconds)
    return seconds


def run_step(step, folder, given):
    """Execute one notebook; what stops it becomes an error of one line.

    Returns
    -------
    Path
        The executed copy.

    Raises
    ------
    StepError
    """
    from papermill.exceptions import PapermillExecutionError

    where = folder / f"{step}.ipynb"
    try:
        return execute(step, folder, given)
    except RuntimeError as error:
        if "Kernel died" not in str(error):  # also of one that never answered
            raise
        said = f"{step}: its kernel died - check the memory; what it had done is in {where}"
        raise StepError(said, 5) from error
    except PapermillExecutionError as error:
        message = " ".join(str(error.evalue).split()) or error.ename
        if error.ename not in EXIT_CODES:
            message = f"{step} failed with {error.ename}: {message[:300]} - the traceback is in {where}"
        raise StepError(message, EXIT_CODES.get(error.ename, 1)) from error


def execute(step, folder, given):
    """Execute a step's notebook headlessly into ``folder``; the source in ``notebooks/`` is never written.

    Returns
    -------
    Path
        The executed copy. One that failed is kept too, with its traceback.
    """
    root = project_root()
    return execute_file(root / "notebooks" / f"{step}.ipynb", Path(folder) / f"{step}.ipynb", given, cwd=root)


def execute_file(source, target, given, *, cwd):
    """Execute the notebook ``source`` in the folder ``cwd`` with the parameters ``given``; keep it as ``target``.

    The executed copy takes its name when it has come to its end or to an error. Whatever stops this process stops the
    kernel too.
    """
    import papermill

    # A parameter that a notebook's own cell does not list is fine: the schema has checked them all. Errors are raised.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    target.parent.mkdir(parents=True, exist_ok=True)
    kernels, kill = _kernels()
    with (
        token_hidden(),  # what a notebook prints is kept
        tempfile.TemporaryDirectory(prefix=f".{target.stem}.", suffix=SCRATCH, dir=target.parent) as scratch,
        ThreadPoolExecutor(1) as thread,  # in the main thread nbclient would take signals for a kernel that died
    ):
        running = thread.submit(
            papermill.execute_notebook,
            _without_names(source),
            _without_names(made := Path(scratch) / target.name),
            parameters=given,
            cwd=str(cwd),
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
            store_widget_state=False,  # megabytes, with the programs that would draw widgets whose kernel is gone
            kernel_manager_class=kernels,
            extra_arguments=QUIET,
        )
        try:
            running.result()
        finally:
            kill()
            wait([running])
            if made.is_file():
                _keep(made, target)
    return target


def _kernels():
    """A class of kernel managers for one execution, and a function that kills what they started, from any thread."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    made, stopped = [], threading.Event()

    class Warm(LocalProvisioner):
        async def launch_kernel(self, cmd, *, env, cwd=None, **options):
            if cmd[0] != sys.executable or KERNEL not in cmd:  # somebody's own kernel specification
                return await super().launch_kernel(cmd, env=env, cwd=cwd, **options)
            words, env = cmd[cmd.index(KERNEL) :], env | {"JPY_PARENT_PID": str(os.getpid())}  # as jupyter_client does
            process = warm.start(words, env=env, cwd=cwd or os.getcwd(), own_group=True)
            self.pid = self.pgid = process.pid
            self.process, self.cwd = process, cwd
            if stopped.is_set():  # while it was started: whoever stopped saw no process to kill
                process.kill()
                raise RuntimeError("stopped before its kernel was there")
            return self.connection_info

    class Kernels(AsyncKernelManager):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)
            self.kernel_id = str(uuid.uuid4())
            self.provisioner = Warm(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)

    def kill():
        stopped.set()
        for manager in made:
            if manager.has_kernel:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(manager.provisioner.pid).kill()

    return Kernels, kill


def _without_names(path):
    """A path as papermill wants it, which fills {names} in paths from the parameters unless braces are doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _keep(made, target):
    notebook = nbformat.read(made, as_version=4)
    notebook.metadata.get("papermill", {})["output_path"] = str(target)
    write_text(target, nbformat.writes(notebook) + "\n")


def stamp(executed, key, input_md5):
    """Write into an executed notebook with what it was made; take out widgets, which ended with their kernel."""
    if not executed.is_file():
        return
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    notebook.metadata[key] = {
        "version": __version__,
        "git_commit": git_commit(project_root()),
        "python": platform.python_version(),
        "packages": package_versions(),
        "input_md5": input_md5,
    }
    write_text(executed, nbformat.writes(notebook) + "\n")
