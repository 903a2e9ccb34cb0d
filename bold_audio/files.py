"""Errors with exit codes, whole-or-nothing writes, locks, the cache, hashes and provenance."""

import ast
import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout


class BoldAudioError(Exception):
    """An error the person can act on; ``exit_code`` is what the command line returns."""

    exit_code = 1


class ParameterError(BoldAudioError, ValueError):
    """A parameter or a command that cannot be right."""

    exit_code = 2


class DataError(BoldAudioError, ValueError):
    """A scan, sound or table that is missing, damaged or does not fit."""

    exit_code = 3


class AccessError(BoldAudioError):
    """A server, a token or the network stands in the way."""

    exit_code = 4


class MachineError(BoldAudioError):
    """Disk, memory, permission or a lock stands in the way."""

    exit_code = 5


class ModelError(BoldAudioError):
    """A model file that does not fit the data it is asked to predict."""

    exit_code = 6


def project_root():
    """Return the folder that holds ``params/`` and ``notebooks/``.

    ``BOLD_AUDIO_ROOT`` where set, else the nearest parent of the working folder that
    looks like the project, else the folder this package was installed from.
    """
    named = os.environ.get("BOLD_AUDIO_ROOT")
    here = Path.cwd()
    candidates = [Path(named)] if named else [here, *here.parents, Path(__file__).parents[1]]
    for folder in candidates:
        if (folder / "params" / "common.yaml").is_file() and (folder / "notebooks").is_dir():
            return folder.resolve()
    raise DataError(
        f"no project folder (with params/common.yaml and notebooks/) at {candidates[-1]} - "
        "run inside a clone of the project, or set BOLD_AUDIO_ROOT to it"
    )


@contextlib.contextmanager
def write_whole(path, *, replace_folder=False):
    """Yield a temporary path beside ``path`` that takes its name only when all went well.

    A reader, or a process killed half-way, never sees a partial file. The temporary
    path may be made a file or a folder; a folder replaces an existing one only when told to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written in a folder of its own, because savers choose formats by the file's ending.
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", dir=path.parent))
    try:
        part = scratch / path.name
        yield part
        if not part.exists():
            raise FileNotFoundError(f"nothing was written for {path}")
        if replace_folder and path.is_dir():
            os.rename(path, scratch / "replaced")
        os.replace(part, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path, text):
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path, content):
    """Write ``content`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path, default=None, *, mend="delete it, it is made again"):
    """Read a JSON file; return ``default`` where there is none. ``mend`` is what a damaged one needs."""
    path = Path(path)
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON ({error}) - {mend}") from error


def write_table(path, table):
    """Write a pandas table as TSV with ``n/a`` for what is missing, as BIDS asks."""
    with write_whole(path) as part:
        table.to_csv(part, sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n")


def write_arrays(path, arrays):
    """Write a dictionary of NumPy arrays as one ``.npz`` file."""
    with write_whole(path) as part, part.open("wb") as handle:
        np.savez(handle, **arrays)


@contextlib.contextmanager
def lock(path, *, wait=0.0, doing="this"):
    """Hold the lock file ``path``; wait at most ``wait`` seconds for another owner."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(str(path))
    try:
        held.acquire(timeout=wait, poll_interval=0.1)
    except Timeout:
        raise MachineError(f"{doing} is locked by another process ({path}) - wait until it is done") from None
    try:
        yield
    finally:
        held.release()


def without_credentials(text):
    """The text with user and password taken out of every URL in it.

    Examples
    --------
    >>> without_credentials("runs at http://me:secret@127.0.0.1:8080/x")
    'runs at http://127.0.0.1:8080/x'
    """
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1", text)


def file_md5(path):
    """MD5 of a file, the checksum that DVC and OpenNeuro publish."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def fingerprint(*parts):
    """Short hash of anything that JSON can write; equal content gives an equal hash."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Modules whose change makes no result stale: they draw, say, write, fetch or read parameters.
NOT_COMPUTING = re.compile(
    r"(\w*_)?(figures|sentences)|style|renderer|files|params|region_specs|brain|tracking|report|registry|access"
    r"|openneuro|dvcrepo|fetch|audit|adopt|simulate|simulated_anatomy"
)


def code_fingerprint(*modules):
    """Hash of the source files of ``modules`` and of all they import from the package, directly or not.

    What they made is stale when one of them changes. Modules that compute nothing (`NOT_COMPUTING`) are left out, with
    what only they import, unless they are named here.
    """
    read, todo = {}, [Path(module.__file__) for module in modules]
    while todo:
        path = todo.pop()
        if path not in read:
            read[path] = path.read_bytes()
            todo += [one for one in imported_modules(path, read[path]) if not NOT_COMPUTING.fullmatch(one.stem)]
    return fingerprint(*(hashlib.sha256(read[path]).hexdigest() for path in sorted(read)))


@functools.lru_cache(maxsize=1000)
def imported_modules(path, source):
    """The package's modules that a source file imports, at its top or inside a function: list of Path."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "bold_audio":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bold_audio."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("bold_audio.")}
    return [path.with_name(f"{name}.py") for name in sorted(found) if path.with_name(f"{name}.py").is_file()]


def cached_folder(cache_dir, key, make):
    """Return the folder ``cache_dir/key``, calling ``make(folder)`` where it is missing.

    Two processes that want the same folder are safe: the second waits for the first.
    """
    folder = Path(cache_dir) / key
    if not folder.is_dir():
        with lock(Path(cache_dir) / f".{key}.lock", wait=600, doing=f"cache entry {key}"):
            if not folder.is_dir():
                with write_whole(folder) as part:
                    part.mkdir()
                    make(part)
    return folder


def git_commit(root):
    """Commit of the project, with ``+changes`` when the work tree differs; None outside git."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


PACKAGES = ("numpy", "scipy", "torch", "pytorch-lightning", "librosa", "nibabel", "nilearn", "onnx", "onnxruntime")


def record_step(path, step, **facts):
    """Add what one step did to ``provenance.json``; other steps' entries stay."""
    path = Path(path)
    with lock(path.with_name(".provenance.lock"), wait=60, doing="provenance.json"):
        content = read_json(path, default={})
        content[step] = {
            **facts,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "git_commit": git_commit(project_root()),
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in PACKAGES},
        }
        write_json(path, content)
