"""Errors with exit codes, whole-or-nothing writes, hashes, and the time of day as files tell it."""

import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

SCRATCH = ".part"  # how the names end of folders in which something is being written
REPLACED = ".replaced"  # how the name ends there of a folder that is making room
TIME = "%Y-%m-%dT%H:%M:%S%z"
LONGEST = 1000  # characters of a message


def one_line(text):
    """Text as one printable line of bounded length: parts of a message may come from a stranger's file.

    Examples
    --------
    >>> one_line("no subject \\x1b[31m\\n in sub-\\ud8ff")
    'no subject \\\\x1b[31m in sub-\\\\ud8ff'
    """
    words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    if len(words) > LONGEST:
        words = f"{words[: LONGEST // 2].rstrip()} … {words[3 - LONGEST // 2 :].lstrip()}"
    return words


class BoldAudioError(Exception):
    """An error the person can act on; ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __str__(self):
        return one_line(super().__str__())


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


def nearest(name, known, *, otherwise=None):
    """A question after the known name that is most like ``name``, in either case.

    Where none is, ``otherwise``, by default all that are known.

    Examples
    --------
    >>> nearest("abc1", ["ABC01", "x"]), nearest("q", ["ABC01", "x"])
    ('did you mean ABC01?', 'known are ABC01, x')
    """
    lower = {str(one).lower(): one for one in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    if close:
        return f"did you mean {lower[close[0]]}?"
    return f"known are {', '.join(lower.values())}" if otherwise is None else otherwise


def time_of_day():
    """The time of day as files tell it."""
    return time.strftime(TIME)


def project_root():
    """Return the folder that holds ``params/`` and ``notebooks/``.

    ``BOLD_AUDIO_ROOT`` where set, else the nearest parent of the working folder that
    looks like the project, else the folder this package was installed from.

    Raises
    ------
    DataError
        If there is no such folder.
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

    A reader, a process killed half-way or a machine without power never leaves a partial file under that name. The
    temporary path may be made a file or a folder; a folder replaces an existing one only when told to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written in a folder of its own, because savers choose formats by the file's ending.
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=SCRATCH, dir=path.parent))
    try:
        part = scratch / path.name
        yield part
        if not part.exists():
            raise FileNotFoundError(f"nothing was written for {path}")
        _to_disk(part)
        if replace_folder and path.is_dir():
            os.rename(path, scratch / f"{path.name}{REPLACED}")
        os.replace(part, path)
    finally:
        remove_begun(scratch)


def remove_begun(scratch):
    """Remove a folder in which something was being written; a folder that nothing has replaced yet is put back."""
    for old in scratch.glob(f"*{REPLACED}"):
        path = scratch.parent / old.name.removesuffix(REPLACED)
        if not path.exists():
            os.rename(old, path)
    shutil.rmtree(scratch, ignore_errors=True)


def _to_disk(part):
    """Wait until a file, or the files of a folder, are on the disk: a name must not come before its content."""
    for path in part.rglob("*") if part.is_dir() else [part]:
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def write_text(path, text):
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path, content):
    """Write ``content`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path, default=None, *, mend="delete it, it is made again"):
    """Read a JSON file; return ``default`` where there is none. ``mend`` is what a damaged one needs.

    Raises
    ------
    DataError
        If the file is not readable JSON.
    """
    path = Path(path)
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}) - {mend}") from error


def write_table(path, table):
    """Write a pandas table as TSV with ``n/a`` for what is missing, as BIDS asks."""
    with write_whole(path) as part:
        table.to_csv(part, sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n")


def write_arrays(path, arrays):
    """Write a dictionary of NumPy arrays as one ``.npz`` file."""
    with write_whole(path) as part, part.open("wb") as handle:
        np.savez(handle, **arrays)


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
