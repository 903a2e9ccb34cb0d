"""What a run says it needs is held against what was measured; see the comment in `bold_audio/machine.py`."""

from types import SimpleNamespace

import pytest

from bold_audio import machine
from bold_audio.files import MachineError
from bold_audio.params import load_params


@pytest.mark.parametrize(
    ("n_volumes", "grid", "measured"),
    [(641, (40, 64, 64), 2.02e9), (1200, (91, 109, 91), 7.39e9), (5000, (40, 64, 64), 6.22e9)],
    ids=["demo", "hcp", "long"],
)
def test_a_run_says_it_needs_what_was_measured(n_volumes, grid, measured):
    needed = machine.memory_needed(SimpleNamespace(n_volumes=n_volumes, grid=grid), load_params("09"))
    assert measured <= needed <= 1.4 * measured
    assert needed < 8 * 2**30


@pytest.mark.parametrize(("free", "way_out"), [(6e9, "or set downsample 2"), (2.4e9, "or set downsample 4"), (1e9, "")])
def test_what_is_advised_would_fit(monkeypatch, free, way_out):
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    files = SimpleNamespace(n_volumes=1200, grid=(91, 109, 91))
    with pytest.raises(MachineError) as refused:
        machine.check_memory(files, load_params("09"))
    advice = str(refused.value).partition("end other programs")[2]
    assert advice.strip(", ") == way_out
    if way_out:
        machine.check_memory(files, load_params("09", downsample=int(way_out.split()[-1])))


def test_the_estimate_knows_the_mask_and_the_voxels_at_once():
    files = SimpleNamespace(n_volumes=641, grid=(40, 64, 64))
    usual, unmasked, narrow = (
        machine.memory_needed(files, load_params("09", **given))
        for given in ({}, {"mask": "none"}, {"chunk_voxels": 512})
    )
    whole = 4 * 641 * 40 * 64 * 64
    assert unmasked - usual == pytest.approx(2 * machine.COPIES * whole)
    assert usual - narrow == pytest.approx(machine.SLAB_COPIES * 8 * 641 * (8192 - 512))


@pytest.mark.parametrize(
    ("own", "groups", "left"),
    [
        # a Slurm job: the limit is that of the job, the process is in a step of it
        (
            "0::/slurm/job_7/step_0/task_0\n",
            {
                "slurm/job_7": ("max", 9, 9),
                "slurm/job_7/step_0": (4_000_000, 3_000_000, 500_000),
                "slurm/job_7/step_0/task_0": ("max", 5, 5),
            },
            1_500_000,
        ),
        ("0::/\n", {".": (4_000_000, 1_000_000, 0)}, 3_000_000),  # a container that sees its own group as the root
        ("0::/../../elsewhere\n", {".": (4_000_000, 1_000_000, 0)}, 3_000_000),
        ("0::/a\n", {"a": ("max", 1, 1)}, None),
        ("0::/a\n", {}, None),
        (
            "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
            {"memory": (3_000_000, 2_000_000, 250_000), "memory/x": (1, 1, 0)},
            1_250_000,
        ),
        ("4:memory:/a\n", {"memory/a": (9223372036854771712, 2_000_000, 0)}, None),  # v1 without a limit
    ],
    ids=["job", "container", "outside", "no limit", "no files", "v1", "v1 no limit"],
)
def test_a_limit_on_the_group_of_this_process_counts(tmp_path, own, groups, left):
    """Files as the kernel writes them; pages of files that it can drop are not counted as used."""
    for name, (most, used, cached) in groups.items():
        folder = tmp_path / "tree" / name
        folder.mkdir(parents=True, exist_ok=True)
        limit, use = machine.GROUP_V1[:2] if name.startswith("memory") else machine.GROUP_V2[:2]
        (folder / limit).write_text(f"{most}\n")
        (folder / use).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\ntotal_inactive_file {cached}\n")
    (tmp_path / "self").write_text(own)
    free = machine.free_memory(groups=tmp_path / "tree", own=tmp_path / "self")
    assert free == left if left else free > 100_000_000
    assert machine.free_memory(groups=tmp_path, own=tmp_path / "none") > 100_000_000
