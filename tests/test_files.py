"""Files appear whole or not at all, locks hold, the cache is made once, hashes notice changes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bold_audio import files
from bold_audio.files import (
    AccessError,
    BoldAudioError,
    DataError,
    MachineError,
    ModelError,
    ParameterError,
    cached_folder,
    code_fingerprint,
    file_md5,
    fingerprint,
    git_commit,
    lock,
    project_root,
    read_json,
    record_step,
    write_json,
    write_table,
    write_text,
    write_whole,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


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


# --- whole or not at all ----------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), write_whole(path) as part:
        part.write_text("half of the new")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "scores.nii.gz"
    path.write_text("old")
    with write_whole(path) as part:
        assert part.name == path.name  # savers go by the ending
        assert part.parent.parent == path.parent  # the same disk, so that a rename is enough
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["scores.nii.gz"]


def test_a_write_makes_the_folders_it_needs(tmp_path):
    write_text(tmp_path / "données é x" / "{x}%" / "a.txt", "text")
    assert (tmp_path / "données é x" / "{x}%" / "a.txt").read_text() == "text"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\nfrom bold_audio.files import write_whole\n"
        "with write_whole(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with python(code, path) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_folder_is_replaced_only_when_told(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OSError), write_whole(folder) as part:
        part.mkdir()
        (part / "new").touch()
    assert names(folder) == ["old"]
    with write_whole(folder, replace_folder=True) as part:
        part.mkdir()
        (part / "new").touch()
        assert names(folder) == ["old"]
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_folder_stays_when_its_successor_fails(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ZeroDivisionError), write_whole(folder, replace_folder=True) as part:
        part.mkdir()
        1 / 0  # noqa: B018
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_folder_stays_when_no_successor_was_made(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OSError), write_whole(folder, replace_folder=True):
        pass
    assert folder.is_dir()
    assert names(folder) == ["old"]


def test_text_is_utf8_with_plain_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "Δt\n2\n")
    assert (tmp_path / "a.txt").read_bytes() == "Δt\n2\n".encode()


def test_json_comes_back(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"é": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    write_json(tmp_path / "b.json", dict(reversed(content.items())))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        write_json(tmp_path / "a.json", loop)
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_missing_json_gives_the_default(tmp_path):
    assert read_json(tmp_path / "none.json") is None
    assert read_json(tmp_path / "none.json", default={}) == {}


@pytest.mark.parametrize("content", [b'{"a": \n', b"", b"\xff", b"<html>\n</html>"])
def test_a_damaged_json_is_named_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not readable JSON .* - ") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_table_is_written_as_bids_asks(tmp_path):
    table = pd.DataFrame({"model": ["sound", None], "r": [0.123456789012, np.nan], "n": [3, 4]})
    write_table(tmp_path / "a.tsv", table)
    assert (tmp_path / "a.tsv").read_bytes() == b"model\tr\tn\nsound\t0.12345679\t3\nn/a\tn/a\t4\n"


# --- locks ------------------------------------------------------------------------------

HOLD = (
    "import sys\nfrom bold_audio.files import lock\n"
    "with lock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.readline()\nprint('free', flush=True)"
)


def test_a_lock_of_another_process_is_respected_and_freed(tmp_path):
    path = tmp_path / "deep" / ".lock"
    with python(HOLD, path) as other:
        assert other.stdout.readline() == "held\n"
        locked = pytest.raises(MachineError, match="sub-09 is locked by another process .* - wait")
        with locked as caught, lock(path, doing="sub-09"):
            pass
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "free\n"
        with lock(path):
            pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    with python(HOLD, tmp_path / ".lock") as other:
        assert other.stdout.readline() == "held\n"
        other.kill()
        other.wait(10)
        with lock(tmp_path / ".lock"):
            pass


def test_a_lock_waits_as_long_as_it_is_told(tmp_path):
    order, held = [], threading.Event()

    def first():
        with lock(tmp_path / ".lock"):
            held.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(10)
    with lock(tmp_path / ".lock", wait=10):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_is_freed_when_its_body_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path / ".lock"):
        1 / 0  # noqa: B018
    with lock(tmp_path / ".lock"):
        pass


# --- the cache --------------------------------------------------------------------------


def test_a_cache_entry_is_made_once_for_threads_that_want_it_together(tmp_path):
    made, got, start = [], [], threading.Barrier(3)

    def make(folder):
        made.append(threading.get_ident())
        assert not (tmp_path / "cache" / "key").exists()  # nobody sees it half-made
        time.sleep(0.1)
        (folder / "a").write_text("whole")

    def want():
        start.wait(10)
        got.append((cached_folder(tmp_path / "cache", "key", make) / "a").read_text())

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert got == ["whole"] * 3


def test_a_cache_entry_is_made_once_for_processes_that_want_it_together(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom bold_audio.files import cached_folder\n"
        "def make(folder):\n"
        "    with open(sys.argv[1] + '/made', 'a') as log: log.write('x')\n"
        "    time.sleep(0.3); (folder / 'a').write_text('whole')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print((cached_folder(sys.argv[1] + '/cache', 'key', make) / 'a').read_text(), flush=True)"
    )
    with python(code, tmp_path) as one, python(code, tmp_path) as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            process.stdin.write("\n")
            process.stdin.flush()
        assert [p.stdout.readline() for p in (one, two)] == ["whole\n", "whole\n"]
    assert (tmp_path / "made").read_text() == "x"


def test_a_cache_entry_whose_making_fails_is_not_there(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise DataError("damaged - fetch it again")

    def make(folder):
        (folder / "a").touch()

    with pytest.raises(DataError, match="damaged"):
        cached_folder(tmp_path, "key", fail)
    assert set(names(tmp_path)) <= {".key.lock"}
    assert names(cached_folder(tmp_path, "key", make)) == ["a"]
    cached_folder(tmp_path, "key", fail)  # there now, so not made again


# --- hashes -----------------------------------------------------------------------------


def test_fingerprints_tell_contents_apart():
    contents = [(), (1,), (2,), (1.5,), ("1",), (None,), (True,), ([1, 2],), ([2, 1],), (1, 2), ({"a": 1},),
                ({"b": 1},), ({"a": 2},), ({"a": [1, {"b": 2}]},), ({"a": [1, {"b": 3}]},), ("a", "b")]  # fmt: skip
    assert len({fingerprint(*c) for c in contents}) == len(contents)


def test_a_fingerprint_does_not_hang_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_a_fingerprint_is_the_same_in_another_process():
    with python("from bold_audio.files import fingerprint; print(fingerprint({'a': [1, 'b']}))") as other:
        assert other.communicate()[0].strip() == fingerprint({"a": [1, "b"]})


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


def test_what_changes_the_inference_is_in_its_key():
    """The modules whose absence from lists by hand once kept old results under new code."""
    from bold_audio import files, inferred

    seen, todo = set(), [Path(inferred.__file__)]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            found = files.imported_modules(path, path.read_bytes())
            todo += [one for one in found if not files.NOT_COMPUTING.fullmatch(one.stem)]
    names = {path.stem for path in seen}
    assert names >= {
        "evidence",
        "gram",
        "scores",
        "whitening",
        "region_inference",
        "pairing",
        "sound",
        "data",
        "motion",
    }
    assert not names & {"figures", "sentences", "brain", "report", "fetch"}


def test_md5_is_the_one_of_the_whole_file(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert file_md5(tmp_path / "a") == hashlib.md5(content).hexdigest()


# --- provenance -------------------------------------------------------------------------


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
    monkeypatch.setattr(files, "git_commit", lambda root: None)
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


# --- errors and the project folder ------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"), [(ParameterError, 2), (DataError, 3), (AccessError, 4), (MachineError, 5), (ModelError, 6)]
)
def test_every_kind_of_error_has_its_exit_code(kind, code):
    assert kind.exit_code == code
    assert issubclass(kind, BoldAudioError)


def test_the_project_folder_is_found_from_inside_and_from_anywhere(tmp_path, monkeypatch):
    root = project_root()
    monkeypatch.delenv("BOLD_AUDIO_ROOT", raising=False)
    for place in (root, root / "notebooks", tmp_path):  # elsewhere: where the package was installed from
        monkeypatch.chdir(place)
        assert project_root() == root
    clone = tmp_path / "clone"
    for folder in ("params", "notebooks/deep"):
        (clone / folder).mkdir(parents=True)
    (clone / "params" / "common.yaml").touch()
    monkeypatch.chdir(clone / "notebooks" / "deep")
    assert project_root() == clone
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(root))
    assert project_root() == root


def test_a_wrong_project_folder_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(tmp_path))
    with pytest.raises(DataError, match=f"no project folder .* at {tmp_path} - .*BOLD_AUDIO_ROOT") as caught:
        project_root()
    assert "\n" not in str(caught.value)
