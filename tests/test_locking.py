"""One process at a time: locks with their holder, and the cache."""

import socket
import threading
import time

import pytest
from processes import python

from bold_audio.files import (
    DataError,
    MachineError,
)
from bold_audio.locking import cached_folder, lock, remove_scratch, remove_unlocked_scratch


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# --- locks ------------------------------------------------------------------------------

HOLD = (
    "import sys\nfrom bold_audio.locking import lock\n"
    "with lock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.readline()\nprint('free', flush=True)"
)


def test_a_lock_of_another_process_is_respected_and_freed(tmp_path):
    path = tmp_path / "deep" / ".lock"
    with python(HOLD, path) as other:
        assert other.stdout.readline() == "held\n"
        holder = f"sub-09 is locked by process {other.pid} on {socket.gethostname()} since 20.* - wait"
        locked = pytest.raises(MachineError, match=holder)
        with locked as caught, lock(path, doing="sub-09"):
            pass
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "free\n"
        with lock(path):
            pass


def test_the_lock_of_a_dead_process_is_taken_over_and_told(tmp_path, caplog):
    with python(HOLD, tmp_path / ".lock") as other:
        assert other.stdout.readline() == "held\n"
        other.kill()
        other.wait(10)
        with lock(tmp_path / ".lock", doing="sub-09", told=True):
            pass
    assert f"sub-09: process {other.pid} on {socket.gethostname()} since" in caplog.text and "taken over" in caplog.text
    caplog.clear()
    with lock(tmp_path / ".lock", told=True):  # let go of, so there is nothing to tell
        pass
    assert not caplog.records and names(tmp_path) == [".lock"]


def test_a_lock_whose_holder_wrote_nothing_is_a_lock_all_the_same(tmp_path):
    with python(HOLD, tmp_path / ".lock") as other:
        assert other.stdout.readline() == "held\n"
        (tmp_path / ".lock.owner").write_text("{")
        with pytest.raises(MachineError, match="this is locked by another process"), lock(tmp_path / ".lock"):
            pass


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot write in .*file.* - permit writing"), lock(tmp_path / "file/.lock"):
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


@pytest.mark.slow
def test_a_cache_entry_is_made_once_for_processes_that_want_it_together(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom bold_audio.locking import cached_folder\n"
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


def test_what_a_killed_process_left_of_a_cache_entry_is_removed(tmp_path):
    for name in (".key.abc.part", ".other.abc.part", "key.b"):
        (tmp_path / name).mkdir()
    cached_folder(tmp_path, "key", lambda folder: None)
    assert {".other.abc.part", "key.b", "key"} <= set(names(tmp_path)) and ".key.abc.part" not in names(tmp_path)


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


# --- what killed processes left -----------------------------------------------------------

WRITE = (
    "import sys\nfrom pathlib import Path\nfrom bold_audio.files import write_whole\n"
    "from bold_audio.locking import lock\nfolder = Path(sys.argv[1])\n"
    "with lock(folder / sys.argv[2]), write_whole(folder / 'made') as part:\n"
    "    part.mkdir(); print('begun', flush=True); sys.stdin.readline()\n"
)


@pytest.mark.parametrize("lock_name", [".made.lock", ".all.lock"])
def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_stays(tmp_path, lock_name):
    named = {} if lock_name == ".made.lock" else {"lock_name": lock_name}
    with python(WRITE, tmp_path, lock_name) as other:
        assert other.stdout.readline() == "begun\n"
        remove_unlocked_scratch(tmp_path, **named)
        assert len(names(tmp_path)) == 3  # the lock, its holder, what is being written
        other.kill()
        other.wait(10)
    remove_unlocked_scratch(tmp_path, **named)
    assert names(tmp_path) == [lock_name]


def test_scratch_below_a_folder_goes_with_it_and_the_holder_of_its_own_lock_stays(tmp_path):
    below = tmp_path / "report"
    with lock(tmp_path / ".lock"):
        (below / ".index.html.abc.part").mkdir(parents=True)
        (below / ".training.lock.owner").touch()
        (below / "my.part").touch()
        remove_scratch(tmp_path, below=True)
        assert names(tmp_path) == [".lock", ".lock.owner", "report"] and names(below) == ["my.part"]
