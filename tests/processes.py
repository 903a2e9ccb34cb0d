"""Other Python processes, for what two of them do to the same files; and the memory that this one takes."""

import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager, suppress

import psutil

from bold_audio.files import project_root


def below(pid, module):
    """The processes below one that run a module of Python, such as ``bold_audio``, started or forked."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it may have ended since
            if one.name() == module[:15] or module in one.cmdline():
                found.append(one)
    return found


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def hears_ctrl_c():
    """For ``preexec_fn``: a program that is started in the background would ignore SIGINT, by nohup SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def peak():
    """Function that tells, after the block, the most bytes that Python held inside it; nothing is traced afterwards."""
    held = []
    tracemalloc.start()
    try:
        yield lambda: held[0]
        held.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def wait_for(found, program=None, seconds=300):
    """Wait until ``found()`` is true and return it; fail if a program that it waits for ends, and after so long."""
    end = time.monotonic() + seconds
    while not (there := found()):
        if program is not None and program.poll() is not None:
            raise AssertionError(f"the program ended before that: {(pipe := program.stderr) and pipe.read()}")
        assert time.monotonic() < end, f"waited in vain for {seconds} s"
        time.sleep(0.05)
    return there


@contextmanager
def python(code, *arguments):
    """Another Python process; it is gone when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=project_root(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
