"""Every sentence about a table with awkward numbers: NaN, losses, two delays, nothing done, one person, no region."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import test_inference_sentences as inference
import test_sentences as one
from test_controls import REGIONS
from test_outcomes import gains, responses
from test_quality_report import measured

from bold_audio import (
    contrast,
    control_sentences,
    group_maps,
    group_sentences,
    group_stats,
    hemispheres,
    inference_sentences,
    outcome_sentences,
    quality_sentences,
    sentences,
)
from bold_audio.params import load_params

MODULES = (sentences, inference_sentences, outcome_sentences, control_sentences, group_sentences, quality_sentences)
NONE, LOSS, GAIN = np.nan, -3e-7, 0.01  # no number; a loss that rounds to nothing; a gain below its spread
AUDITORY = "auditory"


def sets(*skills, spread=0.01):
    names = ("c0 (loudness) only", "MFCCs without c0", "all MFCCs", "envelope (RMS)")
    made = pd.DataFrame({"features": names[: len(skills)], "skill": skills, "gain": skills, "fold_spread": spread})
    made["note"] = ["" if np.isfinite(skill) else "not done: no file" for skill in skills]
    return made.assign(gain_spread=spread, n_voxels=8, n_region=8, n_volumes=80, n_folds=5)


def parts(skill):
    bands = [("model", "all"), ("unique", "sound"), ("shared", "history+sound")]
    made = pd.DataFrame(bands, columns=["kind", "bands"])
    return made.assign(skill=skill, fold_spread=0.03, n_voxels=8, n_region=8)


def ahead(*skills):
    return pd.DataFrame({"model": "history", "horizon": range(1, len(skills) + 1), "skill": skills, "n_starts": 9})


def curve(*skills):
    made = pd.DataFrame({"share": np.linspace(0.5, 1, len(skills)), "n_fit": 50.0, "skill": skills, "gain": skills})
    return made.assign(fold_spread=0.03, gain_spread=0.03, rise_spread=0.03, n_folds=5)


def worth(*n_eff):
    made = pd.DataFrame({"feature": [f"mfcc{k}" for k in range(len(n_eff))], "n_eff": n_eff, "n_volumes": 80})
    return made.assign(r_limit=1.96 / np.sqrt(made["n_eff"]))


def checks(*rows):
    names = ["control", "region", "value", "p", "verdict"]
    return pd.DataFrame(rows, columns=names)


def people(values, value="gain"):
    """Two regions of a few people, and what holds over them."""
    rows = [(f"{k:02}", name, v) for k, v in enumerate(values) for name in ("auditory_left", "auditory_right")]
    table = pd.DataFrame(rows, columns=["subject", "region", value])
    table.loc[table["region"] == "auditory_right", value] *= 0.5
    return table, group_stats.region_table(table, value)


FEW, OVER_FEW = people([LOSS, 2 * LOSS, -LOSS])
SINGLE, OVER_ONE = people([GAIN])
WHO = pd.DataFrame({"subject": ["00", "01", "02"], "age": [30.0, NONE, NONE], "language_certain": False})
WHO["mean_fd"], WHO["language_side"] = [NONE, 0.9, 0.1], ["left", "bilateral", "n/a"]
TWO = {"delays": (5.0, 6.0), "low": NONE, "high": NONE}
VOXELS = pd.DataFrame({"delay": 5.0, "low": NONE, "high": NONE, "p": [0.01, 0.9]})
SETTINGS = pd.DataFrame({"n_features": [2, 0, 2], "n_lags": 0, "blocks": [False, True, True], "delay": 5.0})
FLAT = {name: {"skill": NONE, "mse": 0.0, "r_median": NONE, "r_best": NONE, "n_with_r": 0} for name in one.ROWS}
WORSE = {name: {"skill": LOSS, "r_median": -1e-9, "r_best": -1e-9} for name in one.ROWS}
VANISHED = {"sound": {"r_median": NONE, "r_best": NONE, "n_with_r": 0}, "history_sound": {"skill": LOSS}}
PAST = {"reference": "history"}
PARAMS = SimpleNamespace(skip_initial=0.0, delays=[5.0], mlp_delays=[5.0], history_order=0)
NO_GAIN = inference.regions().assign(gain=NONE, partial_r=NONE, p=NONE)
LIMIT = pd.DataFrame({"region": [AUDITORY, "stg"], "ceiling": [1e-9, -1e-9], "low": -1e-9, "high": 0.2, "chance": 0.1})
LIMIT = LIMIT.assign(n_people=2, r=[0.3, NONE], own=[1e-9, NONE], own_chance=0.1, share=NONE)
SIDES = hemispheres.hemisphere_table(REGIONS.assign(low=NONE, high=NONE), subject="09")
LOSSES = SIDES.assign(score_left=LOSS, score_right=-1e-9, score_difference=LOSS)
CASES = {  # function: arguments, one after the other
    sentences.about_data: [(load_params("sim"), one.MFCCS)],
    sentences.about_split: [(SimpleNamespace(train=np.arange(3), gap=np.zeros(0, int), test=np.arange(5, 9)), 0.608)],
    sentences.about_left_out: [(9, 9, PARAMS), (9, 8, PARAMS)],
    sentences.about_delay: [
        (one.sweep([LOSS, 2 * LOSS], **TWO),),
        (one.sweep([LOSS, 2 * LOSS], **TWO, evidence=6.0, identifiable=False),),
        (one.sweep(np.array(one.PEAK) - 1, spread=9.0), {"truth": 6 + 1e-9}),
    ],
    sentences.about_voxel_delays: [(one.sweep([0.1, 0.2], **TWO, voxels=VOXELS),)],
    sentences.about_settings: [(SETTINGS.assign(skill=LOSS),)],
    sentences.about_baselines: [(one.table(**which), one.REGION) for which in (FLAT, WORSE)],
    sentences.about_mlp: [(one.table(**{**which, "mlp": which["mlp"] | PAST}), one.REGION) for which in (FLAT, WORSE)]
    + [(one.table(without=["mlp"]), one.REGION)],
    sentences.about_expectations: [(one.table(**which), one.REGION) for which in (FLAT, WORSE, VANISHED)],
    sentences.headline: [(one.table(**which), one.REGION, 5.0) for which in (FLAT, WORSE, VANISHED)],
    inference_sentences.about_region: [
        (NO_GAIN, AUDITORY),
        (inference.regions(), None),
        (inference.regions(past=0.01, within=0.9).assign(gain=LOSS, partial_r=NONE), AUDITORY),
        (inference.regions().assign(gain=-0.3, partial_r=-1e-9), AUDITORY),
    ],
    inference_sentences.about_other_regions: [(NO_GAIN, None), (inference.regions(), None)],
    inference_sentences.about_map: [(inference.voxels(0, 0), {"fwhm": 0, "blocks": False})],
    inference_sentences.about_calibration: [(inference.calibration(),), (inference.calibration().iloc[:0],)],
    outcome_sentences.about_out_of_fold: [
        (gains(NONE, NONE, NONE).assign(skill=NONE), AUDITORY),
        (gains(LOSS, 0.03, NONE), AUDITORY),
        (gains(GAIN, 0.03, -1e-9, n_folds=2), AUDITORY),
    ],
    outcome_sentences.about_partition: [(parts(NONE), AUDITORY), (parts(LOSS), AUDITORY), (parts(-0.5), AUDITORY)],
    outcome_sentences.about_ablations: [
        (sets(NONE, NONE), AUDITORY),
        (sets(0.04, -0.01, 0.0005, spread=0.02), AUDITORY),  # nothing is clear
        (
            pd.concat(
                [sets(0.04, -0.01, 0.0005, spread=0.02), sets(NONE), sets(0.2).assign(features="rms")],
                ignore_index=True,
            ),
            AUDITORY,
        ),
        (sets(LOSS, LOSS, LOSS), AUDITORY),
        (sets(LOSS, 0.1, 0.1, NONE), AUDITORY),
    ],
    outcome_sentences.about_responses: [
        (responses(LOSS, GAIN, spread=0.03, ratio=False), AUDITORY),
        (responses(0.1, 0.2).assign(skill=NONE, note="not done: covers 5% of the volumes"), AUDITORY),
        (responses(LOSS, 0.2), AUDITORY),
    ],
    outcome_sentences.about_horizon: [(ahead(*skills), 2.0, AUDITORY) for skills in ((-0.6, -0.6), (NONE, NONE))],
    outcome_sentences.about_learning_curve: [(curve(*s), AUDITORY) for s in ((LOSS, GAIN, LOSS), (NONE, GAIN))],
    outcome_sentences.about_effective: [(worth(NONE, NONE), AUDITORY), (worth(NONE, 1.0), AUDITORY)],
    control_sentences.about_contrast: [
        (contrast.ContrastMap(np.r_[-1e-9, NONE, 1e-9], np.full(3, -1e-9), 9, 8),),
        (contrast.ContrastMap(np.full(3, NONE), np.full(3, NONE), 9, 8),),
    ],
    control_sentences.about_controls: [
        (checks(("speech > music", AUDITORY, NONE, NONE, "not done: no blocks")),),
        (
            checks(
                ("speech > music", AUDITORY, 9.0, 1e-9, "as expected"),
                ("speech > music", "stg", NONE, NONE, "not done: the time course does not vary"),
                ("another film's sound, same blocks", "stg", NONE, NONE, "not done: the region does not vary"),
            ),
        ),
        (checks(("another film's sound, same blocks", AUDITORY, 1e-9, 0.01, "NOT as expected")),),
    ],
    control_sentences.about_ceiling: [
        (None, {"reason": "it takes at least two people", "left_out": {"02": "no scan"}}),
        (LIMIT,),
        (LIMIT.drop(columns=["r", "own", "own_chance", "share"]),),
        (LIMIT.assign(ceiling=NONE, low=NONE, high=NONE, n_people=0),),
    ],
    control_sentences.about_hemispheres: [(SIDES,), (LOSSES,), (SIDES[:0],)],
    group_sentences.about_people: [
        (SimpleNamespace(people=WHO, left_out=pd.DataFrame({"state": ["failed"]}), settings={}), "sim")
    ],
    group_sentences.about_region: [
        (OVER_FEW, "auditory_left", {"value": "gain"}),
        (OVER_ONE, "auditory_left", {"value": "gain_within"}),
        (OVER_ONE, None, {"value": "gain"}),
    ],
    group_sentences.about_other_regions: [(OVER_ONE, None), (OVER_FEW, "auditory_left")],
    group_sentences.about_motion: [
        (OVER_FEW, OVER_FEW, "auditory_left", WHO, {"limit": 0.5}),
        (OVER_FEW, OVER_ONE, "auditory_left", WHO, {"limit": 0.5}),
    ],
    group_sentences.about_delay: [
        (group_stats.delay_table(FEW.assign(delay=5.0, identifiable=[True] + [False] * 5)), "auditory_left"),
        (group_stats.delay_table(FEW.assign(delay=5.0, identifiable=False)), "auditory_left"),
    ],
    group_sentences.about_map: [
        (group_maps.GroupMap(pd.DataFrame(), None, None, (), {"02": "no map"}), {"quantity": "gain", "fwhm": 8.0})
    ],
    group_sentences.about_age: [(group_stats.age_table(FEW, "gain", WHO), "auditory_left")],
    group_sentences.about_dominance: [(group_stats.dominance_table(FEW, "gain", WHO), AUDITORY)],
    quality_sentences.about_steadiness: [
        (SimpleNamespace(tsnr=np.full(3, tsnr), outliers=()),) for tsnr in (0.0, 400.0, 9000.0)
    ],
    quality_sentences.about_outliers: [(measured(),)],
    quality_sentences.about_motion: [(measured(moved=None), load_params("sim"), {"affine": np.diag([4.0, 4, 4, 1])})],
    quality_sentences.about_aliases: [(measured(), 9.0, None), (measured(), 9.0, 60.0)],
    quality_sentences.about_cleaning: [(None, load_params("sim"))],
}
SAID = [(function, arguments) for function, every in CASES.items() for arguments in every]


def test_no_sentence_is_forgotten():
    every = {getattr(module, name) for module in MODULES for name in vars(module) if name.startswith("about_")}
    assert every | {sentences.headline} == set(CASES)


@pytest.mark.parametrize(("function", "arguments"), SAID, ids=lambda one: getattr(one, "__name__", ""))
def test_awkward_numbers_are_not_printed(function, arguments):
    *given, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    text = function(*given, **options)
    assert not re.findall(r"(?i)\bnan\b|\binf\b|[-−]0(?:\.0+)?(?![.\d])|  ", text), text
    assert not [share for share in re.findall(r"(-?\d+)%", text) if abs(int(share)) > 100], text
