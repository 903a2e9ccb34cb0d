"""Feature sets compared: a planted feature decides, all sets have the same volumes, what is missing says why."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from planted import ALPHAS, DELAYS, T_R, heard, make_sound, make_subject, noise, raw
from sklearn.linear_model import Ridge

from bold_audio import ablations, delays, feature_sets, features, nested, pairing
from bold_audio.feature_sets import FeatureSet
from bold_audio.files import DataError


@pytest.fixture(scope="module")
def loud():
    """40 voxels that follow the first feature after 5 s, and only it."""
    rng = np.random.default_rng(0)
    sound = make_sound(rng)
    subject = make_subject(raw(noise(rng, 40) + 0.8 * heard(sound)[:, :1], rng), sound)
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    return subject, nested.region_folds(subject, chosen, "brain", subject.Y)


def parts(subject):
    design = subject.designs["sound"]
    return [
        FeatureSet("first", feature_sets.take_features(design, [0]), DELAYS),
        FeatureSet("others", feature_sets.take_features(design, [1, 2]), DELAYS),
        FeatureSet("all", design, DELAYS),
    ]


def test_the_planted_feature_alone_does_it_and_the_others_do_not(loud):
    subject, folds = loud
    table = ablations.compare_sets(folds, parts(subject), alphas=ALPHAS, max_order=2).set_index("features")
    assert table.loc["first", "skill"] > 0.2 and table.loc["first", "delay"] == 5.0
    assert table.loc["first", "gain"] > 0.15 and table.loc["first", "n_follow"] == 40
    assert abs(table.loc["others", "skill"]) < 0.02 and abs(table.loc["others", "gain"]) < 0.01
    assert table.loc["all", "skill"] == pytest.approx(table.loc["first", "skill"], abs=0.01)
    assert table["ratio"].max() == 1 and table.loc["first", "ratio"] > 0.95
    assert list(table["n_features"]) == [1, 2, 3]


def test_skill_equals_scikit_learn(loud):
    subject, folds = loud
    one = FeatureSet("all at 5 s", subject.designs["sound"], (5.0,))
    row = ablations.compare_sets(folds, [one], alphas=(20.0,), max_order=2).iloc[0]
    errors, null = 0.0, 0.0
    keep = np.arange(2, 420)  # whitening needs the features of two volumes before
    for fold in folds:
        fit, held = (np.intersect1d(part, keep) for part in (fold.fit, fold.held))
        x, y = one.design.at(5.0), fold.Y.astype(float)
        x = (x - x[fit].mean(axis=0)) / x[fit].std(axis=0)
        errors += np.sum((y[held] - Ridge(alpha=20.0).fit(x[fit], y[fit]).predict(x[held])) ** 2)
        null += np.sum((y[held] - y[fit].mean(axis=0)) ** 2)
    assert row["skill"] == pytest.approx(1 - errors / null, abs=1e-5)


@pytest.mark.slow
def test_all_sets_have_the_volumes_that_all_cover(loud):
    """A sound that begins 30 s into the run: what it does not cover is left out for everybody."""
    subject, folds = loud
    late = replace(subject.designs["sound"])
    late = replace(late, frames=late.frames[500:], frame_times=late.frame_times[500:])
    sets = [*parts(subject), FeatureSet("late", late, DELAYS)]
    table = ablations.compare_sets(folds, sets, alphas=ALPHAS, max_order=2).set_index("features")
    first = int(np.flatnonzero(pairing.covered_volumes([late], DELAYS))[0]) + 2
    assert (table["n_volumes"] == 420 - first).all() and first > 30
    assert table.loc["late", "skill"] == pytest.approx(table.loc["all", "skill"], abs=1e-9)


def test_a_set_that_covers_too_little_or_is_missing_says_so(loud):
    subject, folds = loud
    design = subject.designs["sound"]
    half = replace(design, frames=design.frames[:2500], frame_times=design.frame_times[:2500])
    sets = [*parts(subject), FeatureSet("half", half, DELAYS), FeatureSet("none", None, DELAYS, "no such file")]
    table = ablations.compare_sets(folds, sets, alphas=ALPHAS, max_order=2).set_index("features")
    assert table.loc["half", "note"].startswith("not done: covers 5") and np.isnan(table.loc["half", "skill"])
    assert table.loc["none", "note"] == "not done: no such file"
    assert (table["n_volumes"].dropna() == 410).all(), "it takes no volume from the others"


@pytest.mark.slow
def test_a_set_that_leaves_nothing_of_a_held_out_block_is_not_done():
    """Many short blocks and a set that begins late, as `hrf` does: notebook 06 ended with a zero-size array."""
    rng = np.random.default_rng(0)
    sound = make_sound(rng)
    subject = make_subject(raw(noise(rng, 20) + 0.8 * heard(sound)[:, :1], rng), sound, n_folds=20, gap=4.0)
    folds = nested.region_folds(
        subject, nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS)), "brain", subject.Y
    )
    design = subject.designs["sound"]
    late = replace(design, frames=design.frames[460:], frame_times=design.frame_times[460:])
    sets = [FeatureSet("all", design, DELAYS), FeatureSet("late", late, DELAYS)]
    table = ablations.compare_sets(folds, sets, alphas=ALPHAS, max_order=2)
    assert list(table["note"]) == ["", "not done: leaves nothing of a held-out block"]
    assert table["n_volumes"].iloc[0] == 410 and table["n_folds"].iloc[0] == 20 and table["skill"].iloc[0] > 0.2


def test_noise_has_no_ratio():
    rng = np.random.default_rng(4)
    subject = make_subject(raw(noise(rng, 40, rho=0.8), rng), make_sound(rng))
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    folds = nested.region_folds(subject, chosen, "brain", subject.Y)
    table = ablations.compare_sets(folds, parts(subject), alphas=ALPHAS, max_order=2)
    assert table["ratio"].isna().all() and (table["skill"] < 0.01).all() and (table["gain"].abs() < 0.003).all()


def test_voxels_of_a_fold_of_its_own_have_the_r_of_each_block():
    """Responsive voxels differ between folds: r is never over the volumes of two voxels joined."""
    rng = np.random.default_rng(5)
    sound = make_sound(rng)
    subject = make_subject(raw(noise(rng, 100) + 0.8 * heard(sound)[:, :1], rng), sound)
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    folds = nested.region_folds(subject, chosen, "responsive", subject.Y)
    assert len({tuple(fold.at) for fold in folds}) > 1, "or this test says nothing"
    row = ablations.compare_sets(
        folds, [FeatureSet("all", subject.designs["sound"], (5.0,))], alphas=(20.0,), max_order=2
    )
    r = []
    for fold in folds:
        x = nested.scaled(subject.designs["sound"], 5.0, fold.fit)
        y = fold.Y.astype(float)
        p = Ridge(alpha=20.0).fit(x[fold.fit], y[fold.fit]).predict(x[fold.held])
        r += [np.corrcoef(p[:, v], y[fold.held, v])[0, 1] for v in range(y.shape[1])]
    assert row["r_median"].iloc[0] == pytest.approx(np.median(r), abs=1e-6)


@pytest.mark.slow
def test_fir_finds_a_response_that_is_spread_out_and_hrf_has_its_peak_at_the_delay():
    """Voxels follow the sound's mean over 12 s: one window sees a part of it, twelve see all."""
    rng = np.random.default_rng(6)
    sound = make_sound(rng, n_features=1, memory=0.0)
    spread = sum(heard(sound, delay) for delay in np.arange(0.0, 12.0))
    subject = make_subject(raw(noise(rng, 40, rho=0.0) + spread / spread.std(), rng), sound)
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    folds = nested.region_folds(subject, chosen, "brain", subject.Y)
    sets = feature_sets.response_sets(subject)
    assert [one.name for one in sets] == ["delay (one window)", "fir (0 to 12 s)", "hrf (canonical)"]
    assert sets[1].design.at(0.0).shape[1] == 12
    table = ablations.compare_sets(folds, sets, alphas=ALPHAS, max_order=2).set_index("features")
    assert table.loc["fir (0 to 12 s)", "skill"] == pytest.approx(0.5, abs=0.08)
    assert table.loc["delay (one window)", "ratio"] == pytest.approx(1 / 12, abs=0.06)
    other = pairing.make_design(sound, subject.designs["zero"].sound_times, T_R, response="hrf")
    np.testing.assert_array_equal(sets[2].design.at(5.0), other.at(5.0))


@pytest.mark.slow
def test_envelope_equals_the_root_mean_square_by_hand(tmp_path):
    rate, rng = 8000, np.random.default_rng(7)
    y = rng.uniform(-0.5, 0.5, rate * 2)
    soundfile.write(tmp_path / "a.wav", y, rate, subtype="FLOAT")
    found = features.rms_features(tmp_path / "a.wav", sample_rate=rate, n_fft=256, hop_length=100)
    k = 40
    here = y[k * 100 - 128 : k * 100 + 128]
    assert found.frames[k, 0] == pytest.approx(np.sqrt(np.mean(here**2)), rel=1e-5)
    assert found.frame_times[k] == pytest.approx(k * 100 / rate) and found.names == ("rms",)
    with pytest.raises(DataError, match="sound file not found"):
        features.rms_features(tmp_path / "b.wav", sample_rate=rate, n_fft=256, hop_length=100)


@pytest.mark.parametrize("n_runs", [1, 3])
def test_annotations_of_another_number_of_runs_are_a_reason(loud, n_runs):
    """Such as one run of several that are annotated: ``-p run 1``."""
    subject, _ = loud
    given = {"annotation_tables": [["words1.tsv"], ["words2.tsv"]], "audio_files": ["1.wav", "2.wav"]}
    given["data_path"] = Path("nowhere")
    params = type(subject.params)(**vars(subject.params) | given)
    files = type(params)(**vars(subject.run.files) | {"parts": subject.run.files.parts * n_runs})
    run = type(params)(**vars(subject.run) | {"files": files})
    found = {one.name: one for one in feature_sets.ablation_sets(replace(subject, params=params, run=run))}
    assert found["envelope (RMS)"].reason == f"audio_path has 2 for {n_runs} runs"
    assert found["annotations (not the sound)"].reason == f"annotation_tables has 2 for {n_runs} runs"


def test_annotations_are_never_called_the_sound(loud):
    subject, _ = loud
    annotated = replace(
        subject, params=type(subject.params)(**vars(subject.params) | {"feature_source": "annotations"})
    )
    found = {one.name: one for one in feature_sets.ablation_sets(annotated)}
    assert list(found) == ["c0 (loudness) only", "MFCCs without c0", "all MFCCs", "envelope (RMS)", "blocks only",
                           "annotations (not the sound)"]  # fmt: skip
    assert all("annotations" in found[name].reason for name in list(found)[:4])
    assert found["blocks only"].reason == "the film has no blocks of music and speech"
    assert "names no annotation_tables" in found["annotations (not the sound)"].reason
    assert all(one.design is None for one in found.values())
