"""What benchmarks make of what they measured: limits, intervals, misses, rows of other code, NaN."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bold_audio import inferred

MODULES = ("alice", "audit", "calibration", "common", "contrast", "group", "scale", "significance")


@pytest.fixture(scope="module")
def benchmarks():
    """The programs by name, as modules; `bold_audio.audit` and the like are other ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
        yield {name: __import__(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)


def test_a_right_method_passes_the_limit_and_one_that_is_twice_as_bad_need_not(benchmarks):
    common = benchmarks["common"]
    assert common.most(100, 0.05) == ("<=", 0.1) and common.most(12, 0.01) == ("<=", 1 / 12)
    assert common.interval(0, 12) == pytest.approx((0, 0.265), abs=5e-4)  # 1 - 0.025 ** (1 / 12)
    assert common.held(1 / 12, common.most(12, 0.01)) == common.held(0.083333333, common.most(12, 0.01)) == "yes"
    assert common.held(0.16666667, ("<=", 2 / 12)) == "yes"  # as calibration.tsv has it
    assert common.held(2 / 12, common.most(12, 0.01)) == common.held(np.nan, ("<=", 1)) == "no"
    assert common.held(0.5, None) == ""


def test_what_is_published_as_held_is_held(benchmarks):
    significance, table = benchmarks["significance"], inferred.calibration()
    known = significance.KNOWN_MISSES
    assert {(row.kind, row.figure) for row in table[table["held"] == "no"].itertuples()} == known
    assert not benchmarks["common"].missed(table, known, ["kind", "figure"])
    assert benchmarks["common"].missed(table, set(), ["kind", "figure"]) == [", ".join(*known)]


def rows_of(kind, n, **given):
    made = {"any": False, "any_q": False, "voxel_p": 0.5, "p_past_sound": 0.5, "p_past_blocks_sound": 0.5}
    return pd.DataFrame({"kind": kind, **made, **given}, index=range(n))


def test_no_number_is_not_found_and_leaves_no_figure_out(benchmarks, capsys):
    p = [np.nan, 0.001, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    table = benchmarks["significance"].summary(rows_of("null", 10, p_past_sound=p)).set_index("figure")
    assert table.loc["one region, over the past: p <= 0.05", ["value", "n"]].tolist() == [0.1, 10]
    assert "1 of 10 are NaN" in capsys.readouterr().out


def test_films_of_one_scan_are_no_rate_and_have_no_limit(benchmarks):
    table = benchmarks["significance"].summary(rows_of("oneback", 40, any=True))
    assert (table["held"] == "").all() and not table["figure"].str.contains("blocks").any()
    table = benchmarks["significance"].summary(rows_of("null", 40, any=True)).set_index("figure")
    assert table.loc["maps with any voxel at family-wise p <= .05", "held"] == "no"


@pytest.mark.parametrize("given", [["--seed0", "1000"], ["--people", "3"], ["--only", "null"], ["--quick"]])
def test_figures_of_a_part_are_not_written_into_the_package(benchmarks, monkeypatch, capsys, given):
    monkeypatch.setattr(sys, "argv", ["significance.py", "--write", *given])
    monkeypatch.setattr(benchmarks["common"], "measure_rows", lambda *_, **__: pytest.fail("it measures"))
    with pytest.raises(SystemExit) as stopped:
        benchmarks["significance"].main()
    assert stopped.value.code == 2 and "--write puts everybody" in capsys.readouterr().err


def row(kind, number, folder):
    """A task of no work."""
    return {"kind": kind, "number": number, "took": 0.0, "folder": folder}


def test_rows_of_other_code_are_measured_again(benchmarks, tmp_path):
    measure, file = benchmarks["common"].measure_rows, tmp_path / "rows.jsonl"
    how = {"n_processes": 1, "alone": ("a", "b")}
    first = measure([("a", 1)], row, file, same={"code": "x"}, **how)
    again = measure([("a", 1), ("b", 1)], row, file, same={"code": "x"}, **how)
    assert again["folder"].tolist()[0] == first["folder"][0] and again["kind"].tolist() == ["a", "b"]
    other = measure([("a", 1)], row, file, same={"code": "y"}, **how)
    assert other["folder"].tolist() != first["folder"].tolist() and other["code"].tolist() == ["y"]


def test_code_of_a_benchmark_follows_its_file_and_the_package(benchmarks, tmp_path):
    file, code_of = tmp_path / "benchmark.py", benchmarks["common"].code_of
    codes = []
    for text, module in (("a", inferred), ("b", inferred), ("b", pytest)):
        file.write_text(text)
        codes.append(code_of(file, module))
    assert len(set(codes)) == 3


@pytest.mark.parametrize(
    ("found", "elsewhere", "in_nobody", "n_missed"), [(20, 1, 0, 0), (17, 0, 0, 1), (20, 4, 0, 1), (1, 0, 20, 2)]
)
def test_the_group_map_fails_where_it_finds_too_little_or_what_is_not_there(
    benchmarks, found, elsewhere, in_nobody, n_missed
):
    side, k = np.arange(20) < found, np.arange(20)
    rows = pd.DataFrame({"kind": "planted", "left": side, "right": side, "n_elsewhere": (k < elsewhere).astype(int)})
    null = pd.DataFrame({"kind": "null", "n_elsewhere": (k < in_nobody).astype(int)})
    group = benchmarks["group"]
    assert len(group.failures(group.summary(pd.concat([rows, null])))) == n_missed


def test_the_contrast_fails_where_maps_show_more_than_chance(benchmarks):
    told = {"runs": 500, "noise": {"white": {"maps_with_any_voxel": 0.06, "regions_01": 0.01}}}
    told["oneback"] = {"waves": 40, "maps_with_any_voxel": 0.325}  # which is known
    assert benchmarks["contrast"].failures(told) == []
    told["noise"]["white"]["maps_with_any_voxel"] = 0.08
    assert benchmarks["contrast"].failures(told) == ["white, maps_with_any_voxel"]


@pytest.mark.parametrize(("alarms", "n_missed"), [(20, 0), (18, 0), (17, 1), (0, 1)])
def test_the_audit_fails_where_wrong_sounds_raise_no_alarm(benchmarks, alarms, n_missed):
    silent = {"film": 1, "by": "blocks", "alarm": False, "error": 0.0}
    rows = [silent | {"sound": name} for name in ("in time", "other words")]
    rows += [silent | {"sound": "music only", "alarm": k < alarms, "error": np.nan} for k in range(20)]
    assert len(benchmarks["audit"].failures(pd.DataFrame(rows))) == n_missed


def test_misses_of_the_delay_are_told(benchmarks):
    calibration, common = benchmarks["calibration"], benchmarks["common"]
    voxels = pd.DataFrame({"covers": [True], "near": [False], "width": [1.0]})
    lines = [(key, common.held(value, asked)) for key, _, value, asked in calibration.voxel_figures("x", "", voxels)]
    table = pd.DataFrame(lines, columns=["key", "held"])
    assert common.missed(table, calibration.KNOWN_MISSES, ["key"]) == ["x_voxel_near"]


def test_nobody_is_done_sooner_than_one_person(benchmarks):
    disk = dict.fromkeys(("outputs", "cache", "models", "MLflow", "scan"), 1.0)
    engine = {"tasks": 30, "bytes_per_task": 1, "scheduler_mb": 1, "worker_mb": 1}
    found = {"whole_s": 720, "overhead_s_per_task": 0, "disk_mb": disk, "engine": [engine], "whole_memory_mb": 1}
    table = benchmarks["scale"].on_paper(found).set_index("people")
    assert table.loc[30, "hours, 256 workers"] == 0.2 and table.loc[1000, "hours, 256 workers"] == 0.8


def test_the_interval_and_the_family_wise_p_of_alice_are_kept(benchmarks):
    gain = np.random.default_rng(0).normal(0.01, 0.02, (6, 2))
    rows = [{"subject": f"{k}", "region": name, "model": "past_sound", "gain": gain[k, j], "p": 0.04 + 0.02 * j}
            for k in range(6) for j, name in enumerate("ab")]  # fmt: skip
    table = benchmarks["alice"].together(pd.DataFrame(rows))
    assert list(table["gain"]) == pytest.approx(gain.mean(axis=0)) and list(table["people_p_05"]) == [6, 0]
    assert (table["low"] < table["gain"]).all() and (table["gain"] < table["high"]).all()
    assert (table["p_fwe"] >= table["p_sign_flip"]).all()
