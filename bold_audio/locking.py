"""One process at a time: locks that say who holds them, the cache, and what a killed process left half written."""

import contextlib
import json
import logging
import os
import re
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from bold_audio.files import SCRATCH, MachineError, remove_begun, write_whole

DATASET_LOCK = ".dataset.lock"  # of a dataset's outputs: the files that all its subjects share
EXPORT_LOCK = ".export.lock"  # of a model in the repository
OWNER = ".owner"  # how the names end of files that tell who holds a lock
LEFT = re.compile(rf"\.(.+)\.(lock{re.escape(OWNER)}|[^.]+{re.escape(SCRATCH)})")

log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(path, *, wait=0.0, doing="this", told=False):
    """Hold the lock file ``path``, with the holder's process and machine in ``<path>.owner``.

    The operating system lets go of a lock whose process ends, however it ends, so a stale one stops nobody.

    Parameters
    ----------
    path : path
    wait : float
        Seconds to wait for another holder.
    doing : str
        What is locked, for the message.
    told : bool
        Whether to warn that a process before ended without letting go.

    Raises
    ------
    MachineError
        If another process holds it for longer, with its number, machine and start; or if it cannot be written.
    """
    path = Path(path)
    owner = path.with_name(f"{path.name}{OWNER}")
    held = FileLock(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=wait, poll_interval=0.1)
    except Timeout:
        who = _who(owner) or "another process"
        raise MachineError(f"{doing} is locked by {who} ({path}) - wait until it is done, or stop it") from None
    except OSError as error:
        raise MachineError(
            f"cannot write in {path.parent} ({error.strerror}) - permit writing, or free space"
        ) from error
    try:
        if (before := _who(owner)) and told:
            log.warning("%s: %s ended without letting go of its lock; taken over", doing, before)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # a full disk must not stop what only reads
            owner.write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        held.release()


def _who(owner):
    """The holder of a lock in words; empty where nobody wrote who it is."""
    try:
        said = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def remove_scratch(folder, *, of="*", below=False):
    """Remove scratch folders of `files.write_whole` and owner files that killed processes left.

    The caller must hold the lock.

    Parameters
    ----------
    folder : path
    of : str
        Only those of this name.
    below : bool
        Those in subfolders, too.
    """
    for left in Path(folder).glob(f"{'**/' if below else ''}.{of}.*"):
        if LEFT.fullmatch(left.name) and left.name.endswith(SCRATCH):
            with contextlib.suppress(OSError):
                remove_begun(left)
        elif LEFT.fullmatch(left.name):
            left.unlink(missing_ok=True)


def remove_unlocked_scratch(folder, *, lock_name=None):
    """As `remove_scratch`, in a folder that other processes may write in; what they are writing stays.

    ``lock_name`` is the lock of the whole folder; without it each name in the folder has its own, as in the cache.
    """
    names = {match[1] for path in Path(folder).glob(".*") if (match := LEFT.fullmatch(path.name))}
    if names and lock_name is not None:
        names = {"*"}
    for name in names:
        with contextlib.suppress(MachineError), lock(Path(folder) / (lock_name or f".{name}.lock")):
            remove_scratch(folder, of=name)


def cached_folder(cache_dir, key, make):
    """Return the folder ``cache_dir/key``, calling ``make(folder)`` where it is missing.

    Two processes that want the same folder are safe: the second waits for the first, up to 600 s.

    Raises
    ------
    MachineError
        If another process holds the entry for longer, or the cache cannot be written.
    """
    folder = Path(cache_dir) / key
    if not folder.is_dir():
        with lock(Path(cache_dir) / f".{key}.lock", wait=600, doing=f"cache entry {key}"):
            if not folder.is_dir():
                remove_scratch(cache_dir, of=key)
                with write_whole(folder) as part:
                    part.mkdir()
                    make(part)
    return folder
