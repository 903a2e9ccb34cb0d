"""How a program ends: errors become one line and an exit status, signals an end in good order."""

import contextlib
import logging
import signal
import threading
import traceback

from bold_audio.files import BoldAudioError, MachineError, project_root, time_of_day

LOG = "bold_audio.log"  # in the outputs: tracebacks of faults that nobody foresaw


def told(error, *, outputs, command):
    """The line for an error, and the exit status.

    Parameters
    ----------
    error : Exception
    outputs : path
        Where the traceback of a fault that nobody foresaw is kept, from the project folder.
    command : str
    """
    if isinstance(error, BoldAudioError):
        return str(error), error.exit_code
    if isinstance(error, OSError | MemoryError):
        return f"{str(error) or type(error).__name__} - check disk, memory and permissions", MachineError.exit_code
    what = f"{type(error).__name__}: {str(error)[:200]}"
    return f"{what} - a fault of bold_audio itself; {_log_traceback(outputs, command)}", BoldAudioError.exit_code


def _log_traceback(outputs, command):
    """Keep the traceback of the error that is handled, and say where it is."""
    with contextlib.suppress(OSError, BoldAudioError, TypeError):
        path = project_root() / outputs / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{time_of_day()} {command}\n{traceback.format_exc()}\n")
        return f"please report it with its traceback, in {path}"
    return "run again with --debug for the traceback, and please report it"


@contextlib.contextmanager
def terminated_as_interrupted():
    """Let SIGTERM and a closed terminal end what runs as Ctrl-C does: kernels are stopped, the report is written."""

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL:  # else nohup asked to go on
        before[hangup] = signal.signal(hangup, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def warnings_shown():
    """Show the package's warnings, such as that a server is asked again, as lines on stderr."""
    shown, logger = logging.StreamHandler(), logging.getLogger("bold_audio")
    shown.setFormatter(logging.Formatter("bold_audio: %(message)s"))
    logger.addHandler(shown)
    try:
        yield
    finally:
        logger.removeHandler(shown)
