"""What every refusal looks like and leaves, and content that must be refused before it runs."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from bold_audio import run
from bold_audio.files import DataError


@contextmanager
def refused(match, kind=DataError):
    """Assert that what is done inside ends in one line that says what is wrong and what to do."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)
    assert " - " in str(caught.value)


def ended(words):
    """Exit status of ``bold-audio`` in this process."""
    with pytest.raises(SystemExit) as stopped:
        run.main([str(word) for word in words])
    return stopped.value.code or 0


def in_process(capsys, *arguments):
    """Exit status of ``bold-audio`` in this process, and what it said."""
    return ended(arguments), capsys.readouterr()


def tree_hash(folder):
    """MD5 of every file below a folder, by its path; not of what JupyterLab saves for itself."""
    return {
        path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and ".ipynb_checkpoints" not in path.parts
    }


class Bomb:
    """Makes the folder ``canary`` when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)
