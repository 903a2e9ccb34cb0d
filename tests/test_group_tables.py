"""The table of all subjects: what is read, who is left out and why, and thousands of folders."""

import json
import math
import shutil

import pandas as pd
import pytest
from cohort import write_person

from bold_audio import group_stats, group_tables
from bold_audio.files import DataError, write_json, write_table

GAINS = {"auditory": 0.03, "silent": -0.001}


def test_two_people_come_out_as_they_were_written(tmp_path):
    for label, gain in (("01", 0.03), ("02", 0.05)):
        write_person(tmp_path, label, {"auditory": gain}, r=0.3, delay=4.6)
    found = group_tables.read_group(tmp_path)
    assert found.regions["gain"].tolist() == found.regions["gain_within"].tolist() == [0.03, 0.05]
    row = found.regions.iloc[1]
    assert row[["subject", "region", "r", "p", "delay", "low", "high"]].tolist() == [
        "02", "auditory", 0.3, 0.01, 4.6, 4.2, 5.0,
    ]  # fmt: skip
    assert bool(row["identifiable"]) and row["n_voxels"] == 20
    assert found.people["mean_fd"].tolist() == [0.1, 0.1] and found.left_out.empty
    assert found.settings["data_note"] == "SIMULATED subject" and "subject" not in found.settings


def test_a_film_without_blocks_and_a_person_without_studies_leave_holes_not_zeros(tmp_path):
    path = write_person(tmp_path, "01", GAINS, within=False)
    for name in ("out_of_fold.tsv", "dt_regions.tsv", "sub-01_task-film_desc-quality_timeseries.tsv"):
        (path / name).unlink()
    found = group_tables.read_group(tmp_path)
    assert found.regions[["r", "gain_within", "p_within", "delay"]].isna().all(axis=None)
    assert not found.regions["identifiable"].any() and math.isnan(found.people.loc[0, "mean_fd"])


def test_a_gain_whose_p_the_person_withholds_gets_none_over_people(tmp_path):
    for label in ("01", "02", "03"):
        path = write_person(tmp_path, label, {"auditory": 0.03, "speech_music": 0.05}) / "inference_regions.tsv"
        table = pd.read_csv(path, sep="\t")
        table.loc[(table["region"] == "speech_music") & (table["model"] == "past_sound"), "p"] = None
        write_table(path, table)
    found = group_tables.read_group(tmp_path).regions
    assert list(group_stats.region_table(found, "gain")["region"]) == ["auditory"]
    assert list(group_stats.region_table(found, "gain_within")["region"]) == ["auditory", "speech_music"]


def _cut(path, ending=""):
    path.write_text(path.read_text()[:-4] + ending)


def _forget_inference(path):
    done = json.loads((path / "provenance.json").read_text())
    write_json(path / "provenance.json", {"dt_sweep": done["dt_sweep"]})


def _other_scan(path):
    done = json.loads((path / "provenance.json").read_text())
    done["dt_sweep"]["input_md5"] = {"01_bold.nii.gz": "1"}
    write_json(path / "provenance.json", done)


def _rescan(path, md5, name="sub-00_bold.nii.gz"):
    done = json.loads((path / "provenance.json").read_text())
    for entry in done.values():
        entry["input_md5"] = {name: md5, "film.wav": "0"}
    write_json(path / "provenance.json", done)


FAULTS = {
    "failed": (lambda p: write_json(p / "status.json", {"state": "failed", "step": "04_train", "error": "no disk"}),
               "failed", "04_train: no disk"),
    "running": (lambda p: write_json(p / "status.json", {"state": "stopped", "step": "03_dt_sweep"}),
                "not finished", "03_dt_sweep"),
    "sweep only": (_forget_inference, "not finished", "no inference yet"),
    "never run": (lambda p: [one.unlink() for one in p.iterdir()], "not finished", "no inference yet"),
    "cut table": (lambda p: _cut(p / "inference_regions.tsv"), "damaged", "was cut"),
    "short row": (lambda p: _cut(p / "inference_regions.tsv", "\n01\n"), "damaged", "another length"),
    "binary table": (lambda p: (p / "dt_regions.tsv").write_bytes(b"\xff\xfe\x00"), "damaged", "decode"),
    "no table": (lambda p: (p / "inference_regions.tsv").unlink(), "damaged", "inference_regions.tsv"),
    "text for a number": (lambda p: (p / "inference_regions.tsv").write_text(
        "region\tmodel\tgain\tp\tn_voxels\nauditory\tpast_sound\tlots\t0.1\t3\n"), "damaged", "lots"),
    "infinite": (lambda p: (p / "inference_regions.tsv").write_text(
        "region\tmodel\tgain\tp\tn_voxels\nauditory\tpast_sound\tinf\t0.1\t3\n"), "damaged", "inf"),
    "no column": (lambda p: (p / "out_of_fold.tsv").write_text("model\tregion\n"), "damaged", "no column prediction"),
    "broken JSON": (lambda p: (p / "provenance.json").write_text('{"dt_sweep": '), "damaged", "not readable JSON"),
    "other JSON": (lambda p: (p / "status.json").write_text("[1]"), "damaged", "AttributeError"),
    "other scan": (_other_scan, "other parameters", "other files"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_who_cannot_be_counted_is_listed_with_the_reason_and_stops_nobody(tmp_path, fault):
    for label in ("01", "02", "03"):
        write_person(tmp_path, label, GAINS)
    breaks, state, reason = FAULTS[fault]
    breaks(tmp_path / "sub-01")
    found = group_tables.read_group(tmp_path)
    assert list(found.people["subject"]) == ["02", "03"] and set(found.regions["subject"]) == {"02", "03"}
    assert found.left_out["subject"].tolist() == ["01"]
    assert found.left_out.loc[0, "state"] == state and reason in found.left_out.loc[0, "reason"]


def test_people_with_other_parameters_are_listed_apart_and_those_of_their_own_are_not(tmp_path):
    write_person(tmp_path, "01", GAINS, sweep_fwhm=6.0)
    write_person(tmp_path, "02", GAINS, session="2", audio_onset=3.5, lr=0.1)
    write_person(tmp_path, "03", GAINS)
    write_person(tmp_path, "04", GAINS, data_note=None)
    found = group_tables.read_group(tmp_path)
    assert list(found.people["subject"]) == ["02", "03"]
    assert found.left_out["reason"].tolist() == [
        "sweep_fwhm is 6.0 in place of 8.0", "data_note is None in place of SIMULATED subject",
    ]  # fmt: skip
    assert set(found.left_out["state"]) == {"other parameters"}


@pytest.mark.parametrize("name", ["sub-04_bold.nii.gz", "sub-04_run-2_bold.nii"])
def test_a_scan_under_two_labels_is_one_person_not_two(tmp_path, name):
    for label in ("01", "02", "03", "04"):
        write_person(tmp_path, label, GAINS)
    for label in ("02", "04"):
        _rescan(tmp_path / f"sub-{label}", "same", name)
    found = group_tables.read_group(tmp_path)
    assert list(found.people["subject"]) == ["01", "02", "03"] == sorted(set(found.regions["subject"]))
    assert found.left_out.to_dict("records") == [
        {"subject": "04", "state": "same scan", "reason": "its scan is that of sub-02, who is counted"}
    ]


def test_who_is_left_out_anyway_takes_nobody_along(tmp_path):
    for label in ("01", "02", "03"):
        write_person(tmp_path, label, GAINS, **({"sweep_fwhm": 6.0} if label == "01" else {}))
    for label in ("01", "02"):
        _rescan(tmp_path / f"sub-{label}", "same")
    assert list(group_tables.read_group(tmp_path).people["subject"]) == ["02", "03"]


def test_tables_of_one_person_made_with_different_parameters_are_not_mixed(tmp_path):
    path = write_person(tmp_path, "01", GAINS)
    done = json.loads((path / "provenance.json").read_text())
    done["dt_sweep"]["parameters"]["delays"] = [1.0, 9.0]
    write_json(path / "provenance.json", done)
    found = group_tables.read_group(tmp_path)
    assert found.people.empty and found.regions.empty and found.settings == {}
    assert "dt_sweep and inference_regions differ: delays is [1.0, 9.0]" in found.left_out.loc[0, "reason"]


def test_age_and_language_come_from_participants(tmp_path):
    for label in ("09", "10", "11"):
        write_person(tmp_path / "outputs", label, GAINS)
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tlanguage_dominance\n9\t31\tpossibly L\nsub-10\tn/a\tR\nsub-12\t5\tL\n"
    )
    people = group_tables.read_group(tmp_path / "outputs", data_path=tmp_path).people.set_index("subject")
    assert people.loc["09", "age"] == 31 and people.loc[["10", "11"], "age"].isna().all()
    assert people["language_side"].tolist() == ["left", "right", "n/a"]
    assert people["language_certain"].tolist() == [False, True, False]
    (tmp_path / "participants.tsv").write_text("name\n9\n")
    with pytest.raises(DataError, match="no column participant_id"):
        group_tables.read_group(tmp_path / "outputs", data_path=tmp_path)


def test_an_empty_folder_is_an_empty_group(tmp_path):
    found = group_tables.read_group(tmp_path / "nothing")
    assert found.people.empty and found.regions.empty and found.left_out.empty


@pytest.mark.slow
def test_hundreds_of_folders_are_read_whole(tmp_path):
    first = write_person(tmp_path, "00000", {"auditory": 0.123})
    for k in range(1, 300):
        path = shutil.copytree(first, tmp_path / f"sub-{k:05}")
        _rescan(path, f"{k:05}")
        table = path / "inference_regions.tsv"
        table.write_text(table.read_text().replace("0.123", str(k / 1000)))
    found = group_tables.read_group(tmp_path)
    assert len(found.people) == 300
    known = pd.Series([0.123, *(k / 1000 for k in range(1, 300))], name="gain")
    pd.testing.assert_series_equal(found.regions["gain"], known)
