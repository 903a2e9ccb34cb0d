"""A real Triton server on this machine without Docker: its CPU build from PyPI, and our onnxruntime backend.

The package nvidia-pytriton carries ``tritonserver`` with the python backend only; ``triton_backend/model.py`` makes an
onnxruntime backend of that, so that the folder ``triton_models`` is served as any Triton server would serve it. It
needs an older NumPy, hence an environment of its own, ``.triton``.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import requests

from bold_audio.files import MachineError, project_root, write_whole
from bold_audio.locking import lock

PACKAGES = ("nvidia-pytriton==0.7.0", "onnxruntime==1.32.0", "onnx==1.23.2", "numpy<2")
STARTS_WITHIN = 60  # s
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
POLL = 2  # s between two looks at the repository: versions exported meanwhile are served


def install():
    """Install the server into an environment of its own, once; return that folder.

    Raises
    ------
    MachineError
        If pip cannot install it here.
    """
    folder = project_root() / ".triton"
    stamp = folder / "installed"
    with lock(folder.parent / ".triton.lock", wait=900, doing="the installation of Triton"):
        if stamp.is_file() and stamp.read_text() == _wanted():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES]
        for command in ([sys.executable, "-m", "venv", folder], pip):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise MachineError(f"Triton cannot be installed in {folder}: {why[:300]} - use its Docker image")
        _write_backends(folder)
        with write_whole(stamp) as part:
            part.write_text(_wanted())
    return folder


def _wanted():
    return "\n".join([*PACKAGES, sys.version, (Path(__file__).parent / "triton_backend/model.py").read_text()])


def _packages(folder):
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))


def _write_backends(folder):
    """The python backend whole in one folder (the server refuses links), and the onnxruntime backend beside it."""
    server, backends = _packages(folder) / "pytriton/tritonserver", folder / "backends"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise MachineError(f"Triton's python backend knows no Python {version} - use Python 3.11, or its Docker image")
    shutil.copytree(server / "backends/python", backends / "python", dirs_exist_ok=True)
    shutil.copy2(stub, backends / "python")
    (backends / "onnxruntime").mkdir(parents=True, exist_ok=True)
    shutil.copy2(Path(__file__).parent / "triton_backend/model.py", backends / "onnxruntime/model.py")


class TritonServer:
    """A server process on loopback; a context manager that stops it.

    Parameters
    ----------
    models_dir : path
        The model repository.
    ports : dict
        ``http``, ``grpc`` and ``metrics``; one that is 0 or absent is any free one.
    folder : path, optional
        Where `install` put the server.
    """

    def __init__(self, models_dir, *, ports=None, folder=None):
        self.models_dir = Path(models_dir)
        self.folder = Path(folder or project_root() / ".triton")
        self.ports = {name: (ports or {}).get(name) or _free_port() for name in ("http", "grpc", "metrics")}
        self.process = None

    def url(self, protocol):
        """Where the server answers ``grpc`` or ``http``."""
        return f"127.0.0.1:{self.ports[protocol]}"

    def start(self, *, log=None):
        """Start the process and wait until it is ready; ``log`` is an open file for what it says.

        Raises
        ------
        MachineError
            If a port is taken, it ends, or is not ready in time.
        """
        for name, port in self.ports.items():
            if not _is_free(port):  # else the health of whoever is there would be taken for our own
                raise MachineError(f"port {port} ({name}) is taken - stop who listens there, or give --{name}-port")
        how = {"start_new_session": True, "preexec_fn": _end_with_parent if sys.platform == "linux" else None}
        self.process = subprocess.Popen(self._command(), env=self._environment(), stdout=log, stderr=log, **how)
        begun = time.monotonic()
        while time.monotonic() - begun < STARTS_WITHIN:
            if self.process.poll() is not None:
                raise MachineError(f"Triton ended at once (status {self.process.returncode}) - are its ports taken?")
            if self._answers("/v2/health/ready"):
                return self
            time.sleep(0.1)
        self.stop()
        raise MachineError(f"Triton was not ready after {STARTS_WITHIN} s - look at what it said")

    def _answers(self, path):
        """What it answers as JSON, or True where it says nothing; None where it does not answer."""
        with contextlib.suppress(requests.RequestException), requests.Session() as session:
            session.trust_env = False  # no proxy knows this machine
            answer = session.post if path.endswith("/index") else session.get
            answer = answer(f"http://{self.url('http')}{path}", timeout=2)
            return (answer.json() if answer.content else True) if answer.ok else None

    def models(self):
        """Models and versions by state: those that are ready, and those that could not be loaded with the reason.

        Returns
        -------
        ready : list of str
        failed : dict of str to str
        """
        index = self._answers("/v2/repository/index") or []
        ready = [f"{one['name']} version {one['version']}" for one in index if one.get("state") == "READY"]
        loading = ("READY", "LOADING", None)
        rest = [one for one in index if one.get("state") not in loading]
        return ready, {f"{one['name']} version {one.get('version', '?')}": one.get("reason", "") for one in rest}

    def stop(self, how=signal.SIGTERM):
        """Stop the process and its children, by pid; the second time by force."""
        if self.process is None:
            return
        for one in (how, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, one)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=20)
                return

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, *error):
        self.stop()

    def _command(self):
        server = _packages(self.folder) / "pytriton/tritonserver/bin/tritonserver"
        command = [server, f"--model-repository={self.models_dir}", f"--backend-directory={self.folder / 'backends'}"]
        for name, port in self.ports.items():
            command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
        command += ["--allow-gpu-metrics=false", "--model-control-mode=poll", f"--repository-poll-secs={POLL}"]
        # One model that cannot be loaded stops neither the others nor the server.
        command += ["--exit-on-error=false", "--strict-readiness=false", "--exit-timeout-secs=3"]
        return [str(word) for word in command]

    def _environment(self):
        packages = _packages(self.folder)
        libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        before = os.environ.get("LD_LIBRARY_PATH")
        return os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in (*libraries, before) if path),
            "BOLD_AUDIO_TRITON_PATH": str(packages),
        }


def _end_with_parent():
    """Ask Linux to end the server when the process that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_free(port):
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
