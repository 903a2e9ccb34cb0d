"""Python programs that begin with their imports made: forked from a process that has done nothing but import.

A notebook of a minute is executed by a kernel that first imports three thousand modules for three seconds, as does the
program that executes it. Here one process imports them once, and whoever asks gets a fork of it, which shares that
memory and runs ``python -m module word …`` in an environment and a folder of its own. A program ends when the one that
asked for it does, however that ended. Elsewhere than on Linux programs are started as always.

The parent of all forks has one thread and reads nothing but requests: over a socket whose other end is held by all who
may ask; when the last of them is gone, it ends. A request brings file descriptors: one end of a pair of sockets, where
words are read, and the process id and later the exit status are written; stdout and stderr; and that other end, so
that a fork can ask as well.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import connection
from pathlib import Path

import numpy as np

from bold_audio.access import TOKEN_VARIABLE
from bold_audio.machine import THREADS

IMPORTED = (
    "bold_audio.run", "bold_audio.cohort_table", "bold_audio.done", "bold_audio.report", "bold_audio.workflow",
    "bold_audio.brain_figures", "bold_audio.delay_figures", "bold_audio.quality_figures", "bold_audio.viewer",
    "bold_audio.quality_sentences", "bold_audio.sentences", "papermill", "ipykernel.kernelapp", "ipykernel.zmqshell",
    "nilearn.glm.first_level", "nilearn.maskers", "nilearn.plotting",
)  # fmt: skip
READ_AT_IMPORT = (*THREADS, "PYTHONPATH", "PYTHONWARNINGS")  # by libraries and Python, so not to be set afterwards
ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # ipykernel sets it, and before matplotlib is imported
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow would start a thread, which forks would lack
}
PARENT = "BOLD_AUDIO_PARENT"  # process that a program ends with, where it is no fork
FORKS = sys.platform == "linux"
OURS, OWN = b"0", b"1"  # process group of a fork
NUMBER = "i"  # of a process, or an exit status

_asked = None  # the process that forks for this one: its key, our end of the socket, and itself where we began it
_asking = threading.Lock()


class Fork:
    """A program that runs, with what is needed of `subprocess.Popen`; it ends, too, when nobody holds this any more.

    Parameters
    ----------
    control : socket.socket
        Where its process id is read, and its exit status when it has ended.
    """

    stdin = stdout = stderr = None

    def __init__(self, control):
        self._control, self.returncode = control, None
        self.pid = _number(control)
        if self.pid is None:
            raise ConnectionResetError("the process that forks has ended")

    def poll(self):
        """Exit status, negative for a signal; None while it runs."""
        if self.returncode is None and connection.wait([self._control], 0):
            status = _number(self._control)
            self.returncode = -signal.SIGKILL if status is None else status
            self._control.close()
        return self.returncode

    def wait(self, timeout=None):
        """Exit status, once it has ended.

        Raises
        ------
        subprocess.TimeoutExpired
        """
        if self.returncode is None and not connection.wait([self._control], timeout):
            raise subprocess.TimeoutExpired("a fork", timeout)
        return self.poll()

    def send_signal(self, number):
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def start(words, *, env, cwd, stdout=1, stderr=2, own_group=False):
    """Start ``python -m`` with these words.

    Parameters
    ----------
    words : sequence of str
        A module and its arguments.
    env : dict of str to str
    cwd : path
    stdout, stderr : int or file
    own_group : bool
        Whether it gets a process group of its own, which Ctrl-C in the terminal does not reach.

    Returns
    -------
    Fork or subprocess.Popen
    """
    for _ in range(2 if FORKS else 0):
        try:
            return _start_fork([*map(str, words)], dict(env), str(cwd), (stdout, stderr), own_group)
        except ConnectionError:  # killed, or an import fails, which the program itself will tell
            forget()
    how = {"env": {**env, PARENT: str(os.getpid())}, "cwd": cwd, "stdout": stdout, "stderr": stderr}
    return subprocess.Popen([sys.executable, "-m", *words], process_group=0 if own_group else None, **how)


def prepare(env=None):
    """Begin the imports that programs in such an environment (default: this one) will need; do not wait for them."""
    if FORKS:
        _ask(dict(os.environ if env is None else env))


def forget():
    """Let the process that forks end when its forks have ended; the next start begins another."""
    global _asked
    with _asking:
        before, _asked = _asked, None  # its socket is closed when no thread that is asking holds it any more
    return before


@atexit.register
def _end():
    """Leave no process behind, and let its seconds be counted with ours."""
    if (before := forget()) is None:
        return
    _, asked, process = before
    asked.close()
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def end_with_parent():
    """End this process soon after the one that started it has ended, however that ended; forks do so of themselves."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch():
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(137)

    threading.Thread(target=watch, daemon=True).start()


# --- who asks -----------------------------------------------------------------------------


def _key(env):
    """What must be equal for one process to fork for two environments: what imports read, and our own code."""
    code = max(path.stat().st_mtime_ns for path in Path(__file__).parent.glob("*.py"))
    return [[env.get(name) for name in READ_AT_IMPORT], code]


def _ask(env):
    """The process that forks in such an environment, begun where there is none: as `_asked`."""
    global _asked
    with _asking:
        key = _key(env)
        if _asked is None or _asked[0] != key:
            _asked = key, *_begin(env)
        return _asked


def _begin(env):
    """Start the process that forks: our end of its socket, and itself."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Not even its memory holds the token, as kernels share it.
    env = {name: value for name, value in env.items() if name != TOKEN_VARIABLE} | ENVIRONMENT
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    command = [sys.executable, "-m", "bold_audio.warm", str(theirs.fileno())]
    with theirs:
        return ours, subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], **silent)


def _start_fork(words, env, cwd, streams, own_group):
    key, asked, _ = _ask(env)
    streams = [one if isinstance(one, int) else one.fileno() for one in streams]
    control, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(asked, [OWN if own_group else OURS], [theirs.fileno(), *streams, asked.fileno()])
    request = {"words": words, "env": env, "cwd": cwd, "key": key}
    control.sendall(json.dumps(request).encode() + b"\n")
    return Fork(control)


def _number(control):
    """The next number from a socket, or None at its end."""
    made = array.array(NUMBER)
    with contextlib.suppress(ConnectionResetError):
        made.frombytes(control.recv(made.itemsize, socket.MSG_WAITALL))
    return made[0] if made else None


# --- who forks ----------------------------------------------------------------------------


def _serve(requests):
    """Fork for whoever asks, until nobody is left and how all have ended is told: None, or in a fork its request."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while selector.get_map():
            for ready, _ in selector.select():
                if ready.fileobj is not requests:
                    selector.unregister(ready.fileobj)
                    _report(ready.fileobj, *ready.data)
                    continue
                group, held, _, _ = socket.recv_fds(requests, 1, 4)
                if not held:
                    selector.unregister(requests)
                    continue
                if not (pid := os.fork()):
                    for other in selector.get_map().values():
                        os.close(other.fd)
                        if other.data:
                            other.data[1].close()
                    return held
                if group == OWN:
                    os.setpgid(pid, pid)  # before anybody knows the number and signals the group
                control, *others = held
                for one in others:
                    os.close(one)
                control = socket.socket(fileno=control)
                _send(control, pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, control))


def _report(ended, pid, control):
    os.close(ended)
    _, status = os.waitpid(pid, 0)
    _send(control, os.waitstatus_to_exitcode(status))
    control.close()


def _send(control, number):
    with contextlib.suppress(OSError):  # nobody is there to hear it
        control.sendall(array.array(NUMBER, [number]).tobytes())


def _become(control, stdout, stderr, asked):
    """Be the program that was asked for: its words, with streams, folder and environment as they should be."""
    global _asked
    control = socket.socket(fileno=control)
    request = json.loads(control.makefile("rb").readline())
    _asked = request["key"], socket.socket(fileno=asked), None
    for made, number in ((stdout, 1), (stderr, 2)):
        os.dup2(made, number)
        os.close(made)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    np.random.seed()  # noqa: NPY002 - else libraries that are given no seed would draw the same in all forks
    sys.argv, sys.path[0] = request["words"], request["cwd"]  # as python -m does
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(sys.argv[0])  # the name that ps and top show
    threading.Thread(target=_end_with, args=(control,), daemon=True).start()


def _end_with(control):
    """End this process at once when the one that asked for it has ended."""
    control.recv(1)
    os._exit(137)


def main():
    """Import, then fork for whoever asks; a fork comes out of this at its end."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no fork looks through what it shares
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the programs
    held = _serve(socket.socket(fileno=int(sys.argv[1])))
    if held:
        signal.signal(signal.SIGINT, heard)
        _become(*held)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # What is run twice is not the same module: forks use the one that everybody imports.
    from bold_audio import warm

    warm.main()
