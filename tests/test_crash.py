"""A run that was killed and run again leaves what one that nobody killed leaves: a slice of benchmarks/crash.py."""

import random
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def crash():
    """The benchmark, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
        yield __import__("crash")
    sys.modules.pop("crash")


@pytest.fixture(scope="module")
def site(crash, tmp_path_factory):
    """A tiny SIMULATED subject whose notebook 00 is run."""
    return crash.Site(tmp_path_factory.mktemp("crash"), "00")


@pytest.mark.thorough
def test_a_run_killed_at_a_drawn_moment_ends_as_if_it_had_not_been(crash, site):
    counts = crash.killed_at_moments(site, 1, rng=random.Random(0))
    assert counts["kills_equal"] == counts["kills"] == 1


@pytest.mark.thorough
def test_a_step_killed_at_a_write_ends_as_if_it_had_not_been(crash, site):  # R06
    counts = crash.killed_at_writes(site, choose=lambda n: random.Random(1).sample(range(n // 4, n), 2))
    assert counts["writes"] > 100 and counts["writes_equal"] == counts["writes_tried"] == 2


@pytest.mark.thorough
def test_what_differs_is_told(crash, site):
    reference, *_ = site.reference(site.steps)
    site.put(reference)
    folder = site.work / "outputs/sim/sub-sim"
    (folder / "report/.index.html.abc.part").mkdir()
    (table,) = folder.glob("*.tsv")
    table.write_text(table.read_text().replace("\n", "\n0", 1))
    (folder / "status.json").write_text('{"state": "stopped"}')
    (folder / "report/plotly.min.js").unlink()
    said = "\n".join(crash.differences(reference, site.work)[0])
    for words in ("plotly.min.js is missing", ".part was left", f"{table.name} differs", "status.json differs"):
        assert words in said
