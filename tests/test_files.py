"""Files written whole or not at all, hashes, errors, and the project folder."""

import hashlib
import os
import signal

import numpy as np
import pandas as pd
import pytest
from processes import python

from bold_audio.files import (
    AccessError,
    BoldAudioError,
    DataError,
    MachineError,
    ModelError,
    ParameterError,
    file_md5,
    fingerprint,
    project_root,
    read_json,
    write_json,
    write_table,
    write_text,
    write_whole,
)
from bold_audio.locking import remove_scratch


def names(folder):
    return sorted(p.name for p in folder.iterdir())


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


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_stays_when_its_successor_cannot_take_the_name(tmp_path, monkeypatch, error):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def breaks(*_):
        assert not folder.exists()
        raise error

    monkeypatch.setattr(os, "replace", breaks)
    with pytest.raises(error), write_whole(folder, replace_folder=True) as part:
        part.mkdir()
    assert names(folder) == ["old"] and names(tmp_path) == ["model"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_folder_comes_back_after_a_kill_while_it_was_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").touch()
    code = (
        "import os, signal, sys\nfrom bold_audio.files import write_whole\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with write_whole(sys.argv[1], replace_folder=True) as part: part.mkdir()\n"
    )
    with python(code, tmp_path / "model") as process:
        assert process.wait(30) == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    remove_scratch(tmp_path)
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


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


def test_md5_is_the_one_of_the_whole_file(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert file_md5(tmp_path / "a") == hashlib.md5(content).hexdigest()


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
