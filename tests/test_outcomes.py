"""The studies of a subject from files to tables: made once, re-read after that, drawn and said in words."""

import re
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bold_audio import nested, outcome_figures, outcome_sentences, outcomes, style, workflow
from bold_audio.files import ParameterError

REGION = "planted_auditory_right"
STUDIES = ("partition", "ablations", "responses", "horizon", "learning_curve", "effective_samples")
FAST = {"delays": [5.0, 6.0, 7.0], "alphas": [100.0, 1000.0, 10000.0, np.inf], "history_order": 2, "n_mfcc": 6}


@pytest.fixture(scope="module")
def subject(sim_dir, tmp_path_factory):
    from bold_audio.params import load_params

    folders = {"data_dir": str(sim_dir), "outputs_dir": str(tmp_path_factory.mktemp("outcomes"))}
    return workflow.open_subject(load_params("sim", **folders, **FAST))


@pytest.fixture(scope="module")
def found(subject):
    return outcomes.ensure_out_of_fold(subject)


@pytest.fixture(scope="module")
def tables(subject):
    return {name: getattr(outcomes, f"ensure_{name}")(subject, REGION) for name in STUDIES}


@pytest.mark.slow
def test_the_simulated_sound_is_found_where_it_was_planted(subject, found):
    table = found.table.set_index(["model", "region"])
    assert table.loc[("sound", REGION), "skill"] > 0.03
    gain = table.loc[("history_sound", REGION)]
    assert gain["skill"] > 2 * gain["fold_spread"] > 0
    assert abs(table.loc[("history_sound", "silent"), "skill"]) < 0.001
    assert len(found.chosen) == 5 and all(5.0 <= one.delay <= 7.0 for one in found.chosen)
    assert {"responsive", "brain"} <= set(found.table["region"])
    np.testing.assert_array_equal(np.concatenate([one.held for one in found.chosen]), subject.whole_run)


@pytest.mark.slow
def test_maps_say_what_they_are(subject, found):
    names = {path.name.split("_desc-")[1] for path in subject.params.subject_path.glob("*oof*statmap.nii.gz")}
    models = ("oofHistorySound", "oofHistoryBlocksSound")
    assert names == {"oofSound_stat-r_statmap.nii.gz"} | {
        f"{model}_stat-{stat}_statmap.nii.gz" for model in models for stat in ("gain", "partialr")
    }
    path = next(subject.params.subject_path.glob("*oofHistorySound_stat-gain*.nii.gz"))
    values = np.asarray(nib.load(path).dataobj)[subject.run.mask]
    np.testing.assert_allclose(values, found.voxels["history_sound", "one_step"]["gain"], rtol=1e-5)
    assert "out of fold over the whole run" in path.with_name(path.name.replace(".nii.gz", ".json")).read_text()


@pytest.mark.slow
def test_tables_are_made_once_and_re_read(subject, found, tables, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("made again")

    for module, name in ((nested, "choose_folds"), (outcomes.out_of_fold, "tally_folds"), (nested, "region_folds")):
        monkeypatch.setattr(module, name, fail)
    again = outcomes.ensure_out_of_fold(subject)
    pd.testing.assert_frame_equal(again.table, found.table)
    for key, one in found.voxels.items():
        for stat, values in one.items():
            np.testing.assert_array_equal(again.voxels[key][stat], values)
    for first, second in zip(found.chosen, again.chosen, strict=True):
        assert (first.delay, first.evidence) == (second.delay, second.evidence)
        np.testing.assert_array_equal(first.follows, second.follows)
    for name in STUDIES:
        pd.testing.assert_frame_equal(getattr(outcomes, f"ensure_{name}")(subject, REGION), tables[name])
    with pytest.raises(AssertionError, match="made again"):
        outcomes.ensure_partition(subject, "brain")
    other = workflow.open_subject(subject.params.model_copy(update={"gap": 18.0}))
    with pytest.raises(AssertionError, match="made again"):
        outcomes.ensure_outer_folds(other)


@pytest.mark.slow
def test_every_study_has_its_rows(subject, tables):
    assert len(tables["partition"]) == 14
    notes = tables["ablations"].set_index("features")["note"]
    assert notes["annotations (not the sound)"].startswith("not done: ") and notes["envelope (RMS)"] == ""
    assert tables["ablations"]["skill"].notna().sum() == 5
    skill = tables["responses"].set_index("features")["skill"]
    assert skill["hrf (canonical)"] > skill["delay (one window)"], "the simulated response is the canonical one"
    assert tables["horizon"]["horizon"].max() == 60 and set(tables["horizon"]["model"]) == set(outcomes.horizon.NAMES)
    assert list(tables["learning_curve"]["share"]) == [0.25, 0.5, 0.75, 1.0]
    assert list(tables["effective_samples"]["feature"]) == [*subject.sound.names, "blocks"]
    assert all((table["region"] == REGION).all() for table in tables.values())
    with pytest.raises(ParameterError, match="region must be one of"):
        outcomes.ensure_horizon(subject, "ear")


@pytest.mark.slow
def test_figures_hold_what_the_tables_hold(tables):
    note, t_r = "SIMULATED subject", 0.608
    horizon = outcome_figures.plot_horizon_skill(tables["horizon"], t_r=t_r, region=REGION, note=note)
    shown = {trace.name: trace for trace in horizon.data}
    rows = tables["horizon"][tables["horizon"]["model"] == "history"]
    np.testing.assert_allclose(shown["history"].y, rows["skill"])
    np.testing.assert_allclose(shown["history"].x, rows["horizon"] * t_r)
    assert "constant" not in shown and shown["history"].line.color == style.MODEL_COLOURS["history"]
    curve = outcome_figures.plot_learning_curve(tables["learning_curve"], region=REGION, note=note)
    np.testing.assert_allclose(curve.data[1].y, tables["learning_curve"]["gain"])
    parts = outcome_figures.plot_partition(tables["partition"], region=REGION, note=note)
    np.testing.assert_allclose(np.r_[parts.data[0].x, parts.data[1].x], tables["partition"]["skill"].iloc[7:])
    sets = outcome_figures.plot_feature_sets(tables["ablations"], title="Feature sets", note=note)
    assert [a.text for a in sets.layout.annotations] == ["not done"]
    for fig in (horizon, curve, parts, sets):
        assert fig.layout.title.subtitle.text == note and "(" in fig.layout.xaxis.title.text


def test_the_region_of_a_study():
    def of(regions, wanted, n_voxels=1000):
        run = SimpleNamespace(regions=dict.fromkeys(regions), n_voxels=n_voxels)
        return outcomes.study_region(SimpleNamespace(run=run, params=SimpleNamespace(delay_region=wanted)))

    assert of(["brain", "auditory"], "responsive") == "auditory"
    assert of(["brain", "left"], "left") == "left"
    assert of(["brain", "left"], "responsive") == "responsive"
    assert of(["volume", "LPTL"], "brain", 6) == "volume" and of(["volume", "LPTL"], "responsive", 6) == "volume"


def gains(skill, spread, partial=0.2, n_folds=5):
    rows = [{"model": m, "region": "auditory", "skill": s, "fold_spread": spread, "partial_r_median": partial}
            for m, s in (("history", 0.4), ("history_sound", skill), ("history_blocks_sound", skill / 2))]  # fmt: skip
    return pd.DataFrame(rows).assign(n_volumes=571, n_voxels=80, n_folds=n_folds)


def test_a_gain_is_only_said_where_it_is_clear_of_its_spread():
    assert "adds to what own history predicts: gain +0.0200 ± 0.0020" in outcome_sentences.about_out_of_fold(
        gains(0.02, 0.002), "auditory"
    )
    said = outcome_sentences.about_out_of_fold(gains(0.05, 0.03), "auditory")
    assert "the sound is not shown to add to what own history predicts" in said and "No significance is claimed" in said
    # 2.5 standard errors are p = .07 with 5 folds, .24 with 2, and .02 with 20.
    for n_folds, sure in ((2, False), (5, False), (20, True)):
        said = outcome_sentences.about_out_of_fold(gains(0.05, 0.02, n_folds=n_folds), "auditory")
        assert ("the sound adds to what own history predicts" in said) == sure
    assert "takes away from" in outcome_sentences.about_out_of_fold(gains(-0.02, 0.002), "auditory")
    assert "no voxel was given it" in outcome_sentences.about_out_of_fold(gains(0.0, 0.0, np.nan), "auditory")


def test_annotations_are_never_called_the_sound():
    for said in (
        outcome_sentences.about_out_of_fold(gains(0.02, 0.002), "auditory", feature_source="annotations"),
        outcome_sentences.about_responses(responses(0.05, 0.1), "auditory", feature_source="annotations"),
    ):
        assert "what was ANNOTATED of the sound (no sound was heard)" in said
        assert not re.search(r"(?<!ANNOTATED of )the sound", said)


def responses(single, fir, spread=0.01, ratio=True):
    best = max(single, fir)
    rows = [{"features": n, "skill": s, "ratio": s / best if ratio else np.nan}
            for n, s in (("delay (one window)", single), ("fir (0 to 12 s)", fir))]  # fmt: skip
    return pd.DataFrame(rows).assign(fold_spread=spread, n_voxels=200, n_region=638, n_folds=5, note="")


def test_what_a_single_delay_loses_is_said_as_it_is():
    said = outcome_sentences.about_responses(responses(0.05, 0.1), "auditory")
    assert said.endswith("A single delay reaches 50% of the best, fir (0 to 12 s).")
    assert "200 evenly spaced ones of 638 voxels" in said
    assert "A single delay loses nothing" in outcome_sentences.about_responses(responses(0.1, 0.05), "auditory")
    none = outcome_sentences.about_responses(responses(0.001, 0.002, ratio=False), "auditory")
    assert "cannot be said" in none and "%" not in none
    hrf = {"features": ["hrf (canonical)"], "note": ["not done: leaves nothing of a held-out block"]}
    some = pd.concat([responses(0.05, 0.1), pd.DataFrame(hrf)], ignore_index=True)
    assert outcome_sentences.about_responses(some, "auditory").endswith(
        "the best, fir (0 to 12 s). hrf (canonical): not done: leaves nothing of a held-out block."
    )


def test_sets_within_chance_are_not_told_apart():
    rows = [{"features": n, "skill": s, "gain": s / 2} for n, s in
            (("c0 (loudness) only", 0.04), ("MFCCs without c0", 0.07), ("all MFCCs", 0.1))]  # fmt: skip
    table = pd.DataFrame([*rows, {"features": "envelope (RMS)", "note": "not done: no file"}])
    table = table.assign(fold_spread=0.01, gain_spread=0.01, n_voxels=80, n_region=80, n_volumes=571, n_folds=5)
    table = table.fillna({"note": ""})
    said = outcome_sentences.about_ablations(table, "auditory")
    assert "the best of 3 feature sets is all MFCCs: skill +0.1000 ± 0.0100" in said
    assert "Loudness alone reaches 40% of the skill of all MFCCs, the others without it 70%" in said
    assert said.endswith("envelope (RMS): not done: no file.")
    unsure = outcome_sentences.about_ablations(table.assign(fold_spread=0.1), "x")
    assert "nothing here tells the sets apart" in unsure and unsure.endswith("envelope (RMS): not done: no file.")
    # A clear envelope, and MFCCs that may be nothing: no share of them.
    table.loc[3, ["skill", "gain"]], table.loc[2, ["skill", "fold_spread"]] = (0.2, 0.1), (0.0005, 0.02)
    said = outcome_sentences.about_ablations(table, "auditory")
    assert "the best of 4 feature sets is envelope (RMS)" in said and "Loudness alone" not in said


def test_a_horizon_is_the_first_volume_at_the_mean_or_below():
    steps = np.arange(1, 11)
    table = pd.concat([
        pd.DataFrame({"model": "copy_previous", "horizon": steps, "skill": 0.35 - 0.1 * steps}),
        pd.DataFrame({"model": "history", "horizon": steps, "skill": 0.8**steps}),
        pd.DataFrame({"model": "history_sound", "horizon": steps, "skill": -0.6}),
    ]).assign(n_starts=99)  # fmt: skip
    said = outcome_sentences.about_horizon(table, 2.0, "auditory")
    assert "`copy_previous` first falls to the mean after 8.0 s" in said
    assert "`history` is better than it through 20 s" in said and "99 starting points" in said
    assert "`history_sound` is no better than the mean at the first volume already" in said
    nothing = outcome_sentences.about_horizon(table.assign(skill=np.nan), 2.0, "auditory")
    assert nothing.startswith("`auditory` does not vary") and "better" not in nothing


@pytest.mark.parametrize(
    ("last", "verdict"),
    [(0.1, "is still rising"), (0.07, "does not clearly"), (0.03, "does not clearly"), (0.0, "is falling")],
)
def test_the_learning_curve_says_where_it_goes(last, verdict):
    table = pd.DataFrame({"share": [0.5, 0.75, 1.0], "n_fit": [200, 300, 400], "skill": [0.04, 0.05, last]})
    table = table.assign(fold_spread=0.005, rise_spread=0.01, n_folds=5, gain=0.01, gain_spread=0.001)
    assert verdict in outcome_sentences.about_learning_curve(table, "auditory")
    assert "Too few volumes" in outcome_sentences.about_learning_curve(table.iloc[:1], "auditory")


@pytest.mark.slow
def test_sentences_say_the_numbers_of_their_tables(found, tables):
    row = found.table.set_index(["model", "region"]).loc[("history_sound", REGION)]
    assert f"{row['skill']:+.4f} ± {row['fold_spread']:.4f}" in outcome_sentences.about_out_of_fold(found.table, REGION)
    said = {
        name: getattr(outcome_sentences, f"about_{name.replace('_samples', '')}")(
            *([tables[name], 0.608] if name == "horizon" else [tables[name]]), REGION
        )
        for name in STUDIES
    }
    unique = tables["partition"].set_index(["kind", "bands"])["skill"]
    assert f"{unique['unique', 'sound']:+.4f}" in said["partition"]
    assert f"{unique['shared', 'blocks+sound']:+.4f} with the blocks" in said["partition"]
    low = tables["effective_samples"].sort_values("n_eff").iloc[0]
    assert f"{low['n_eff']:.0f} ({low['feature']})" in said["effective_samples"]
    for text in said.values():
        assert f"`{REGION}`" in text and not re.search(r"\bnan\b", text)
