"""A subject's inference end to end on small simulated people: found, written, read again, and told apart."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bold_audio import inferred, region_inference, workflow
from bold_audio.inference_sentences import RATES
from bold_audio.params import load_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject(sim_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("inferred")
    return workflow.open_subject(load_params("sim", data_dir=str(sim_dir), outputs_dir=str(out)))


@pytest.fixture(scope="module")
def voxels(subject):
    return inferred.ensure_voxels(subject)


def test_planted_voxels_pass_and_silent_ones_do_not(subject, voxels):
    sure = voxels.voxels["q"].to_numpy() <= 0.05
    assert sure[subject.run.regions["planted_r2_over_0.2"]].mean() >= 0.8
    assert sure[subject.run.regions["silent"]].mean() <= 0.02


def test_maps_hold_what_was_found(subject, voxels):
    for stat, column in (("z", "z"), ("q", "q"), ("pfwe", "p_fwe")):
        path = subject.path(f"{subject.run.files.entities}_desc-inference_stat-{stat}_statmap.nii.gz")
        image = nib.load(path)
        np.testing.assert_allclose(image.affine, subject.run.affine, atol=1e-4)
        np.testing.assert_allclose(image.get_fdata()[subject.run.mask], voxels.voxels[column], rtol=1e-5)
    sure = voxels.voxels["q"].to_numpy() <= 0.05
    assert sure.any() and (voxels.voxels["low"] < voxels.voxels["high"])[sure].all()
    for stat, column in (("delay", "delay"), ("delaylow", "low"), ("delayhigh", "high")):
        image = nib.load(subject.path(f"{subject.run.files.entities}_desc-inference_stat-{stat}_statmap.nii.gz"))
        shown = image.get_fdata()[subject.run.mask]
        np.testing.assert_allclose(shown, np.where(sure, voxels.voxels[column], np.nan), rtol=1e-5)


def test_found_once_and_read_again(subject, voxels, monkeypatch):
    monkeypatch.setattr(inferred, "infer_subject_voxels", lambda *_: pytest.fail("made twice"))
    again = inferred.ensure_voxels(subject)
    pd.testing.assert_frame_equal(again.voxels, voxels.voxels)
    assert (again.n_shifts, again.n_randomised) == (voxels.n_shifts, voxels.n_randomised)


def test_regions_answer_both_questions(subject, monkeypatch):
    monkeypatch.setattr(region_inference, "N_RANDOMISED", 19)
    table = inferred.ensure_regions(subject)
    at = table.set_index(["region", "model"])
    for model in inferred.QUESTIONS:
        assert at.loc[("planted_auditory_right", model), "p"] <= 0.05
        assert at.loc[("silent", model), "p"] > 0.05
        assert abs(at.loc[("silent", model), "gain"]) < 0.002
    assert subject.run.whole not in set(table["region"])
    assert at.loc[("silent", "past_sound"), "n_region"] == subject.run.regions["silent"].sum()
    assert at.loc[("silent", "past_sound"), "n_voxels"] == region_inference.MOST_VOXELS
    monkeypatch.setattr(inferred, "infer_subject_regions", lambda *_: pytest.fail("made twice"))
    pd.testing.assert_frame_equal(inferred.ensure_regions(subject), table, rtol=1e-6)


def test_another_sound_in_its_place_is_not_followed(subject):
    """The planted regions follow this film, not its frames in any order, without its words and blocks."""
    rng = np.random.default_rng(0)
    frames = subject.designs["sound"].frames
    other = replace(subject.designs["sound"], frames=frames[rng.permutation(len(frames))])
    regions = {"right": subject.run.regions["planted_auditory_right"]}
    table = inferred.infer_subject_regions(subject, regions, design=other, questions=["past_sound"], n_randomised=39)
    assert table["p"].iloc[0] > 0.05


def test_the_gain_of_a_region_does_not_depend_on_which_others_are_asked_about(subject):
    regions = {name: subject.run.regions[name] for name in ("planted_auditory_right", "silent")}
    how = {"questions": ["past_sound"], "n_randomised": 3}
    alone = inferred.infer_subject_regions(subject, {"silent": regions["silent"]}, **how)
    beside = inferred.infer_subject_regions(subject, regions, **how)
    assert alone["gain"].item() == pytest.approx(beside.set_index("region").loc["silent", "gain"], rel=1e-6)


def test_a_large_region_is_thinned_evenly():
    roi = np.zeros(5000, bool)
    roi[1000:4000] = True
    kept = inferred.spread(roi)
    assert len(kept) == region_inference.MOST_VOXELS and roi[kept].all()
    assert kept[0] == 1000 and kept[-1] == 3999 and np.ptp(np.diff(kept)) <= 1
    assert np.array_equal(inferred.spread(roi[:1010]), np.arange(1000, 1010))


def test_outer_folds_leave_a_gap_on_both_sides(subject):
    held = np.concatenate([held for _, held in subject.outer_folds()])
    assert np.array_equal(held, subject.whole_run)
    for fit, block in subject.outer_folds():
        away = np.abs(fit[:, None] - block[None, [0, -1]]).min()
        assert away > subject.gap_volumes and not set(fit) & set(block)


def test_filter_of_a_fold_knows_nothing_of_the_held_out_block(subject):
    fit, held = subject.outer_folds()[2]
    grid = inferred.voxel_inference.delay_grid(subject.params.delays, subject.run.files.t_r)
    members = {"a": np.arange(0, subject.run.n_voxels, 40)}
    one = inferred._fold(subject, members, subject.designs["sound"], grid, fit, held, True)
    spoilt = np.array(subject.run.volumes)
    spoilt[held] = 1e4
    other = replace(subject, run=replace(subject.run, volumes=spoilt))
    two = inferred._fold(other, members, subject.designs["sound"], grid, fit, held, True)
    inside = [k for k in one.fit if k - subject.params.history_order not in set(one.held)]
    np.testing.assert_array_equal(one.y["a"][inside], two.y["a"][inside])
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_array_equal(one.free, two.free)
    assert not np.array_equal(one.y["a"][one.held], two.y["a"][one.held])


def test_the_measured_error_rates_come_with_the_package():
    table = inferred.calibration()
    assert list(table.columns) == ["kind", "figure", "value", "n", "asked", "held"]
    assert {*RATES, "planted", "blocks", "sound"} <= set(table["kind"])
    assert table["value"].notna().all()
