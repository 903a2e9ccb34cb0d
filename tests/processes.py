"""Other Python processes, for what two of them do to the same files."""

import subprocess
import sys
from contextlib import contextmanager

from bold_audio.files import project_root


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
