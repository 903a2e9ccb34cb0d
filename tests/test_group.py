"""The group answer as notebook 07 gives it: executed on made-up people, and its sentences for all that can come out."""

import json
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from cohort import head_map, write_person, write_person_map
from scipy.stats import norm

from bold_audio import group, group_figures, group_maps, group_sentences, group_stats, group_tables, run
from bold_audio.files import DataError, write_json
from bold_audio.params import load_params

AUDITORY = ((-54, -20, 3), (57, -14, 2))
REGIONS = {"auditory": 0.03, "auditory_left": 0.04, "auditory_right": 0.02, "silent": 0.0}


def write_cohort(folder, n, *, effect=1.0, seed=0, maps=True):
    rng = np.random.default_rng(seed)
    for k in range(n):
        gains = {name: effect * gain + rng.normal(0, 0.004) for name, gain in REGIONS.items()}
        write_person(folder, f"{k:02}", gains, delay=5 + rng.normal(0, 0.3), mean_fd=0.8 if k == 1 else 0.1)
        if maps:
            values, affine, points = head_map(rng, AUDITORY if effect else ())
            write_person_map(folder, f"{k:02}", values, affine, points=points, model="oofHistoryBlocksSound")
            p = norm.sf(values / np.nanstd(values))
            write_person_map(folder, f"{k:02}", p, affine, points=points, model="inference", stat="p")


def params_in(tmp_path, **given):
    made = {"outputs_dir": str(tmp_path / "outputs"), "data_dir": str(tmp_path / "data")}
    return load_params("00", "sim", **made, **given)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 8])
def test_command_tells_the_answer_of_few_people(tmp_path, capfd, n):
    folder = tmp_path / "outputs" / "sim"
    write_cohort(folder, n)
    write_person(folder, "90", REGIONS, sweep_fwhm=4.0)
    write_json(folder / "sub-91/status.json", {"state": "failed", "step": "00_data_download", "error": "no sound"})
    status, out, err = call(capfd, tmp_path)
    assert (status, err) == (0, "") and out.endswith("outputs/sim/group/report/07_group.html\n")
    notebook = nbformat.read(folder / "group/07_group.ipynb", as_version=4)
    text = json.dumps([cell.get("outputs") for cell in notebook.cells], ensure_ascii=False)
    assert "group/report/07_group.html" in (folder / "index.html").read_text()
    page = (folder / "group/report/07_group.html").read_text()
    assert '<a href="../../index.html">← sim: all subjects</a>' in page and "SIMULATED" in page
    assert f"{n} people of sim; SIMULATED subject. 2 left out: 1 other parameters, 1 failed." in text
    assert "00_data_download: no sound" in text and "sweep_fwhm is 4.0 in place of 8.0" in text
    told = " ".join(json.loads((folder / "group/summary.json").read_text())["sentences"])
    if n == 2:
        assert "**So few people can show nothing:** no p of 2 is below 0.25." in told
    else:
        assert "**People like these follow the sound within the blocks.**" in told
        assert "Without 1 people" not in told and "Without one person who moved more than 0.5 mm" in told
    assert "voxels that" in told and (folder / "group/gain.tsv").is_file()
    maps = {path.name.partition("_desc-")[2] for path in (folder / "group").glob("*_statmap.nii.gz")}
    stats = ("mean", "t", "pfwe", "people")
    assert maps == {f"inference_stat-evidence{one}_statmap.nii.gz" for one in stats} | {
        f"oofHistoryBlocksSound_stat-gain{one}_statmap.nii.gz" for one in stats
    }


def call(capfd, tmp_path):
    given = {"outputs_dir": str(tmp_path / "outputs"), "data_dir": str(tmp_path / "data")}
    with pytest.raises(SystemExit) as stopped:
        run.main(["group", "--dataset", "sim", *(word for pair in given.items() for word in ("-p", *pair))])
    return stopped.value.code or 0, *capfd.readouterr()


def test_nobody_and_too_few_are_told_before_anything_is_executed(tmp_path, capfd):
    folder = tmp_path / "outputs/sim"
    assert call(capfd, tmp_path)[::2] == (
        3,
        f"bold_audio: nobody in {folder} - run 'bold-audio run --subjects all' first\n",
    )
    write_cohort(folder, 1, maps=False)
    status, _, err = call(capfd, tmp_path)
    assert status == 3 and "needs at least 2 finished people, sim has 1" in err and len(err.splitlines()) == 1
    assert not list(folder.glob("group/[!.]*"))


@pytest.mark.slow
def test_group_that_fails_has_a_page_that_says_why(tmp_path, capfd):
    folder = tmp_path / "outputs/sim"
    write_cohort(folder, 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/participants.tsv").write_text("participant_id\tage\nsub-00\t30\n")
    assert call(capfd, tmp_path)[0] == 0
    (folder / "group/gain.tsv").unlink()
    (folder / "group/gain.tsv").mkdir()  # cannot be written
    status, _, err = call(capfd, tmp_path)
    assert status == 1 and len(err.splitlines()) == 1 and "07_group failed with IsADirectoryError" in err
    assert "gain.tsv" in (folder / "group/report/07_group.html").read_text()


def test_fewer_than_two_people_are_refused_with_the_reasons(tmp_path):
    params = params_in(tmp_path)
    folder = tmp_path / "outputs/sim"
    write_cohort(folder, 1, maps=False)
    write_json(folder / "sub-91/status.json", {"state": "failed", "step": "04_train", "error": "disk full"})
    with pytest.raises(
        DataError, match=r"at least 2 finished people, sim has 1 \(sub-91 failed: 04_train: disk full\)"
    ):
        group.open_group(params)


def test_nobody_whose_scan_is_there_is_no_ceiling_and_no_end(tmp_path):
    write_cohort(tmp_path / "outputs/sim", 2, maps=False)
    params = params_in(tmp_path)
    table, left_out, reason = group.find_ceiling(params, group.open_group(params))
    assert table is None and left_out == {} and reason.startswith("sub-00: ")


def test_a_film_without_blocks_is_asked_over_the_past(tmp_path):
    for label in ("00", "01"):
        write_person(tmp_path / "outputs/sim", label, REGIONS, within=False)
    found = group.open_group(params_in(tmp_path))
    assert group.asked(found) == "gain"
    assert not group.group_map(params_in(tmp_path), found, "gain").labels


# --- sentences ----------------------------------------------------------------------------


def tables_of(n, effect, *, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        (f"{k:02}", region, effect * gain + rng.normal(0, 0.004)) for k in range(n) for region, gain in REGIONS.items()
    ]
    table = pd.DataFrame(rows, columns=["subject", "region", "gain"])
    return table, group_stats.region_table(table, "gain")


def test_region_says_what_is_shown_and_what_is_not():
    said = {n: group_sentences.about_region(tables_of(n, 1)[1], "auditory", value="gain") for n in (4, 8)}
    assert "the past leaves by 2.66%, in the mean of 4 people" in said[4] and "no p of 4 is below 0.062" in said[4]
    assert said[8].endswith("**People like these follow the sound.**") and "family-wise over 4 regions" in said[8]
    nothing = group_sentences.about_region(tables_of(8, 0)[1], "auditory", value="gain_within")
    assert nothing.endswith("**Nothing is shown over people:** chance does as much.")
    assert "that the past and the film's blocks leave by" in nothing
    assert "no primary outcome" in group_sentences.about_region(tables_of(8, 0)[1], None, value="gain")
    others = group_sentences.about_other_regions(tables_of(8, 1)[1], "auditory")
    assert group_sentences.about_other_regions(tables_of(8, 1)[1], None).startswith("Of 4 regions 3 hold")
    assert others == "Of 3 other regions 2 hold at family-wise p ≤ 0.05 (auditory_left, auditory_right)."


def test_motion_says_whether_the_answer_changes():
    table, whole = tables_of(8, 1)
    people = pd.DataFrame({"subject": [f"{k:02}" for k in range(8)], "mean_fd": [0.9, 0.1, 0.1, np.nan] * 2})
    still = group_stats.region_table(
        table[table["subject"].isin(people["subject"][~(people["mean_fd"] > 0.5)])], "gain"
    )
    said = group_sentences.about_motion(whole, still, "auditory", people, limit=0.5)
    assert "Without 2 people who moved more than 0.5 mm on average (00, 04) the answer is the same" in said
    assert said.endswith("The head motion of 2 people is not known.")
    one = group_sentences.about_motion(whole, still, "auditory", people[:4], limit=0.5)
    assert one.startswith("Without one person who") and one.endswith("The head motion of one person is not known.")
    fewer = group_stats.region_table(table[table["subject"] < "04"], "gain")
    assert "**the answer changes**" in group_sentences.about_motion(whole, fewer, "auditory", people, limit=0.5)
    assert "too few are left" in group_sentences.about_motion(whole, still[:0], "auditory", people, limit=0.5)
    assert group_sentences.about_motion(whole, whole, "auditory", people[1:3], limit=0.5).startswith("Nobody moved")
    nothing = group_sentences.about_motion(whole, whole, "auditory", people[3:4], limit=0.5)
    assert nothing == "The head motion is known of nobody."


def test_delay_age_and_language_say_what_is_not_known():
    delays = pd.DataFrame({"subject": ["a", "b"], "region": "auditory", "delay": [5.0, 6.0]})
    known = group_stats.delay_table(delays.assign(identifiable=True))
    assert "in 2 of 2 people, mean 5.5 s (95 % interval" in group_sentences.about_delay(known, "auditory")
    unsure = group_stats.delay_table(delays.assign(identifiable=[True, False]))
    assert group_sentences.about_delay(unsure, "auditory").endswith("in 1 of 2 people, mean 5.0 s.")
    assert "in anybody" in group_sentences.about_delay(
        group_stats.delay_table(delays.assign(identifiable=False)), "auditory"
    )
    table, _ = tables_of(6, 1)
    labels = sorted(set(table["subject"]))
    people = pd.DataFrame({"subject": labels, "age": [20, 30, 40, 50, 60, 70.0], "language_certain": True})
    people["language_side"] = ["left", "left", "left", "right", "bilateral", "n/a"]
    age = group_stats.age_table(table, "gain", people)
    assert "with the gain in `auditory` (95 % interval" in group_sentences.about_age(age, "auditory")
    assert "fewer than four people have a known age and a gain, or" in group_sentences.about_age(age[:0], "auditory")
    said = group_sentences.about_dominance(group_stats.dominance_table(table, "gain", people), "auditory")
    assert "people with language on the left side" in said and "on both sides" in said and "n/a" not in said
    assert "in 3 people with language on the left side;" in said
    people.loc[:1, "language_certain"] = False
    said = group_sentences.about_dominance(group_stats.dominance_table(table, "gain", people), "auditory")
    assert "in 3 people with language on the left side (2 of them possibly);" in said
    assert "in one person with language on the right side." in said
    nobody = group_stats.dominance_table(table, "gain", people.assign(language_side="n/a"))
    assert "not known of anybody" in group_sentences.about_dominance(nobody, "auditory")


@pytest.mark.slow
def test_map_says_how_many_voxels_and_who_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(group_maps, "RESOLUTION", 8)
    write_cohort(tmp_path, 6)
    labels = list(group_tables.read_group(tmp_path).people["subject"])
    found = group_maps.group_map(tmp_path, [*labels, "70"], model="oofHistoryBlocksSound")
    said = group_sentences.about_map(found, quantity="gain_within", fwhm=8.0)
    assert "hold for the gain over the past and the film's blocks at family-wise" in said
    assert (
        f"of {len(found.table):,} voxels that 6 people share" in said
        and "Not in it: sub-70 (no map of gain of oofHistoryBlocksSound - run notebook 06)." in said
    )
    nothing = group_maps.group_map(tmp_path, ["70"], model="oofHistoryBlocksSound")
    said = group_sentences.about_map(nothing, quantity="evidence", fwhm=8.0)
    assert said.startswith("No group map of the evidence of the sound beyond the past (the film's blocks are in it): ")


def test_who_is_missing_for_one_reason_is_told_once():
    nobody = group_maps.GroupMap(pd.DataFrame(), None, None, (), {f"{k:02}": "its scan has no place" for k in range(7)})
    said = group_sentences.about_map(nobody, quantity="gain", fwhm=8.0)
    assert said.endswith("Not in it: sub-00, sub-01, sub-02, sub-03, sub-04 and 2 more (its scan has no place).")


@pytest.mark.parametrize("source, note", [("audio", "RE-SYNTHESISED speech"), ("annotations", "ANNOTATIONS, not from")])
def test_what_the_sound_was_is_said_of_the_people(source, note):
    settings = {"data_note": "real scan", "sound_note": "RE-SYNTHESISED speech", "feature_source": source}
    found = SimpleNamespace(
        people=pd.DataFrame(index=range(3)), left_out=pd.DataFrame({"state": []}), settings=settings
    )
    said = group_sentences.about_people(found, "alice")
    assert said.startswith("3 people of alice; real scan; ") and note in said
    assert ("RE-SYNTHESISED" in said) == (source == "audio")


def test_figure_shows_every_person_and_what_is_sure():
    table, whole = tables_of(8, 1)
    fig = group_figures.plot_regions(whole, table, "gain", title="t", unit="gain", note="SIMULATED")
    dots, sure, rest = fig.data
    assert len(dots.x) == 32 and list(sure.y) == ["auditory", "auditory_left", "auditory_right"]
    assert list(rest.y) == ["silent"] and "SIMULATED" in str(fig.layout.title)
    assert sure.error_x.array[0] == pytest.approx(whole["high"][0] - whole["mean"][0])
