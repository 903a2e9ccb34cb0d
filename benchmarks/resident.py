"""How much memory processes hold, in bytes, as Linux's /proc has it."""

import contextlib
from pathlib import Path

import psutil


def resident(entry, pid="self"):
    """Bytes under ``VmRSS`` (now) or ``VmHWM`` (peak) in a process's status; 0 for one that has ended and waits.

    Raises
    ------
    OSError
        If the process is gone.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:")), 0)


def share_of_memory(process):
    """Proportional set size of a `psutil.Process`, which counts a shared page once; 0 where it is gone."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.memory_full_info().pss
    return 0
