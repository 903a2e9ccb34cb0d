"""One subject's notebooks, executed headlessly one after the other; what came of it is kept beside them."""

import logging
import platform
import re
import time
from importlib import metadata
from pathlib import Path

import nbformat

from bold_audio import __version__
from bold_audio.access import token_hidden
from bold_audio.files import (
    AccessError,
    BoldAudioError,
    DataError,
    MachineError,
    ModelError,
    ParameterError,
    project_root,
    write_json,
    write_text,
)
from bold_audio.provenance import PACKAGES, git_commit

STEPS = (
    "00_data_download",
    "01_mfcc_exploration",
    "02_baselines",
    "03_dt_sweep",
    "04_train",
    "05_export",
    "06_inference",
)
EXIT_CODES = {e.__name__: e.exit_code for e in (ParameterError, DataError, AccessError, MachineError, ModelError)}
EXIT_CODES |= {"MemoryError": 5, "PermissionError": 5}
WIDGET = "application/vnd.jupyter.widget-view+json"


class StepError(BoldAudioError):
    """A notebook that did not run to its end; ``exit_code`` is that of the error inside it."""

    def __init__(self, message, exit_code):
        super().__init__(message)
        self.exit_code = exit_code


def chosen_steps(text):
    """Notebook names that ``00-06``, ``03`` or ``02,03`` mean.

    Examples
    --------
    >>> chosen_steps("02-03,06")
    ['02_baselines', '03_dt_sweep', '06_inference']
    """
    wanted = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
        if not match:
            raise ParameterError(f"steps must look like 00-06 or 02,03, got {text!r}")
        part_of = range(int(match[1]), int(match[2] or match[1]) + 1)
        if not part_of:
            raise ParameterError(f"steps must run from the lower to the higher, got {text!r}")
        wanted |= set(part_of)
    steps = [name for name in STEPS if int(name[:2]) in wanted]
    if len(steps) < len(wanted):
        raise ParameterError(f"steps must be between 00 and {STEPS[-1][:2]}, got {text!r}")
    return steps


def run_subject(params, steps, given, *, say):
    """Execute a subject's notebooks and write its report, also when one of them fails.

    Parameters
    ----------
    params : Params
    steps : list of str
        Names of notebooks.
    given : dict
        Parameters for papermill.
    say : callable
        Is told a line after each step.

    Returns
    -------
    Path
        The report's index.

    Raises
    ------
    BoldAudioError
        With the line that names what is wrong and what to do.
    """
    from bold_audio.fetch import fetch_missing
    from bold_audio.report import STAMP, write_page, write_report
    from bold_audio.subjects import STATUS

    folder, who = params.subject_path, f"sub-{params.subject} · {params.label}"
    status = {"state": "stopped", "step": "fetch", "started": _now()}
    try:
        write_json(folder / STATUS, status)
        fetch_missing(params)
        for status["step"] in steps:
            write_json(folder / STATUS, status)
            begun = time.perf_counter()
            try:
                executed = run_step(status["step"], folder, given)
            finally:
                stamp(folder / f"{status['step']}.ipynb", STAMP, params)
            write_page(executed, folder / "report" / f"{status['step']}.html", who=who)
            say(f"sub-{params.subject}: {status['step']} {time.perf_counter() - begun:6.1f} s")
        status = {"state": "done", "steps": list(steps), "started": status["started"]}
    except BoldAudioError as error:
        status |= {"state": "failed", "error": " ".join(str(error).split())}
        raise
    finally:
        write_json(folder / STATUS, status | {"finished": _now()})
        index = write_report(params)
    return index


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


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
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    where = folder / f"{step}.ipynb"
    try:
        return execute(step, folder, given)
    except DeadKernelError as error:
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
    """Execute the notebook ``source`` in the folder ``cwd`` with the parameters ``given``; keep it as ``target``."""
    import papermill

    # A parameter that a notebook's own cell does not list is fine: the schema has checked them all.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # Papermill fills {names} in paths from the parameters, unless braces are doubled.
    source, out = (str(path).replace("{", "{{").replace("}", "}}") for path in (source, target))
    with token_hidden():  # what a notebook prints is kept
        papermill.execute_notebook(
            source,
            out,
            parameters=given,
            cwd=str(cwd),
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
            store_widget_state=False,  # megabytes, with the programs that would draw widgets whose kernel is gone
            extra_arguments=["--log-level=CRITICAL"],  # ipykernel warns about loopback TCP at every start
        )
    return target


def stamp(executed, key, params):
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
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "input_md5": _input_md5(params),
    }
    write_text(executed, nbformat.writes(notebook) + "\n")


def _input_md5(params):
    """MD5 of scan and sound; empty where they are not there, which is why the notebook failed."""
    from bold_audio import prepare, runs

    try:
        return prepare.input_md5(params, runs.locate_runs(params))
    except BoldAudioError:
        return {}
