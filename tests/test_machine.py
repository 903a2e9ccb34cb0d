"""What a run says it needs is held against what was measured; see the comment in `bold_audio/machine.py`."""

from types import SimpleNamespace

import pytest

from bold_audio import machine


@pytest.mark.parametrize(
    ("n_volumes", "grid", "measured"),
    [(641, (40, 64, 64), 2.05e9), (1200, (91, 109, 91), 5.4e9), (5000, (40, 64, 64), 4.2e9)],
    ids=["demo", "hcp", "long"],
)
def test_a_run_says_it_needs_what_was_measured(n_volumes, grid, measured):
    needed = machine.memory_needed(SimpleNamespace(n_volumes=n_volumes, grid=grid))
    assert measured <= needed <= 1.4 * measured
    assert needed < 8 * 2**30
