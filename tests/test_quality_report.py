"""Figures of quality show what was measured, with units and notes; sentences turn when the numbers turn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bold_audio import brain_figures, quality, quality_figures, renderer
from bold_audio import quality_sentences as says
from bold_audio.params import load_params

T_R, N = 0.608, 641
PARTS = {"train": np.arange(16, 448), "gap": np.arange(448, 475), "test": np.arange(475, N)}
BLOCKS = pd.DataFrame({"onset": [0.0, 30, 60], "duration": 30.0, "trial_type": ["music", "speech", "music"]})


def measured(*, moved="still", spoilt=()):
    rng = np.random.default_rng(0)
    volumes = (1000 + 12 * rng.standard_normal((N, 400))).astype(np.float32)
    volumes[list(spoilt)] *= 3
    motions = None if moved is None else np.zeros((N, 6))
    if isinstance(moved, float):
        motions[300:, 1] = moved
        motions[:, 5] = np.radians(0.1)
    return quality.scan_quality(volumes, t_r=T_R, train=PARTS["train"], parts=PARTS, moved=motions)


FIGURES = {
    "run": lambda q: quality_figures.plot_run(q, blocks=BLOCKS, note="SIMULATED"),
    "motion": lambda q: quality_figures.plot_motion(q, note="SIMULATED"),
    "spectrum": lambda q: quality_figures.plot_spectrum(
        q.spectrum, block_period=60, rates={"heart": {70: 0.47, 100: 0.02}}, note="SIMULATED"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("moved", [None, 1.0])
def test_figures_name_their_axes_and_what_the_data_are(name, moved):
    fig = FIGURES[name](measured(moved=moved, spoilt=[200]))
    assert fig.layout.title.subtitle.text == "SIMULATED"
    shown = [axis for axis in fig.select_yaxes() if axis.visible is not False]
    for axis in shown:
        assert axis.title.text and ("(" in axis.title.text or "Voxels" in axis.title.text)
    assert renderer.offline_page([fig], title="t").count("http") == renderer.offline_page([], title="t").count("http")


@pytest.mark.slow
def test_the_run_is_drawn_as_it_was_measured():
    found = measured(spoilt=[200, 500])
    fig = quality_figures.plot_run(found, blocks=BLOCKS)
    lines = {trace.line.color: trace for trace in fig.data if trace.type == "scatter"}
    assert len(lines) == 4
    drawn = [trace.y for trace in fig.data if trace.type == "scatter"]
    table = found.volumes
    for y, expected in zip(
        drawn,
        (
            table["framewise_displacement"],
            table["dvars"],
            100 * table["outlier_share"],
            table["global_signal"],
        ),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(y, float), expected)
    (picture,) = [trace for trace in fig.data if trace.type == "heatmap"]
    np.testing.assert_array_equal(picture.z, found.carpet)
    marks = {shape.x0 for shape in fig.layout.shapes if shape.line.dash == "dot"}
    assert marks == {200 * T_R, 500 * T_R}
    assert len(renderer.offline_page([fig], title="t")) - len(renderer.offline_page([], title="t")) < 700_000


def test_a_run_without_motion_has_no_empty_panel():
    fig = quality_figures.plot_run(measured(moved=None))
    assert len([trace for trace in fig.data if trace.type == "scatter"]) == 3
    assert "not estimated" in quality_figures.plot_motion(measured(moved=None)).layout.title.text


def test_motion_is_drawn_in_mm_and_degrees():
    fig = quality_figures.plot_motion(measured(moved=1.5))
    drawn = {trace.name: np.asarray(trace.y, float) for trace in fig.data}
    assert set(drawn) == {f"{word} {axis}" for word in ("along", "about") for axis in "xyz"}
    assert drawn["along y"][-1] == 1.5 and drawn["about z"][0] == pytest.approx(0.1)
    assert [axis.title.text for axis in fig.select_yaxes()] == ["Shift (mm)", "Turn (degrees)"]


def test_the_spectrum_marks_the_blocks_and_gathers_rates_that_fold_together():
    rates = {"heart": {60: 0.0, 90: 0.0, 100: 1 / 6}}
    fig = quality_figures.plot_spectrum(measured().spectrum, block_period=60, rates=rates)
    assert [shape.x0 for shape in fig.layout.shapes] == [1 / 60]
    (marks,) = [trace for trace in fig.data if trace.mode == "markers+text"]
    assert list(marks.text) == ["60, 90", "100"]
    assert not quality_figures.plot_spectrum(measured().spectrum).layout.shapes


def test_the_edge_of_the_mask_is_drawn_where_the_mask_ends():
    grid, mask = np.full((8, 9, 7), 10.0), np.zeros((8, 9, 7), bool)
    grid[2:6, 2:7, 2:5] = 1000
    mask[2:6, 2:7, 2:5] = True
    affine = np.diag([4.0, 4, 4, 1])
    fig = brain_figures.plot_slices(grid, outline=mask, affine=affine, title="t", unit="a.u.", note="SIMULATED")
    edges = [trace for trace in fig.data if trace.type == "contour"]
    pictures = [trace for trace in fig.data if trace.type == "heatmap"]
    assert len(edges) == len(pictures) == 3, "slices without any of the mask are left out"
    for edge, picture in zip(edges, pictures, strict=True):
        assert np.shape(edge.z) == np.shape(picture.z)
        np.testing.assert_array_equal(np.asarray(edge.z) > 0.5, np.asarray(picture.z) > 500)
        assert edge.contours.start == edge.contours.end == 0.5
    assert fig.layout.title.subtitle.text == "SIMULATED"


# --- sentences --------------------------------------------------------------------------


@pytest.fixture
def params():
    return load_params("sim")


def test_steadiness_says_what_a_response_can_reach():
    text = says.about_steadiness(measured())
    assert "is 83 times its standard deviation" in text or "is 84 times" in text
    assert "r = 0.42 (17% of the variance)" in text and "r = 0.08" in text


def test_a_weak_response_is_not_cut_with_a_strong_one():
    text = says.about_steadiness(replace(measured(), tsnr=np.full(9, 400.0)))
    assert "r = 1.00 (100% of the variance)" in text and "0.2 % r = 0.40" in text


def test_outliers_left_out_of_the_steadiness_are_told():
    assert "left out" not in says.about_steadiness(measured())
    assert "Outlier volumes were left out of this" in says.about_steadiness(measured(spoilt=[200]))


@pytest.mark.slow
def test_one_bad_volume_does_not_press_the_others_flat():
    plain, bad = (quality_figures.plot_run(measured(spoilt=s)) for s in ((), (200,)))
    for k in (2, 4):  # DVARS, global signal
        np.testing.assert_allclose(bad.layout[f"yaxis{k}"].range, plain.layout[f"yaxis{k}"].range, atol=0.1)


def test_outliers_are_listed_with_index_time_and_part():
    assert says.about_outliers(measured()).startswith(f"None of the {N} volumes stands out")
    text = says.about_outliers(measured(spoilt=[200, 500]))
    assert text.startswith(f"2 of {N} volumes stand out: volume 200 (121.6 s, train): outlier: 100 % of the voxels")
    assert "volume 500 (304.0 s, test)" in text and "range" in text and "test cost every model" in text
    assert "Those in" not in says.about_outliers(measured(spoilt=[5])) and "(3.0 s, in no part)" in says.about_outliers(
        measured(spoilt=[5])
    )
    many = says.about_outliers(measured(spoilt=range(100, 120)))
    assert many.count("; ") == says.MOST_LISTED and "12 more" in many


def test_motion_says_how_far_and_what_to_do(params):
    still, far = measured(), measured(moved=1.5)
    text = says.about_motion(far, params, affine=np.diag([3.0, 4.0, 5.0, 1.0]), blocks=(0.31, 0.12))
    assert (
        "at most 1.50 mm and 0.10°" in text
        and "1.50 mm at most" in text
        and "voxels are 4.0 mm" in text
        and "try `realign: true`" in text
    )
    assert "explain 31% of the film's blocks" in text and "12% in the median" in text
    assert "used as they came" in says.about_motion(still, params, affine=np.diag([3.0, 4.0, 5.0, 1.0]))
    put_back = params.model_copy(update={"realign": True})
    assert "put back in place" in says.about_motion(far, put_back, affine=np.diag([3.0, 4.0, 5.0, 1.0]))
    assert says.about_motion(measured(moved=None), params, affine=np.diag([3.0, 4.0, 5.0, 1.0])).startswith(
        "No head motion was estimated"
    )


@pytest.mark.parametrize(
    ("t_r", "words"),
    [
        (0.608, "A heart rate of 97.7 or 99.7 per minute (± 0.15,"),
        (0.608, "No breathing rate between 6 and 40 per minute does"),
        (2.0, "A breathing rate of 29.0 or 31.0 per minute"),
        (2.0, "rhythms of up to 15.0 per minute"),
    ],
)
def test_aliases_follow_from_the_repetition_time(t_r, words):
    assert words in says.about_aliases(measured(), t_r, 60.0)


def test_without_blocks_no_frequency_is_the_sounds():
    assert "no single frequency is the sound's" in says.about_aliases(measured(), T_R, None)


def test_cleaning_says_where_it_made_things_worse(params):
    assert says.about_cleaning(None, params).startswith("Nothing was taken off")
    asked = params.model_copy(update={"realign": True, "confounds": ["drift", "motion"]})
    effect = {"before": {"train": 1.2, "test": 1.1}, "after": {"train": 1.0, "test": 1.0}, "columns": 9, "blocks": 0.04}
    text = says.about_cleaning(effect, asked)
    assert "realign, drift, motion" in text and "test 1.100 before, 1.000 after" in text and "rose" not in text
    assert "The 9 columns explain 4.0% of the film's blocks" in text
    worse = says.about_cleaning(effect | {"after": {"train": 1.0, "test": 1.3}}, asked)
    assert "In test it **rose**" in worse
