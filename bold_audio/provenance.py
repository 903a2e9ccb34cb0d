"""What a result was made from: the code it depends on, packages, the commit, and ``provenance.json`` that says so."""

import ast
import functools
import hashlib
import platform
import re
import subprocess
import threading
from importlib import metadata
from pathlib import Path

from bold_audio.files import fingerprint, project_root, read_json, time_of_day, write_json
from bold_audio.locking import lock

# Modules whose change makes no result stale: they draw, say, write, fetch or read parameters.
NOT_COMPUTING = re.compile(
    r"(\w*_)?(figures|sentences)|style|renderer|files|params|schema|region_specs|brain|tracking|report|registry|access"
    r"|locking|provenance|plain_yaml|openneuro|dvcrepo|fetch|audit|adopt|simulate|simulated_anatomy"
)

# Python before 3.11.8 counts the depth of all trees that are being built as one, and gives up with a SystemError when
# threads take turns at it, as they do where a garbage collection calls Python code: github.com/python/cpython, 106905.
ONE_TREE_AT_A_TIME = threading.Lock()


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
    with ONE_TREE_AT_A_TIME:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "bold_audio":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bold_audio."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("bold_audio.")}
    return [path.with_name(f"{name}.py") for name in sorted(found) if path.with_name(f"{name}.py").is_file()]


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


PACKAGES = (
    "numpy", "scipy", "pandas", "torch", "pytorch-lightning", "librosa", "soundfile", "nibabel", "nilearn", "dipy",
    "onnx", "onnxruntime",
)  # fmt: skip


def package_versions():
    """Versions of the packages that results depend on, by name."""
    return {name: metadata.version(name) for name in PACKAGES}


def record_step(path, step, **facts):
    """Add what one step did to ``provenance.json``; other steps' entries stay."""
    path = Path(path)
    with lock(path.with_name(".provenance.lock"), wait=60, doing="provenance.json"):
        content = read_json(path, default={})
        content[step] = {
            **facts,
            "finished": time_of_day(),
            "git_commit": git_commit(project_root()),
            "python": platform.python_version(),
            "packages": package_versions(),
        }
        write_json(path, content)
