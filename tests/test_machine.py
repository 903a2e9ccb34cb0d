"""What a run says it needs is held against what was measured; see the comment in `bold_audio/machine.py`."""

from types import SimpleNamespace

import pytest

from bold_audio import machine
from bold_audio.files import MachineError


@pytest.mark.parametrize(
    ("n_volumes", "grid", "measured"),
    [(641, (40, 64, 64), 2.02e9), (1200, (91, 109, 91), 7.39e9), (5000, (40, 64, 64), 6.22e9)],
    ids=["demo", "hcp", "long"],
)
def test_a_run_says_it_needs_what_was_measured(n_volumes, grid, measured):
    needed = machine.memory_needed(SimpleNamespace(n_volumes=n_volumes, grid=grid))
    assert measured <= needed <= 1.4 * measured
    assert needed < 8 * 2**30


@pytest.mark.parametrize(("free", "way_out"), [(6e9, "or set downsample 2"), (2.4e9, "or set downsample 4"), (1e9, "")])
def test_what_is_advised_would_fit(monkeypatch, free, way_out):
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    files = SimpleNamespace(n_volumes=1200, grid=(91, 109, 91))
    with pytest.raises(MachineError) as refused:
        machine.check_memory(files)
    advice = str(refused.value).partition("end other programs")[2]
    assert advice.strip(", ") == way_out
    if way_out:
        machine.check_memory(files, downsample=int(way_out.split()[-1]))
