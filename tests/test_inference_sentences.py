"""The inference in words: the numbers of its tables, and verdicts that turn when the tables turn."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bold_audio import inference_figures, inference_sentences, inferred
from bold_audio.significance import OVER_PAST, QUESTIONS, WITHIN


def regions(*, past=0.01, within=0.01, gain=0.0123, names=("auditory",), blocks=True):
    lines = []
    for name in names:
        for model, p in ((OVER_PAST, past), (WITHIN, within)):
            if model == WITHIN and not blocks:
                continue
            line = {"region": name, "model": model, "over": QUESTIONS[model], "gain": gain, "partial_r": 0.111, "p": p}
            line |= {
                "n_surrogates": 220,
                "delay": 5.0,
                "first_delay": 4.4,
                "last_delay": 6.9,
                "n_voxels": 90,
                "n_region": 90,
            }
            lines.append(line | {"null_low": -0.002, "null_high": 0.003})
    return pd.DataFrame(lines)


def voxels(q, fwe, n=1000):
    frame = pd.DataFrame({"q": np.full(n, 0.9), "p_fwe": np.full(n, 0.9), "delay": np.full(n, 5.5)})
    frame.loc[: q - 1, "q"] = 0.01
    frame.loc[: fwe - 1, "p_fwe"] = 0.01
    return SimpleNamespace(voxels=frame, n_shifts=172, n_randomised=624)


def test_the_sound_within_the_blocks():
    text = inference_sentences.about_region(regions(), "auditory")
    assert "lowers the squared error that the past and the film's blocks leave by 1.23% (gain +0.0123" in text
    assert "partial r = 0.111" in text and "p = 0.01 (220 surrogates)" in text
    assert "**It follows the sound within the blocks.**" in text
    assert "delays of 4.4 to 6.9 s" in text


def test_the_blocks_and_not_the_sound_within_them():
    text = inference_sentences.about_region(regions(past=0.005, within=0.4, gain=0.0004), "auditory")
    assert "It follows the blocks, not the sound within them" in text and "p = 0.005" in text
    assert "It follows the sound" not in text and "delay" not in text


def test_nothing_is_shown_where_chance_does_as_much():
    text = inference_sentences.about_region(regions(past=0.4, within=0.6, gain=-0.002), "auditory")
    assert "raises the squared error that the past and the film's blocks leave by 0.20% (gain -0.0020" in text
    assert "**Nothing is shown:** chance does as much." in text


def test_a_small_p_of_a_loss_is_not_called_following():
    text = inference_sentences.about_region(regions(gain=-0.01), "auditory")
    assert "**nothing is shown.**" in text and "chance does as much" not in text and "delay" not in text


def test_a_small_p_over_the_past_of_a_loss_is_not_called_the_blocks():
    table = regions(past=0.04, within=0.06)
    table["gain"] = -0.01
    assert "follows the blocks" not in inference_sentences.about_region(table, "auditory")


def test_nothing_finer_is_claimed_where_a_positive_control_failed():
    text = inference_sentences.about_region(regions(), "auditory", may_claim=False)
    assert "It follows the sound" not in text and "not every region that must answer to speech was shown to" in text
    assert "**that it follows the sound within the blocks is not claimed.**" in text and "p = 0.01" in text
    alone = inference_sentences.about_region(regions(blocks=False), "auditory", may_claim=False)
    assert "**It follows the sound.** But without blocks there is no positive control" in alone


def test_a_region_that_never_varies_is_asked_nothing():
    table = regions()
    table[["gain", "partial_r", "p"]] = np.nan
    text = inference_sentences.about_region(table, "auditory")
    assert text == "`auditory` does not vary, so nothing can be asked of it."


def test_a_part_of_the_voxels_is_said():
    table = regions()
    table["n_region"] = 1934
    assert "in the median of 90 of 1934 voxels" in inference_sentences.about_region(table, "auditory")


def test_a_film_without_blocks_is_asked_about_the_past():
    text = inference_sentences.about_region(regions(blocks=False), "auditory")
    assert "that the past leaves" in text and "**It follows the sound.**" in text


def test_annotations_are_not_called_the_sound():
    text = inference_sentences.about_region(regions(), "auditory", feature_source="annotations")
    assert "ANNOTATED" in text and "the sound adds" not in text


def test_interval_of_the_sweep_is_told_where_it_is_known():
    known = pd.DataFrame({"region": ["auditory"], "low": [4.61], "high": [6.22], "identifiable": [True]})
    assert "4.6 to 6.2 s (95 % interval" in inference_sentences.about_region(regions(), "auditory", intervals=known)
    known["identifiable"] = False
    assert "outer folds chose" in inference_sentences.about_region(regions(), "auditory", intervals=known)


def test_sides_that_differ_have_a_delay_each():
    known = pd.DataFrame({"region": ["auditory", "auditory_left", "auditory_right"], "low": [4.9, 4.5, 5.7],
                          "high": [5.5, 5.1, 6.5], "identifiable": True})  # fmt: skip
    told = inference_sentences.about_region(regions(), "auditory", intervals=known)
    assert "4.5 to 5.1 s on the left and 5.7 to 6.5 s on the right (95 % intervals" in told and "4.9" not in told
    for change in ({"low": [4.9, 4.5, 5.0]}, {"identifiable": [True, True, False]}, {"low": [4.9, 4.5, np.nan]}):
        told = inference_sentences.about_region(regions(), "auditory", intervals=known.assign(**change))
        assert "4.9 to 5.5 s (95 % interval" in told and "left" not in told


def test_primary_region_is_named_before():
    assert inference_sentences.primary_region(regions(names=("a", "auditory"))) == "auditory"
    assert inference_sentences.primary_region(regions(names=("LATL", "LPTL"))) is None
    assert inference_sentences.primary_region(regions(names=("LATL", "LPTL")), "LPTL") == "LPTL"
    assert inference_sentences.primary_region(regions().iloc[:0], "responsive") is None
    assert "No region was named before" in inference_sentences.about_region(regions(), None)


def test_other_regions_are_counted_against_chance():
    text = inference_sentences.about_other_regions(regions(names=("auditory", "a", "b")), "auditory")
    assert "Of 2 other regions 2 reach" in text and "`a`, `b`" in text and "chance alone gives 0.1" in text
    nobody = inference_sentences.about_other_regions(regions(names=("a", "b")), None)
    assert nobody.startswith("Of 2 regions 2 reach")
    assert "No other region" in inference_sentences.about_other_regions(regions(), "auditory")
    worse = inference_sentences.about_other_regions(regions(names=("auditory", "a"), gain=-0.01), "auditory")
    assert worse.startswith("Of 1 other region 0 reach p ≤ 0.05 with a gain above 0 (none)")


@pytest.mark.parametrize(("q", "fwe", "careful"), [(0, 0, False), (40, 12, False), (7, 0, True)])
def test_map_is_told_by_both_corrections(q, fwe, careful):
    text = inference_sentences.about_map(voxels(q, fwe), fwhm=8, blocks=q == 40)
    assert f"{q} of 1,000 voxels follow the sound beyond their past" in text and f"{fwe} at family-wise" in text
    assert "are averaged over 8 mm" in text and ("with care" in text) == careful
    assert ("delays lie" in text) == (q > 0)
    assert ("follows only speech against music" in text) == (q == 40)


def calibration():
    lines = []
    for kind, any_voxel, within in (("null", 0.06, 0.04), ("rhythm", 0.3, 0.25), ("oneback", 0.05, np.nan)):
        lines.append({"kind": kind, "figure": inference_sentences.ANY, "value": any_voxel, "n": 40})
        if np.isfinite(within):
            lines.append({"kind": kind, "figure": inference_sentences.REGION, "value": within, "n": 40})
    lines.append({"kind": "planted", "figure": "sensitivity", "value": 0.97, "n": 20})
    return pd.DataFrame(lines)


def test_calibration_says_each_rate_and_its_limit():
    text = inference_sentences.about_calibration(calibration())
    assert "noise as simulated: any voxel in 2 of 40 scans (1 to 17 %), one region in 2 of 40 (1 to 17 %) over" in text
    assert "one REAL one-back scan, which heard nothing: any voxel in 2 of 40 films, which are not independent" in text
    assert "61 s, near the blocks' cycle: any voxel in 12 of 40 scans (17 to 47 %)" in text and "known limit" in text
    assert "white noise: not measured" in text and "together" not in text
    whole = inference_sentences.about_calibration(inferred.calibration())
    assert "white noise: any voxel in 0 of 12 scans (at most 26 %)" in whole
    assert "to a moving head together: any voxel in 0 of 48 scans (at most 7 %)" in whole
    rows = inference_sentences.calibration_rows(calibration())
    assert rows["where nothing is there"].tolist()[-1].startswith("one REAL one-back scan")
    assert rows["scans"].tolist() == [40, 40, 40] and rows["any voxel, family-wise"].tolist() == [0.06, 0.3, 0.05]
    one_kind = inference_sentences.calibration_rows(calibration().iloc[:2])
    assert len(one_kind) == 1


def test_gains_are_drawn_beside_their_surrogates():
    table = pd.concat([regions(names=("auditory",)), regions(within=0.5, gain=0.0, names=("white",))])
    fig = inference_figures.plot_gains(table, model=WITHIN, title="Gain")
    names = {trace.name: trace for trace in fig.data if trace.name}
    assert list(names["p ≤ 0.05"].y) == ["auditory"] and list(names["p > 0.05"].y) == ["white"]
    assert names["p ≤ 0.05"].x[0] == pytest.approx(0.0123)
    spans = [trace for trace in fig.data if trace.mode == "lines"]
    assert [tuple(span.x) for span in spans] == [(-0.002, 0.003)] * 2
    assert re.search("gain", fig.layout.xaxis.title.text)


def test_map_shows_what_is_below_the_threshold_too():
    z = np.full((12, 14, 10), np.nan)
    z[2:10, 2:12, 2:8] = np.random.default_rng(0).normal(size=(8, 10, 6))
    sure = np.zeros(z.shape, bool)
    sure[4:6, 5:7, 4:6] = True
    fig = inference_figures.plot_map(z, sure, affine=np.eye(4), mean_image=np.nan_to_num(z), title="Map")
    shown = [t for t in fig.data if t.type == "heatmap" and t.coloraxis == "coloraxis"]
    assert len(shown) == 2  # the slices that the significant voxels span
    assert all(np.isfinite(np.asarray(t.z, float)).sum() > 20 for t in shown)
    assert sum(t.type == "contour" for t in fig.data) == 2
