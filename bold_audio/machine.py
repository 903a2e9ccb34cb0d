"""What this machine can hold: the memory that a run will take, asked before it is taken."""

import math

import psutil

from bold_audio.files import MachineError

try:
    import resource
except ImportError:  # not there on Windows
    resource = None

# Of OpenMP, three libraries of linear algebra, and the pools that joblib counts the cores for.
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "LOKY_MAX_CPU_COUNT",
)  # fmt: skip
# Bytes that program, kernel and the process that forks them take before anything is read; float64 copies of a slab of
# voxels where models are fitted; and what grows with the run, in float32 copies of the whole grid, of which a mask
# keeps about a third. Measured by benchmarks/memory.py and estimated, GB, all notebooks: 641 volumes of 40 x 64 x 64,
# 2.02 and 2.43; 1,200 of 91 x 109 x 91 with 300,000 voxels, 7.39 and 7.50; 5,000 of 40 x 64 x 64 with 41,000 (two
# hours), 6.22 and 6.24.
PROGRAM, SLAB_COPIES, COPIES = 1.3e9, 15, 1.2
COARSER = (2, 3, 4)  # values of downsample that are worth a run
SLAB_VOXELS, SLAB_NUMBERS = 8192, 2**23  # of params/common.yaml, and of ridge.py


def check_memory(files, downsample=1):
    """Refuse a run that will not fit, before it begins.

    Parameters
    ----------
    files : runs.RunFiles or runs.SeveralRuns
    downsample : int
        Voxels of the scan along each axis that become one.

    Raises
    ------
    MachineError
        With what it needs and what is free.
    """
    needed, free = memory_needed(files, downsample), free_memory()
    if needed > free:
        fits = [n for n in COARSER if n > downsample and memory_needed(files, n) <= free]
        raise MachineError(
            f"{needed / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB free - end other programs"
            + (f", or set downsample {fits[0]}" if fits else "")
        )


def memory_needed(files, downsample=1):
    """Bytes that a subject's run takes at its peak.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> files = SimpleNamespace(n_volumes=1200, grid=(91, 109, 91))
    >>> [round(memory_needed(files, downsample) / 1e9, 1) for downsample in (1, 2)]
    [7.5, 2.9]
    """
    n_voxels = math.prod(n // downsample for n in files.grid)
    slab = min(files.n_volumes * min(n_voxels, SLAB_VOXELS), SLAB_NUMBERS)
    return PROGRAM + SLAB_COPIES * 8 * slab + COPIES * 4 * files.n_volumes * n_voxels


def free_memory():
    """Bytes that this process may still take: of the machine's memory, and of a limit on this process."""
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    return free if limit < 0 else min(free, limit - psutil.Process().memory_info().vms)  # -1: no limit
