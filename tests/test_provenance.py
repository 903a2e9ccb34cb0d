"""What a result was made from: its code, the commit, and what is recorded."""

import ast
import functools
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bold_audio import provenance
from bold_audio.files import (
    read_json,
)
from bold_audio.provenance import code_fingerprint, git_commit, record_step


def test_the_fingerprint_of_code_follows_every_module(tmp_path):
    modules = [SimpleNamespace(__file__=str(tmp_path / name)) for name in ("a.py", "b.py")]
    for module in modules:
        with open(module.__file__, "w") as file:
            file.write("x = 1\n")
    before = code_fingerprint(*modules)
    assert code_fingerprint(*modules) == before
    with open(modules[1].__file__, "w") as file:
        file.write("x = 2\n")
    assert code_fingerprint(*modules) != before


def test_the_fingerprint_of_code_follows_what_is_imported_but_not_what_only_draws(tmp_path):
    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return code_fingerprint(SimpleNamespace(__file__=str(tmp_path / "top.py"))) if name != "far" else None

    write("far", "x = 1")
    for name in ("near", "brain_figures"):
        (tmp_path / f"{name}.py").write_text("import numpy\nx = 1")
    (tmp_path / "near.py").write_text("def work():\n    import bold_audio.far")
    before = write("top", "from bold_audio import near, brain_figures\nfrom bold_audio.near import work")
    assert write("brain_figures", "x = 2") == before
    write("far", "x = 2")
    after = code_fingerprint(SimpleNamespace(__file__=str(tmp_path / "top.py")))
    assert after != before
    assert write("near", "y = 1") != after


def computing(*modules):
    """Paths of the modules whose code is in the keys of what these make."""
    seen, todo = set(), [Path(module.__file__) for module in modules]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            found = provenance.imported_modules(path, path.read_bytes())
            todo += [one for one in found if not provenance.NOT_COMPUTING.fullmatch(one.stem)]
    return seen


def test_the_packages_that_results_depend_on_are_recorded():
    from bold_audio import export, group_maps, inferred, models, training

    imported = set()
    for path in computing(export, group_maps, inferred, models, training):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    # What shares out work, and the formats and the client of a server, change no number.
    imported -= {*sys.stdlib_module_names, "bold_audio", "joblib", "threadpoolctl", "google", "tritonclient"}
    assert imported == {name.replace("-", "_") for name in provenance.package_versions()}


def test_what_changes_the_inference_is_in_its_key():
    """The modules whose absence from lists by hand once kept old results under new code."""
    from bold_audio import inferred

    names = {path.stem for path in computing(inferred)}
    assert names >= {
        "evidence",
        "gram",
        "scores",
        "whitening",
        "region_inference",
        "pairing",
        "splits",
        "sound",
        "data",
        "motion",
    }
    assert not names & {"figures", "sentences", "brain", "report", "fetch"}


def test_provenance_keeps_the_entries_of_other_steps(tmp_path):
    path = tmp_path / "provenance.json"
    record_step(path, "train", parameters={"lr": 0.1})
    record_step(path, "sweep", delay=5.0)
    record_step(path, "train", parameters={"lr": 0.2})
    content = json.loads(path.read_text())
    assert sorted(content) == ["sweep", "train"]
    assert content["sweep"]["delay"] == 5.0
    assert content["train"]["parameters"] == {"lr": 0.2}
    assert content["train"]["packages"]["numpy"] == np.__version__
    assert content["train"]["python"] == sys.version.split()[0]


def test_steps_recorded_at_once_are_all_there(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git_commit", lambda root: None)
    threads = [threading.Thread(target=record_step, args=(tmp_path / "provenance.json", f"step {k}")) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_json(tmp_path / "provenance.json")) == [f"step {k}" for k in range(6)]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_tells_when_the_work_tree_differs(tmp_path):
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    (tmp_path / "a.txt").write_text("1")
    for command in (["init", "-q"], ["add", "a.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "new.txt").touch()
    assert git_commit(tmp_path) == commit
    (tmp_path / "a.txt").write_text("2")
    assert git_commit(tmp_path) == commit + "+changes"


@pytest.mark.slow
def test_threads_read_code_at_the_same_time():
    """A garbage collection that calls Python code lets them take turns in the middle of a tree."""
    here, limits = Path(provenance.__file__), gc.get_threshold()
    sources = [path.read_bytes() for path in sorted(here.parent.glob("g*.py"))] * 10
    read = functools.partial(provenance.imported_modules.__wrapped__, here)  # without its cache
    alone = [read(one) for one in sources]
    turn = lambda *_: time.sleep(0)  # noqa: E731
    gc.callbacks.append(turn)
    gc.set_threshold(50)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, sources)) == alone
    finally:
        gc.set_threshold(*limits)
        gc.callbacks.remove(turn)
