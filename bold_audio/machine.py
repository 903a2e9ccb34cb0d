"""What this machine can hold: the memory that a run will take, asked before it is taken."""

import psutil

from bold_audio.files import MachineError

try:
    import resource
except ImportError:  # not there on Windows
    resource = None

# Bytes that program and kernel take before anything is read, and the run's copies as float32 over the whole grid at the
# peak of notebook 06: together 2.3 GB for 641 volumes of 40 x 64 x 64, where 2.1 GB were measured.
PROGRAM, COPIES = 1.0e9, 3


def check_memory(files):
    """Refuse a run that will not fit, before it begins.

    Parameters
    ----------
    files : runs.RunFiles or runs.SeveralRuns

    Raises
    ------
    MachineError
        With what it needs and what is free.
    """
    needed, free = memory_needed(files), free_memory()
    if needed > free:
        raise MachineError(
            f"{needed / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB free - end other programs, or set downsample"
        )


def memory_needed(files):
    """Bytes that a subject's run takes at its peak."""
    i, j, k = files.grid
    return PROGRAM + COPIES * 4 * files.n_volumes * i * j * k


def free_memory():
    """Bytes that this process may still take: of the machine's memory, and of a limit on this process."""
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    return free if limit < 0 else min(free, limit - psutil.Process().memory_info().vms)  # -1: no limit
