"""Broken and hostile inputs end in what the whole input gives or in one plain line: a slice of benchmarks/fuzz.py."""

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bold_audio.files import DataError

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    import fuzz
    from strangers import Kind

PER_KIND = 8
LINUX = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is limited by Linux' means")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Some cases of every kind and what became of them."""
    cases = fuzz.all_cases(PER_KIND * len(fuzz.KINDS), seed=7)
    return fuzz.run_cases(cases, tmp_path_factory.mktemp("fuzz"))


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_inputs_from_strangers(done, kind):
    mine = [one for one in done if one["kind"] == kind]
    assert len(mine) == PER_KIND
    assert [one for one in mine if one["outcome"] not in fuzz.PASSES] == []


@LINUX
@pytest.mark.slow
def test_the_cases_meet_whole_and_refused_inputs(done):
    outcomes = Counter(one["outcome"] for one in done)
    assert min(outcomes[name] for name in ("same", "refused", "undetectable", "accepted")) > 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_cases():
    assert fuzz.all_cases(200, seed=3) == fuzz.all_cases(200, seed=3) != fuzz.all_cases(200, seed=4)


@pytest.mark.slow
def test_the_readme_tells_in_how_many_cases_another_result_is_noticed():
    cases = fuzz.all_cases(2600, seed=0)
    noticed = sum(map(fuzz.noticed, cases))
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"could be noticed in {noticed:,} of them" in readme and f"other {2600 - noticed:,} the harm" in readme
    assert fuzz.noticed({"kind": "model", "harm": "trailing bytes"})  # by the MD5s of its bundle


# --- the watchman is watched --------------------------------------------------------------

WATCH = fuzz.Watch()
READERS = {
    "same": lambda folder, _: {"values": np.arange(3)},
    "another result": lambda folder, _: {"values": np.arange(3) + 1},
    "traceback": lambda folder, _: {}["nothing"],
    "memory": lambda folder, _: np.empty(2**60, np.uint8),
    "refused": lambda folder, _: refuse("scan damaged - fetch it again"),
    "message": lambda folder, _: refuse(""),
}


def refuse(text):
    raise DataError(text)


def write(folder, _):
    (folder / "data.txt").write_text("changed")


def write_beside(folder, _):
    (folder.parent / "beside.txt").write_text("made")


def write_and_clear_away(folder, _):
    write_beside(folder, _)
    (folder.parent / "beside.txt").unlink()


READERS |= {f"written outside {k}": f for k, f in enumerate((write, write_beside, write_and_clear_away))}
READERS["written outside 3"] = lambda folder, _: subprocess.run(["true"], check=True)


@pytest.mark.parametrize("outcome", READERS)
def test_a_reader_is_judged_by_what_it_does(outcome, tmp_path, monkeypatch):
    kind = Kind(lambda folder: (folder / "data.txt").write_text("whole"), READERS[outcome], {"none": lambda *_: None})
    monkeypatch.setitem(fuzz.KINDS, "planted", kind)
    whole = {"folder": fuzz.ready(kind, tmp_path / "whole"), "found": {"values": np.arange(3)}}
    case = {"kind": "planted", "harm": "none", "seed": 0, "text": None}
    found, _ = fuzz.judge(kind, case, tmp_path / "case", whole, WATCH)
    assert found == outcome.rstrip(" 0123456789")
