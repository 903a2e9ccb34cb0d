"""Every sentence says what its table says: the same numbers, and a verdict that turns when the table turns."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bold_audio import sentences, splits
from bold_audio.features import SoundFeatures
from bold_audio.params import load_params
from bold_audio.scores import median_of
from bold_audio.sweep import DelaySweep

REGION = "auditory"
MFCCS = SimpleNamespace(names=tuple(f"mfcc_{k}" for k in range(13)), source="film.wav, 44100 Hz", alarms=())
WORDS = SimpleNamespace(names=("word onset", "word duration"), source="words.tsv", alarms=())
REFERENCES = {"history_sound": "history", "history_blocks_sound": "history_blocks"}
ROWS = {  # mse, r_median, r_best, skill
    "constant": (5.0e-5, np.nan, np.nan, 0.0),
    "copy_previous": (2.5e-5, 0.71, 0.91, 0.503),
    "linear_delay": (2.4e-5, 0.72, 0.92, 0.521),
    "sound": (4.6e-5, 0.083, 0.412, 0.081),
    "history": (2.0e-5, 0.77, 0.93, 0.604),
    "history_sound": (1.9e-5, 0.78, 0.94, 0.0432),
    "history_blocks": (1.95e-5, 0.775, 0.93, 0.61),
    "history_blocks_sound": (1.9e-5, 0.781, 0.94, 0.0215),
    "mlp": (2.6e-5, 0.70, 0.90, 0.48),
}


def table(*, without=(), partial=0.123, **changes):
    """A score table; ``changes`` replaces cells of a model's row, such as ``mlp={"mse": 1e-5}``."""
    lines = []
    for name, values in ROWS.items():
        if name in without:
            continue
        line = dict(zip(("mse", "r_median", "r_best", "skill"), values, strict=True)) | {"n_with_r": 420}
        line |= changes.get(name, {})
        line = {"model": name, "region": REGION, "reference": REFERENCES.get(name, "constant")} | line
        line |= {"n_volumes": 166, "n_voxels": 420, "partial_r_median": partial if name in REFERENCES else np.nan}
        # Rows that no sentence about this region may read.
        lines += [line | {"prediction": "one_step"}, line | {"prediction": "open_loop", "mse": 9e-9, "skill": -7.0}]
        lines += [line | {"prediction": "one_step", "region": "brain", "mse": 8e-9, "r_median": 0.99, "skill": -8.0}]
    return pd.DataFrame(lines)


def sweep(skill, *, spread=0.01, delays=(4.0, 5.0, 6.0, 7.0, 8.0), delay=None, evidence=None, voxels=None, **region):
    curve = pd.DataFrame({"delay": delays, "region": "responsive", "skill": skill, "fold_spread": spread})
    whole = curve.assign(region="brain", skill=0.9)
    chosen = delays[int(np.argmax(skill))] if delay is None else delay
    row = {
        "delay": evidence or chosen,
        "low": 5.4,
        "high": 6.8,
        "p": 0.01,
        "n_surrogates": 1300,
        "alike": 14,
        "identifiable": True,
    } | region
    regions = pd.DataFrame([row | {"region": "responsive"}, row | {"region": "brain", "low": 0.1, "p": 0.777}])
    table = pd.concat([whole, curve], ignore_index=True)
    return DelaySweep(table, regions, voxels, chosen, "responsive", np.ones(3, bool), {}, np.ones(1))


PEAK = (0.02, 0.084, 0.111, 0.05, 0.01)


# --- what the data are --------------------------------------------------------------------


def test_features_from_annotations_are_never_taken_for_the_sound():
    params = load_params(18, "alice", feature_source="annotations")
    text = sentences.about_data(params, WORDS)
    assert "features from ANNOTATIONS, not from the sound: word onset, word duration" in text
    assert "MFCC" not in text and "RE-SYNTHESISED" not in text
    assert text.startswith("sub-18 of alice;") and "six regions" in text


def test_resynthesised_sound_is_named():
    text = sentences.about_data(load_params(18, "alice"), MFCCS)
    assert "13 MFCCs of RE-SYNTHESISED speech" in text and "not the recording" in text
    assert "ANNOTATIONS" not in text


@pytest.mark.parametrize("source", ["audio", "annotations"])
def test_simulated_subject_is_named_whatever_its_features(source):
    text = sentences.about_data(load_params("sim", feature_source=source), WORDS)
    assert "SIMULATED subject" in text
    assert ("SIMULATED film sound" in text) == (source == "audio")


def test_sound_that_nobody_heard_is_named():
    assert "nobody heard" in sentences.about_data(load_params("02", "oneback"), MFCCS)


def test_sound_without_a_note_is_named_by_its_file():
    text = sentences.about_data(load_params("09"), MFCCS)
    assert text == "sub-09 of ds003688; real scan; 13 MFCCs of film.wav, 44100 Hz."


def test_split_in_volumes_and_seconds():
    split = splits.split_volumes(641, 0.608, skip_initial=10, train_fraction=0.7, gap=16)
    assert sentences.about_split(split, 0.608) == (
        "train 431 volumes (10.3–272.4 s), gap 27 volumes (272.4–288.8 s), test 166 volumes (288.8–389.7 s)."
    )
    no_gap = splits.split_volumes(100, 2.0, skip_initial=10, train_fraction=0.7, gap=0)
    assert "gap" not in sentences.about_split(no_gap, 2.0)
    two_runs = splits.Split(np.r_[0:5, 10:15], np.zeros(0, int), np.r_[5:10, 15:20])
    assert sentences.about_split(two_runs, 2.0) == (
        "train 10 volumes (0.0–10.0 s, 20.0–30.0 s), test 10 volumes (10.0–20.0 s, 30.0–40.0 s)."
    )


# --- the delay ----------------------------------------------------------------------------


def test_delay_sentence_holds_the_numbers_of_the_region_that_chose():
    text = sentences.about_delay(sweep(PEAK))
    assert "the volumes of `responsive` follow the sound best at **Δt = 6 s** (95 % interval 5.4 to 6.8 s)" in text
    assert "p = 0.01 among 1300 surrogates of the sound (every 14 neighbouring shifts count as one). " in text
    assert "skill on held-out volumes is 0.1110 ± 0.0100" in text
    for other in ("edge", "planted", "30 s", "Not identifiable", "0.777"):
        assert other not in text


def test_delay_no_better_than_its_shifts_is_not_called_one():
    text = sentences.about_delay(sweep(PEAK, p=0.4, identifiable=False))
    assert text.startswith("**Not identifiable:**") and "p = 0.4 among 1300" in text and "what chance gives" in text
    assert "follow the sound best" not in text
    none = sentences.about_delay(sweep(PEAK, p=0.1, alike=1, identifiable=False))
    assert "p = 0.1 among 1300 surrogates of the sound)" in none and "count as one" not in none


def test_skill_that_prefers_another_delay_is_shown_beside():
    assert "by skill alone the best delay is 6 s" in sentences.about_delay(sweep(PEAK, delay=5.0))
    assert "Δt = 5 s" in sentences.about_delay(sweep(PEAK, delay=5.0))


def test_a_delay_chosen_by_skill_is_not_given_the_interval_of_the_evidence():
    text = sentences.about_delay(sweep(PEAK, delay=8.0, evidence=6.0))
    assert "**Δt = 8 s** (chosen by skill; by evidence 6 s, 95 % interval 5.4 to 6.8 s); p = 0.01" in text
    text = sentences.about_delay(sweep([0.1, 0.2], delays=(5.0, 6.0), evidence=5.0, low=np.nan, high=np.nan))
    assert "(chosen by skill; by evidence 5 s); " in text and "needs at least three delays" in text
    assert "chosen by skill" not in sentences.about_delay(sweep(PEAK, delay=6.0, evidence=6.0 + 1e-9))


def test_missing_interval_is_explained():
    text = sentences.about_delay(sweep([0.1, 0.2], delays=(5.0, 6.0), low=np.nan, high=np.nan))
    assert "needs at least three delays" in text and "95 % interval" not in text


def test_voxels_own_delays_are_counted_beside_chance():
    delay = np.r_[np.full(4, 5.0), np.full(2, 7.0), np.full(94, 6.0)]
    width, p = np.r_[np.full(6, 1.0), np.full(94, 4.0)], np.r_[np.full(8, 0.01), np.full(92, 0.5)]
    voxels = pd.DataFrame({"delay": delay, "low": delay - width / 2, "high": delay + width / 2, "p": p})
    text = sentences.about_voxel_delays(sweep(PEAK, voxels=voxels))
    assert "8 of 100 voxels (8.0%) follow the sound at p ≤ 0.05" in text and "chance alone gives 5%" in text
    assert "6 of them have a known delay" in text and "between 5.0 and 6.5 s (median 5.0 s)" in text
    nobody = sentences.about_voxel_delays(sweep(PEAK, voxels=voxels.assign(p=0.5)))
    assert "0 of 100" in nobody and "known delay" not in nobody


def test_voxels_in_which_the_sound_vanished_are_not_hidden():
    some = table(sound={"n_with_r": 300})
    for text in (sentences.headline(some, REGION, 5.0), sentences.about_expectations(some, REGION)):
        assert "in the median of 300 of 420 voxels (it vanished in the others)" in text
    assert "of 420" not in sentences.headline(table(), REGION, 5.0)


def test_annotations_are_never_called_the_sound_in_words_of_delays_settings_and_expectations():
    how = {"feature_source": "annotations"}
    voxels = pd.DataFrame({"delay": 5.0, "low": 4.5, "high": 5.5, "p": [0.01, 0.5]})
    settings = pd.DataFrame({"n_features": [2, 2, 0], "n_lags": 0, "blocks": [False, True, True],
                             "delay": 5.0, "skill": [0.3, 0.35, 0.2]})  # fmt: skip
    nothing = table(sound={"r_median": np.nan})
    said = [
        sentences.about_delay(sweep(PEAK), **how),
        sentences.about_delay(sweep(PEAK, p=0.4, identifiable=False), **how),
        sentences.about_voxel_delays(sweep(PEAK, voxels=voxels), **how),
        sentences.about_settings(settings, **how),
        sentences.about_expectations(table(), REGION, **how),
        sentences.about_expectations(nothing, REGION, **how),
    ]
    for text in said:
        assert "no sound was heard" in text and "ANNOTAT" in text
        left = re.sub(r"`\w+`", "", text)  # names of models, such as history_sound
        left = left.replace("ANNOTATED of the sound", "").replace("no sound was heard", "")
        assert "sound" not in left.lower(), left
    assert "surrogates of the annotations" in said[0] and "annotations and blocks 0.3500" in said[3]


def test_best_of_many_settings_is_called_flattering_and_blocks_stand_beside():
    table = pd.DataFrame({"n_features": [1, 2, 2, 0], "n_lags": [0, 1, 0, 0], "blocks": [False, False, True, True],
                          "delay": 5.0, "skill": [0.1, 0.3, 0.35, 0.2]})  # fmt: skip
    text = sentences.about_settings(table)
    assert "4 settings" in text and "2 features, 1 further windows, Δt = 5 s, skill 0.3000" in text
    assert "flatters" in text and "blocks alone reach 0.2000, sound and blocks 0.3500" in text
    assert "blocks" not in sentences.about_settings(table[~table["blocks"]])


@pytest.mark.parametrize("skill, edge", [((5, 4, 3, 2, 1), True), ((1, 2, 3, 4, 5), True), ((1, 2, 5, 2, 1), False)])
def test_delay_at_the_edge_of_the_grid_is_not_trusted(skill, edge):
    text = sentences.about_delay(sweep(np.array(skill) / 10))
    assert ("edge of the delays tried: try a wider grid" in text) == edge


def test_single_delay_has_no_edge():
    assert "edge" not in sentences.about_delay(sweep([0.1], delays=(5.0,)))


def test_blocks_that_alternate_are_named_only_where_there_are_some():
    assert "a delay and the same delay ± 60 s look alike" in sentences.about_delay(sweep(PEAK), block_length=30.0)
    assert "60 s" not in sentences.about_delay(sweep(PEAK))


@pytest.mark.parametrize("truth, off", [(6.25, "-0.25"), (5.5, "+0.50"), (6.0, "+0.00")])
def test_simulated_truth_is_called_simulated_with_its_signed_difference(truth, off):
    text = sentences.about_delay(sweep(PEAK), truth=truth)
    assert f"planted (simulated) response best is {truth:.2f} s: off by {off} s." in text


# --- baselines, network, expectations, headline -------------------------------------------


def test_baseline_sentence_holds_the_numbers_of_the_region():
    text = sentences.about_baselines(table(), REGION)
    assert "lowers the train mean's squared error in `auditory` by 50.3% (r = 0.71 in the median voxel)" in text
    assert "own history lowers it by 60.4% (r = 0.77)" in text
    text = sentences.about_baselines(table(copy_previous={"skill": -0.6, "r_median": np.nan}), REGION)
    assert "raises the train mean's squared error in `auditory` by 60.0% (no r in the median voxel)" in text


@pytest.mark.parametrize(
    "mse, verdict",
    [(2.3e-5, "has a smaller error than"), (2.5e-5, "does **not** beat"), (2.4e-5, "does **not** beat")],
)
def test_network_verdict_turns_with_the_table(mse, verdict):
    text = sentences.about_mlp(table(mlp={"mse": mse, "skill": 1 - mse / 5e-5}), REGION)
    assert f"the MLP {verdict} ridge (`linear_delay`): MSE {mse:.3g} against 2.4e-05, same volumes, one-step." in text


def test_network_is_held_against_the_better_ridge():
    text = sentences.about_mlp(table(sound={"mse": 2.0e-5, "skill": 0.6}, mlp={"mse": 2.2e-5, "skill": 0.56}), REGION)
    assert "does **not** beat ridge (`sound`): MSE 2.2e-05 against 2e-05" in text


def test_network_worse_than_ridge_on_its_own_target_is_not_said_to_beat_ridge():
    # A poor network on the difference: nearer to `sound` than to `linear_delay`, which is twice as good.
    text = sentences.about_mlp(table(mlp={"mse": 4.0e-5, "skill": 0.2}), REGION)
    assert "does **not** beat" in text


@pytest.mark.parametrize("mse, verdict", [(1.8e-5, "has a smaller error than"), (2.0e-5, "does **not** beat")])
def test_network_with_a_past_is_held_against_ridge_with_that_past(mse, verdict):
    text = sentences.about_mlp(table(mlp={"mse": mse, "skill": 0.031, "reference": "history"}), REGION)
    assert f"the MLP {verdict} ridge (`history_sound`): MSE {mse:.4g} against 1.9e-05, same volumes, one-step; " in text
    assert "over own history the network gains +0.0310, ridge " in text


def test_expectations_beside_what_came_out():
    text = sentences.about_expectations(table(), REGION)
    assert "smallest one-step MSE here is 1.9e-05 (`history_sound`, order 1e-5), as expected" in text
    assert "r = 0.083 in the median voxel of `auditory` and 0.412 in the best one" in text
    assert "0.05–0.1 on average and 0.1–0.2 in the best voxels of auditory cortex." in text


@pytest.mark.parametrize("mse, expected", [(2e-6, True), (9e-5, True), (2e-4, False), (9e-7, False)])
def test_expected_order_is_ten_times_either_way(mse, expected):
    rows = {name: {"mse": 1.0} for name in ROWS} | {"mlp": {"mse": mse}}
    text = sentences.about_expectations(table(**rows), REGION)
    assert ("as expected" in text, "not of the order 1e-05" in text) == (expected, not expected)
    assert f"{mse:.2g} (`mlp`, order 1e{int(np.floor(np.log10(mse)))})" in text


def test_expectations_of_auditory_cortex_are_not_those_of_another_region():
    other = table().assign(region="LPTL")
    assert "which is not the same region" in sentences.about_expectations(other, "LPTL")


def test_headline_holds_the_gain_over_blocks_and_the_sound_alone():
    text = sentences.headline(table(), REGION, 6.0)
    assert "In `auditory` the sound alone reaches r = 0.08 in the median voxel at Δt = 6 s" in text
    assert "`history_blocks`, it lowers the one-step squared error by 2.15%" in text


def test_headline_of_annotations_never_calls_them_the_sound():
    text = sentences.headline(table(), REGION, 6.0, feature_source="annotations")
    assert "what was ANNOTATED of the sound (no sound was heard) alone reaches" in text
    assert "the sound alone" not in text


def test_alarms_of_the_sound_come_before_any_number():  # A13
    alarmed = SimpleNamespace(**{**vars(MFCCS), "alarms": ("sound is 5 s late",)})
    assert "; WARNING: sound is 5 s late." in sentences.about_data(load_params("09"), alarmed)


def test_headline_turns_with_the_table_and_does_without_blocks():
    worse = table(history_blocks_sound={"skill": -0.03})
    assert "raises the one-step squared error by 3.00%" in sentences.headline(worse, REGION, 6.0)
    no_blocks = table(without=["history_blocks", "history_blocks_sound"])
    assert "`history`, it lowers the one-step squared error by 4.32%" in sentences.headline(no_blocks, REGION, 6.0)


def test_no_sentence_prints_nan_when_the_sound_vanished():
    gone = {"sound": {"r_median": np.nan, "r_best": np.nan, "skill": 0.0}}
    gone |= {name: {"skill": 0.0} for name in REFERENCES}
    made = table(partial=median_of(np.array([np.nan])), **gone)
    said = [f(made, REGION) for f in (sentences.about_mlp, sentences.about_expectations)]
    said.append(sentences.headline(made, REGION, 6.0))
    assert not [text for text in said if re.search(r"\bnan\b", text)]
    assert "vanished in every voxel" in said[1] and "vanished" in said[2]


def test_row_of_what_is_not_there_is_none():
    assert sentences.row_of(table(without=["mlp"]), "mlp", REGION) is None
    assert sentences.row_of(table(), "mlp", "nowhere") is None
    assert sentences.row_of(table(), "mlp", REGION, "open_loop")["skill"] == -7.0


@pytest.mark.slow
def test_simulated_data_are_called_that_whatever_the_dataset_is_named(sim_dir):
    params = load_params("sim", "ds003688", data_dir=str(sim_dir))
    sound = SoundFeatures(np.zeros((2, 1)), np.arange(2.0), ("mfcc0",), 2.0, "sound file film.wav")
    assert "SIMULATED" in sentences.about_data(params, sound)


def test_volumes_in_no_part_are_explained():
    params = SimpleNamespace(skip_initial=10.0, delays=[2.0, 10.0], mlp_delays=[4.0, 12.0], history_order=4)
    assert sentences.about_left_out(240, 240, params) == ""
    told = sentences.about_left_out(240, 170, params)
    assert told.startswith("70 of 240 volumes are in no part") and "first 10 s" in told and "2 to 12 s" in told
    assert told.endswith(", or fewer than 4 volumes with all of it lie before them.")
    params.history_order = 0
    assert sentences.about_left_out(240, 170, params).endswith("on the same volumes).")


def test_a_delay_that_is_not_identifiable_is_called_so_in_the_headline():
    assert "not identifiable" in sentences.headline(table(), REGION, 10.0, identifiable=False)
    assert "not identifiable" not in sentences.headline(table(), REGION, 10.0)
