"""What every refusal of a scan or a sound looks like, and content that must be refused before it runs."""

import os
from contextlib import contextmanager

import pytest

from bold_audio.files import DataError


@contextmanager
def refused(match, kind=DataError):
    """Assert that what is done inside ends in one line that says what is wrong and what to do."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)
    assert " - " in str(caught.value)


class Bomb:
    """Makes the folder ``canary`` when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)
