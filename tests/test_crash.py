"""A run that was killed and run again leaves what one that nobody killed leaves: a slice of benchmarks/crash.py."""

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
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


def test_a_run_that_fails_by_itself_is_no_moment_to_be_drawn_again(crash, tmp_path):
    def start(steps):
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])

    (tmp_path / "log").write_text("boom")
    site = SimpleNamespace(
        steps=["00"], reference=lambda steps: (None, 0, 60.0), put=lambda: None, start=start, log=tmp_path / "log"
    )
    with pytest.raises(SystemExit, match="nobody killed ended with 3: boom"):
        crash.killed_at_moments(site, 1, rng=random.Random(0))


def page(*, delay="6", difference="2e-07", seconds="0.017", took="19"):
    """A page with a result in seconds, a table that tells times beside a result, and how long notebooks took."""
    return f"""<p>best at Δt = {delay} s (95 % interval 4 to 8 s)</p>
    <table><thead><tr><td></td><th>difference</th><th>seconds</th></tr></thead>
    <tbody><tr><th>mlp</th><td>{difference}</td><td>{seconds}</td></tr></tbody></table>
    <ul><li><a href="02.html">02</a> — {took} s</li></ul><p>Executed 2026-11-26T18:59:57 UTC, in {took} s</p>"""


def notebook(*, delay="6", difference="2e-07", seconds="0.017", took="19"):
    """The same of a notebook, whose table stands there as plain text, too."""
    html = page(delay=delay, difference=difference, seconds=seconds, took=took)
    output = nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": f"mlp {difference} {seconds}"})
    told = nbformat.v4.new_output("display_data", {"text/markdown": f"best at **Δt = {delay} s**"})
    cell = nbformat.v4.new_code_cell("table", outputs=[output, told], id="a")
    return nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))


@pytest.mark.parametrize(("name", "make"), [("index.html", page), ("05.ipynb", notebook)])
def test_a_changed_result_differs_and_a_changed_duration_does_not(crash, tmp_path, name, make):
    states = {}

    def differences(**changed):
        for state, made in (("one", make()), ("other", make(**changed))):
            states[state] = tmp_path / state
            states[state].mkdir(exist_ok=True)
            (states[state] / name).write_text(made)
        return crash.differences(states["one"], states["other"])[0]

    assert differences(seconds="0.5", took="3") == []
    for changed in ({"delay": "7"}, {"difference": "3e-07"}):
        (said,) = differences(**changed)
        assert f"{name} differs" in said
