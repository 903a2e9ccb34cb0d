"""The table of controls on planted courses, air of a scan, another film, left against right, and their sentences."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_contrast import BLOCKS, BOXCAR, PAIRS, SETTLED, T_R, noise

from bold_audio import contrast, control_sentences, controls, film, hemispheres, prepare
from bold_audio.controls import NotDone
from bold_audio.files import DataError
from bold_audio.params import load_params

SPEECH = 20 * np.nan_to_num(BOXCAR[:, 0])


def table_of(courses, **given):
    return controls.control_table(courses, PAIRS, rows=SETTLED, t_r=T_R, **given)


def quiet(seed):
    return noise(np.random.default_rng(seed), 1)[:, 0]


# --- the table ----------------------------------------------------------------------------


def test_planted_speech_lights_and_quiet_controls_stay_dark():
    table = table_of(
        {"auditory": quiet(0) + SPEECH, "auditory_left": quiet(1) + SPEECH, "brain": quiet(2)},
        white=quiet(3),
        air=quiet(4),
        other_film=(0.01, 0.6),
        tested="auditory_right",
    )
    assert tuple(table.columns) == controls.COLUMNS
    assert list(table["region"]) == ["auditory", "auditory_left", "white matter", "air", "auditory_right"]
    assert (table["verdict"] == "as expected").all() and controls.may_claim(table)
    known = contrast.region_contrast(quiet(0) + SPEECH, PAIRS, rows=SETTLED, t_r=T_R, alternative="greater").iloc[0]
    assert table["p"][0] == known["p"] and table["value"][0] == known["t"] and table["n"][0] == 6


def test_what_must_not_show_the_film_and_does_is_named():
    table = table_of(
        {"auditory": quiet(0) - SPEECH}, white=quiet(3) - SPEECH, air=quiet(4) + SPEECH, other_film=(2.0, 0.01)
    )
    assert (table["verdict"] == "NOT as expected").all() and not controls.may_claim(table)
    assert (table["p"][1:] < 0.05).all() and table["p"][0] > 0.95, "music above speech is no positive control"
    text = control_sentences.about_controls(table)
    assert "**The positive control failed:** speech is not above music in `auditory`" in text
    assert "**`white matter` shows the film** (p = " in text
    assert "**another film's sound, same blocks, adds within the blocks of ``** (gain +2.0000, p = 0.01)" in text


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        ((0.01, 0.05), "NOT as expected"),
        ((0.01, 0.06), "as expected"),
        ((-0.01, 0.01), "as expected"),  # its surrogates do worse still: inference_sentences calls that nothing shown
        ((np.nan, np.nan), "not done: the region does not vary"),
    ],
)
def test_another_sound_is_found_only_where_it_adds(result, verdict):
    assert controls.other_film_row(result, "auditory")["verdict"] == verdict


def test_a_positive_control_that_was_not_made_is_not_said_to_have_failed():
    table = table_of({"auditory": quiet(0) + SPEECH, "auditory_left": np.ones(len(SPEECH))})
    assert list(table["verdict"][:2]) == ["as expected", "not done: the time course does not vary"]
    text = control_sentences.about_controls(table)
    assert "failed" not in text and "**Not every positive control could be made,** so nothing finer" in text
    table = table_of({"auditory": quiet(0) - SPEECH, "auditory_left": np.ones(len(SPEECH))})
    text = control_sentences.about_controls(table)
    assert "**The positive control failed:** speech is not above music in `auditory`, so nothing finer" in text


def test_one_dark_side_is_enough_to_claim_nothing():
    table = table_of({"auditory_left": quiet(0) + SPEECH, "auditory_right": quiet(7)})
    assert list(table["verdict"][:2]) == ["as expected", "NOT as expected"] and not controls.may_claim(table)


def test_what_cannot_be_done_gives_its_reason():
    table = table_of({}, white=NotDone("no T1"), air=np.full(len(SETTLED) + 17, 3.0))
    assert list(table["verdict"]) == [
        "not done: no region auditory or auditory_left or auditory_right in this run",
        "not done: no T1",
        "not done: the time course does not vary",
        "not done: no test of the sound was given",
    ]
    assert table["p"].isna().all() and not controls.may_claim(table)
    text = control_sentences.about_controls(table)
    assert "**No positive control could be made**" in text and "white matter (no T1)" in text
    few = controls.control_table({"auditory": quiet(0)}, PAIRS[:2], rows=SETTLED, t_r=T_R)
    assert "not done: 2 pairs of a music and a speech block" in few["verdict"][0]
    none = controls.control_table({"auditory": quiet(0)}, NotDone("no blocks"), rows=SETTLED, t_r=T_R, air=quiet(1))
    assert list(none["verdict"][[0, 2]]) == ["not done: no blocks"] * 2


def test_air_is_dark_outside_the_mask_not_empty_and_evenly_spread():
    mean = np.full((10, 10, 10), 5.0)
    mask = np.zeros(mean.shape, bool)
    mask[4:7, 4:7, 4:7] = True
    mean[mask], mean[3], mean[:, :, 0] = 100.0, 40.0, 0.0  # brain, scalp, what was masked before
    mean[mask & (np.indices(mean.shape)[0] == 5)] = 2.0  # dark, but inside
    found = controls.air_voxels(mean, mask, n_voxels=1000)
    assert set(found) == set(np.flatnonzero(~mask & (mean == 5.0)))
    some = controls.air_voxels(mean, mask, n_voxels=50)
    assert len(some) == 50 and set(some) < set(found)
    assert np.ptp(np.diff(np.searchsorted(found, some))) <= 1
    with pytest.raises(DataError, match="no voxel outside the mask is dark"):
        controls.air_voxels(np.where(mask, 100.0, 0.0), mask)


@pytest.mark.slow
def test_air_is_read_from_the_scan_itself(small_params):
    params = small_params()
    subject = prepare.open_subject(params)
    found = controls.read_air(subject.run, params, n_voxels=100)
    data = np.asarray(nib.load(subject.run.files.bold).dataobj)
    at = controls.air_voxels(data.mean(axis=3), subject.run.mask, n_voxels=100)
    np.testing.assert_array_equal(found, data.reshape(-1, data.shape[3])[at].T)
    assert found.mean() < 0.1 * subject.Y.mean()
    coarse = prepare.open_subject(small_params(downsample=2))
    assert controls.read_air(coarse.run, coarse.params, n_voxels=10).shape == (641, 10)
    whole = prepare.open_subject(small_params(mask="none"))
    with pytest.raises(DataError, match="read without a mask"):
        controls.read_air(whole.run, whole.params)


@pytest.mark.slow
def test_controls_of_a_simulated_subject(small_params, monkeypatch):
    subject = prepare.open_subject(small_params())
    regions = subject.run.regions | {"auditory_left": subject.run.regions["planted_auditory_left"]}
    subject = replace(subject, run=replace(subject.run, regions=regions))
    heard = []
    table = controls.subject_controls(
        subject,
        5.0,
        white=subject.run.regions["silent"],
        test_sound=lambda features: heard.append(features) or (0.0, 0.5),
    )
    assert list(table["region"]) == ["auditory_left", "white matter", "air", ""]
    assert not table["verdict"].str.startswith("not done").any()
    course = subject.Y[:, subject.run.regions["silent"]].mean(axis=1, dtype=float)
    pairs = contrast.subject_pairs(subject, 5.0)
    known = contrast.region_contrast(course, pairs, rows=contrast.settled_rows(subject), t_r=T_R)
    assert table["p"][1] == pytest.approx(known["p"][0])
    # The other film: as long, alike in its blocks, unlike in everything else.
    (other,) = heard
    own = subject.sound
    n = min(len(own.frames), len(other.frames))
    assert other.names == own.names and other.duration == pytest.approx(own.duration, abs=0.01)
    speech = (own.frame_times[:n] // 30) % 2 == 1
    inside = own.frames[:n][speech, 0], other.frames[:n][speech, 0]
    assert abs(np.corrcoef(*inside)[0, 1]) < 0.2
    levels = [
        frames[:n][speech].mean(axis=0) - frames[:n][~speech].mean(axis=0) for frames in (own.frames, other.frames)
    ]
    assert np.corrcoef(*levels)[0, 1] > 0.8
    made = []
    monkeypatch.setattr(film, "film_reels", lambda *given, **how: made.append(given))
    np.testing.assert_array_equal(controls.other_film(subject).frames, other.frames)
    assert not made, "the film is made once and kept"


@pytest.mark.slow
def test_another_film_is_made_reel_by_reel(small_params, monkeypatch):
    """Made whole, the sound of two hours took notebook 06 above the 8 GiB that it may need."""
    subject, lengths, make = prepare.open_subject(small_params()), [], film.film_sound
    monkeypatch.setattr(film, "REEL", 120)
    monkeypatch.setattr(film, "film_sound", lambda length, **how: lengths.append(length) or make(length, **how))
    other = controls.other_film(subject)
    assert len(lengths) == int(subject.run.files.heard // 120) > 1 and max(lengths) < 240
    assert other.duration == pytest.approx(subject.run.files.heard, abs=1e-4)


@pytest.mark.slow
def test_a_film_with_other_blocks_has_no_twin(small_params):
    subject = prepare.open_subject(small_params())
    events = subject.run.files.events
    kept = events["onset"].copy()
    events.loc[3, "onset"] = float(kept[3]) + 5
    try:
        with pytest.raises(DataError, match="blocks are not those that another film"):
            controls.other_film(subject)
        row = controls._try_other_film(subject, lambda features: (0.0, 1.0))
        assert isinstance(row, NotDone) and "another film" in row.reason
    finally:
        events["onset"] = kept


# --- hemispheres --------------------------------------------------------------------------

REGIONS = pd.DataFrame(
    {
        "region": ["brain", "auditory_left", "auditory_right", "stg_left", "alone_left"],
        "delay": [5.0, 5.0, 6.5, 4.0, 4.0],
        "low": [4.0, 4.6, 6.1, 3.0, 3.0],
        "high": [6.0, 5.4, 7.0, 5.0, 5.0],
        "identifiable": True,
    }
)


def test_left_and_right_stand_side_by_side():
    scores = pd.DataFrame({"region": ["auditory_left", "auditory_right"], "r": [0.3, 0.2]})
    dominance = {"language_dominance": "R", "language_dominance_technique": "Wada"}
    table = hemispheres.hemisphere_table(REGIONS, scores, subject="13", dominance=dominance)
    assert list(table["region"]) == ["auditory"]
    row = table.iloc[0]
    assert row["delay_right_minus_left"] == 1.5 and row["apart"] and row["score_difference"] == pytest.approx(-0.1)
    text = control_sentences.about_hemispheres(table)
    assert (
        "right side follows 1.5 s after the left (5 s left, 6.5 s right; their 95 % intervals do not overlap)" in text
    )
    assert "gain +0.3000 left, +0.2000 right" in text and "language is on the right by Wada" in text


def test_delays_that_are_not_identifiable_are_not_compared():
    unsure = REGIONS.assign(identifiable=REGIONS["region"] != "auditory_right")
    table = hemispheres.hemisphere_table(unsure, subject="09")
    assert np.isnan(table["delay_right_minus_left"][0]) and not table["apart"][0]
    text = control_sentences.about_hemispheres(table)
    two = hemispheres.hemisphere_table(REGIONS.assign(low=np.nan, high=np.nan), subject="09")
    told = control_sentences.about_hemispheres(two)
    assert "6.5 s right; no intervals: fewer than three delays were tried)" in told and "overlap" not in told
    assert "not identifiable on the right" in text and "Language dominance of this person is not known." in text
    empty = hemispheres.hemisphere_table(REGIONS.iloc[:1], subject="09")
    assert "No region has a twin" in control_sentences.about_hemispheres(empty)


def test_language_dominance_of_every_person_of_ds003688(shared, tmp_path):
    """The table as it is: "possibly L", "possibly bilateral" and n/a among the 30 people with fMRI."""
    found = {}
    for label in ("04", "09", "11", "13", "29", "41", "62", "23", "50", "99"):
        params = load_params("09", "ds003688", data_dir=f"{shared / 'ds003688'}", outputs_dir=f"{tmp_path}")
        params = params.model_copy(update={"subject": label})
        mine = hemispheres.read_dominance(params)
        found[label] = (mine["language_dominance"], *hemispheres.side_of(mine["language_dominance"]))
    assert found == {
        "04": ("possibly L", "left", False),
        "09": ("L", "left", True),
        "11": ("n/a", "n/a", False),
        "13": ("R", "right", True),
        "29": ("possibly bilateral", "bilateral", False),
        "41": ("possibly L", "left", False),
        "62": ("possibly L", "left", False),
        "23": ("inconclusive", "n/a", False),
        "50": ("bilateral", "bilateral", True),
        "99": ("n/a", "n/a", False),
    }


def test_tables_without_dominance_say_so(tmp_path):
    params = load_params("09", "mine", data_dir=f"{tmp_path}", outputs_dir=f"{tmp_path.parent / 'out'}")
    unknown = {"language_dominance": "n/a", "language_dominance_technique": "n/a"}
    assert hemispheres.read_dominance(params) == unknown
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\nsub-09\n")
    assert hemispheres.read_dominance(params) == unknown
    path.write_text("participant_id\tlanguage_dominance\n9\tL\n10\tR\n")
    assert hemispheres.read_dominance(params) == unknown | {"language_dominance": "L"}
    path.write_text("subject\tage\n09\t5\n")
    with pytest.raises(DataError, match="no column participant_id"):
        hemispheres.read_dominance(params)


# --- sentences ----------------------------------------------------------------------------


def test_contrast_is_told_with_its_numbers():
    t = np.r_[np.random.default_rng(0).normal(size=500), 9.0, 8.0, -7.0, np.nan]
    found = contrast.ContrastMap(t, 0.1 * t, 571, 560)
    text = control_sentences.about_contrast(found)
    assert "2 of 503 voxels are higher during speech and 1 during music" in text
    assert "highest t is 9.0 (+0.90 % of that voxel's mean)." in text
    nothing = contrast.ContrastMap(t[:500], t[:500], 571, 560)
    assert "The blocks show nowhere on this map." in control_sentences.about_contrast(nothing)
    empty = contrast.ContrastMap(np.array([np.nan]), np.array([np.nan]), 571, 560)
    assert "No voxel varies" in control_sentences.about_contrast(empty)


def test_ceiling_is_told_with_what_is_missing():
    table = pd.DataFrame(
        {"region": ["LPTL", "LIFG"], "ceiling": [0.34, 0.08], "low": [0.05, -0.2], "high": [0.53, 0.3],
         "chance": [0.1, 0.1], "n_people": 12, "r": [0.12, 0.2], "own": [0.15, 0.12], "share": [0.8, np.nan]}
    )  # fmt: skip
    text = control_sentences.about_ceiling(table, left_out={"03": "200 volumes in place of 641"})
    assert "best in `LPTL`, r = 0.34 (Fisher mean of 12 people, from 0.05 to 0.53)" in text
    assert "In `LIFG` it is not above what people shifted in time reach" in text
    assert "Of this person it predicts r = 0.15 there; `sound` reaches r = 0.12, 80% of that." in text
    assert "In `LIFG` the model is above this person's ceiling" in text
    assert "Left out: sub-03 (200 volumes in place of 641)." in text
    no_share = control_sentences.about_ceiling(table.assign(own=0.02, share=np.nan))
    assert "r = 0.02 there, which is not shown to be more than chance" in no_share and "%" not in no_share
    group = control_sentences.about_ceiling(table.drop(columns=["r", "own", "share"]))
    assert "this person" not in group and "predicts a person's best in `LPTL`, r = 0.34" in group
    none = control_sentences.about_ceiling(None, left_out={"03": "no scan"}, reason="people share no volume")
    assert none == "No inter-subject ceiling: people share no volume. Left out: sub-03 (no scan)."
    assert "no region varies" in control_sentences.about_ceiling(table.assign(ceiling=np.nan))


def test_the_film_of_ds003688_is_the_one_that_another_film_copies():
    assert list(BLOCKS["trial_type"][:3]) == ["music", "speech", "music"] and len(BLOCKS) == 13
