"""What this machine can hold: the memory that a run will take, asked before it is taken."""

import math
from pathlib import Path

import psutil

from bold_audio.files import MachineError
from bold_audio.ridge import MOST_NUMBERS

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
# hours), 6.22 and 6.24. Not measured: without a mask all voxels are kept, and there are three times the copies.
PROGRAM, SLAB_COPIES, COPIES, UNMASKED = 1.3e9, 15, 1.2, 3
COARSER = (2, 3, 4)  # values of downsample that are worth a run
# Of a group of processes with a limit: limit, use, and what of the use are pages of files that the kernel can drop.
GROUP_V2 = ("memory.max", "memory.current", "inactive_file")
GROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def check_memory(files, params):
    """Refuse a run that will not fit, before it begins.

    Parameters
    ----------
    files : runs.RunFiles or runs.SeveralRuns
    params : Params
        ``downsample``, ``mask`` and ``chunk_voxels`` count.

    Raises
    ------
    MachineError
        With what it needs and what is free.
    """
    needed, free = memory_needed(files, params), free_memory()
    if needed > free:
        coarser = (params.model_copy(update={"downsample": n}) for n in COARSER if n > params.downsample)
        fits = [one.downsample for one in coarser if memory_needed(files, one) <= free]
        raise MachineError(
            f"{needed / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB free - end other programs"
            + (f", or set downsample {fits[0]}" if fits else "")
        )


def memory_needed(files, params):
    """Bytes that a subject's run takes at its peak.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> files = SimpleNamespace(n_volumes=1200, grid=(91, 109, 91))
    >>> settings = [SimpleNamespace(downsample=n, mask="brain", chunk_voxels=8192) for n in (1, 2)]
    >>> [round(memory_needed(files, params) / 1e9, 1) for params in settings]
    [7.5, 2.9]
    """
    n_voxels = math.prod(n // params.downsample for n in files.grid)
    slab = min(files.n_volumes * min(n_voxels, params.chunk_voxels), MOST_NUMBERS)
    copies = COPIES * (UNMASKED if params.mask == "none" else 1)
    return PROGRAM + SLAB_COPIES * 8 * slab + copies * 4 * files.n_volumes * n_voxels


def free_memory(*, groups="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """Bytes that this process may still take.

    Of the machine's memory, of a limit on this process, and of the limits of the groups of processes that it is in,
    such as a container's or a Slurm job's.

    Parameters
    ----------
    groups, own : path
        Where Linux shows its control groups, and which of them this process is in.
    """
    free = min(psutil.virtual_memory().available, _left_in_groups(Path(groups), Path(own)))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    return free if limit < 0 else min(free, limit - psutil.Process().memory_info().vms)  # -1: no limit


def _left_in_groups(groups, own):
    """The least that is left of a limit of a group of this process, or of a group around it; infinite without one."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:  # not Linux
        return math.inf
    left = [math.inf]
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (groups / "memory", GROUP_V1) if controllers else (groups, GROUP_V2)
        # In a container the name may be that outside of it: what is not there has no limit, and the root has its own.
        steps = [step for step in name.split("/") if step not in ("", "..")]
        left += [_left(root.joinpath(*steps[:k]), *names) for k in range(len(steps) + 1)]
    return min(left)


def _left(group, limit, use, droppable):
    try:
        most = (group / limit).read_text(encoding="utf-8").strip()
        used = int((group / use).read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        return math.inf if most == "max" else int(most) - used + int(stat.get(droppable, 0))
    except (OSError, ValueError):
        return math.inf
