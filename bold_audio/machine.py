"""What this machine can hold: the memory that a run will take, asked before it is taken."""

import math

import psutil

from bold_audio.files import MachineError

try:
    import resource
except ImportError:  # not there on Windows
    resource = None

# Bytes that program and kernel take before anything is read; copies of a slab of voxels as float64 where models are
# fitted; copies of the run as float32 over the whole grid, of which a mask keeps a third (two memory-mapped, two of the
# test part or of the train part in the largest moments). NUMBERS_MEASURED
PROGRAM, SLAB_COPIES, COPIES = 1.0e9, 15, 1.15
SLAB_VOXELS, SLAB_NUMBERS = 8192, 2**23  # of params/common.yaml, and of ridge.py


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
    n_voxels = math.prod(files.grid)
    slab = min(files.n_volumes * min(n_voxels, SLAB_VOXELS), SLAB_NUMBERS)
    return PROGRAM + SLAB_COPIES * 8 * slab + COPIES * 4 * files.n_volumes * n_voxels


def free_memory():
    """Bytes that this process may still take: of the machine's memory, and of a limit on this process."""
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    return free if limit < 0 else min(free, limit - psutil.Process().memory_info().vms)  # -1: no limit
