"""What a figure shows is what it was given, under the right name, on the right side."""

import re

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest

from bold_audio import brain_figures, delay_figures, figures, renderer, style
from bold_audio.models import LINEAR_NAMES

MODELS = [*LINEAR_NAMES, "mlp"]
SHAPE = (6, 7, 5)
LEFTWARD = np.array([[-4.0, 0, 0, 10], [0, 4, 0, -12], [0, 0, 4, -8], [0, 0, 0, 1]])  # i runs from right to left
SAGITTAL = np.array(
    [[0, 0, -4.0, 12], [-4, 0, 0, 8], [0, 4, 0, -12], [0, 0, 0, 1]]
)  # i to the back, j up, k to the left
BLOCKS = pd.DataFrame({"onset": [0.0, 30, 60], "duration": 30.0, "trial_type": ["music", "speech", "music"]})
MAP = {"title": "A map", "unit": "r (no unit)"}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def grid(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


def delay_table():
    skill = {"brain": [0.0, 0.01, 0.0], "auditory": [0.1, 0.3, 0.2]}
    parts = [{"delay": [4.0, 5, 6], "region": name, "skill": s, "fold_spread": 0.02} for name, s in skill.items()]
    return pd.concat([pd.DataFrame(p) for p in parts])


def region_table():
    regions = pd.DataFrame(
        {"region": ["brain", "auditory"], "delay": [4.0, 5.0], "low": [4.0, 4.5], "high": [6.0, 5.5]}
    )
    return regions.assign(p=[0.6, 0.01], identifiable=[False, True], threshold=3.0, n_surrogates=130)


def settings_table():
    parts = [(n, lags, blocks) for n in (1, 2) for lags in (0, 1) for blocks in (False, True)] + [(0, 0, True)]
    table = pd.DataFrame(parts, columns=["n_features", "n_lags", "blocks"])
    return table.assign(delay=5.0, skill=0.1 * table["n_features"] + 0.01 * table["n_lags"] + 0.001 * table["blocks"])


CURVES = {str(n): {"auditory": np.array([0.1, 0.3, 0.2]) * n, "brain": np.zeros(3)} for n in (1, 2)}


def score_table(**columns):
    table = pd.DataFrame({"model": MODELS, "prediction": "one_step", "region": "auditory", "reference": "constant"})
    return table.assign(mse=np.linspace(9e-5, 2e-5, 11), skill=np.linspace(0, 0.7, 11), **columns)


def loss_table():
    return pd.DataFrame(
        {"run": ["a", "a", "b", "b"], "epoch": [0, 1, 0, 1], "train_MSE": 1.0, "val_MSE": [4.0, 3, 2, 1]}
    )


EVERY_FIGURE = {
    "sound": lambda g: figures.plot_sound(g[0], np.arange(7.0), "abcde", blocks=BLOCKS),
    "voxel": lambda g: figures.plot_blocks_and_voxel(np.arange(7.0), g[0, :, 0], g[0, :, 1], delay=5, blocks=BLOCKS),
    "course": lambda g: figures.plot_time_course(np.arange(7.0), {"measured": g[0, :, 0]}, title="t", unit="BOLD (SD)"),
    "delay": lambda g: delay_figures.plot_delay_curve(delay_table(), chosen=5.0, truth={"left": 5.5}, block_period=60),
    "evidence": lambda g: delay_figures.plot_delay_evidence(delay_table().assign(evidence=1.0), region_table().iloc[1]),
    "intervals": lambda g: delay_figures.plot_delay_intervals(region_table(), truth={"auditory": 5.2}),
    "settings": lambda g: delay_figures.plot_settings(settings_table()),
    "curves": lambda g: delay_figures.curve_player(CURVES, [4.0, 5, 6], prefix="Features: ", title="t"),
    "chooser": lambda g: delay_figures.delay_chooser({"auditory": settings_table()}),
    "slices": lambda g: brain_figures.plot_slices(g, affine=LEFTWARD, background=np.abs(g), symmetric=True, **MAP),
    "voxels": lambda g: brain_figures.plot_slices(g, **MAP),
    "truth": lambda g: brain_figures.plot_truth_prediction(g, g, affine=LEFTWARD, time=3.0, **MAP),
    "player": lambda g: brain_figures.slice_player(g[None], g[None], [0.0], **MAP),
    "regions": lambda g: brain_figures.plot_regions(g[0, 0], **MAP),
    "player of regions": lambda g: brain_figures.slice_player(
        g[:2, :, :1, None], g[:2, :, :1, None], [0.0, 2.0], **MAP
    ),
    "scores": lambda g: figures.plot_scores(score_table(), region="auditory", prediction="one_step"),
    "loss": lambda g: figures.plot_loss(loss_table()),
}


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_every_figure_has_one_look_a_title_and_units_on_its_axes(name, grid):
    fig = EVERY_FIGURE[name](grid)
    axes = [a for a in fig.layout if a.startswith(("xaxis", "yaxis")) and fig.layout[a].showticklabels is not False]
    assert {a[0] for a in axes} == {"x", "y"}
    for axis in axes:
        assert re.search(r"\w+ ?\([^)]+\)$", fig.layout[axis].title.text), axis
    assert fig.layout.title.text
    assert fig.layout.template == pio.templates["bold_audio"]
    assert fig.layout.height >= 220
    hovers = [t.hovertemplate for t in fig.data if t.hoverinfo != "skip"]
    assert hovers and all("%{" in h for h in hovers)


def test_models_have_colours_of_their_own_the_same_in_every_figure():
    assert len({style.MODEL_COLOURS[m] for m in [*MODELS, "measured"]}) == 12
    series = {m: [0.0, 1.0] for m in ("mlp", "measured", "sound")}
    lines = figures.plot_time_course([0, 1], series, title="t", unit="u").data
    dots = figures.plot_scores(score_table(), region="auditory", prediction="one_step").data[0]
    assert {t.name: t.line.color for t in lines} == {m: style.MODEL_COLOURS[m] for m in series}
    assert lines[1].line.color == "#000000"
    assert list(dots.marker.color) == [style.MODEL_COLOURS[m] for m in MODELS]


def test_sound_is_averaged_z_scores_and_stays_small(rng):
    frames = rng.normal(size=(33_100, 3)) * [1, 10, 100] + 7
    times = np.arange(33_100) / 86.13
    picture = figures.plot_sound(frames, times, ["c0", "c1", "c2"]).data[0]
    z = (frames - frames.mean(axis=0)) / frames.std(axis=0)
    assert picture.z.shape == (3, 1440)
    assert list(picture.y) == ["c0", "c1", "c2"]
    np.testing.assert_allclose(picture.z[:, 40], z[40 * 23 : 41 * 23].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(picture.z[:, -1], z[1439 * 23 :].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(picture.x[40], times[40 * 23 : 41 * 23].mean())
    start = figures.plot_sound(frames, times, ["c0", "c1", "c2"], max_seconds=10).data[0]
    np.testing.assert_allclose(start.z, z[:862].T, atol=1e-5)  # one frame per column, scaled as the whole is


def test_blocks_are_drawn_where_they_were_played_and_cut_at_the_end():
    fig = figures.plot_sound(np.arange(70.0)[:, None], np.arange(70) + 0.5, ["ramp"], blocks=BLOCKS)
    assert [(s.x0, s.x1) for s in fig.layout.shapes] == [(0, 30), (30, 60), (60, 70)]
    assert [a.text for a in fig.layout.annotations] == ["music", "speech", "music"]
    assert fig.layout.shapes[0].fillcolor != fig.layout.shapes[1].fillcolor


def test_sound_and_voxel_share_one_time_axis_and_missing_volumes_stay_missing():
    times, voxel = np.arange(6) * 0.608, np.array([3.0, 5, 3, 5, 3, 5])
    feature = np.array([np.nan, np.nan, 1, 1, 3, 3])
    spans = {"train": (0, 1.8), "gap": (1.8, 2.4), "test": (2.4, 3.6)}
    fig = figures.plot_blocks_and_voxel(times, feature, voxel, delay=1.2, name="envelope", spans=spans)
    np.testing.assert_allclose(fig.data[0].y, [np.nan, np.nan, -1, -1, 1, 1])
    np.testing.assert_allclose(fig.data[1].y, [-1, 1, -1, 1, -1, 1])
    assert [t.name for t in fig.data] == ["envelope", "voxel"]
    np.testing.assert_array_equal(fig.data[0].x, fig.data[1].x)
    assert [(s.x0, s.x1) for s in fig.layout.shapes] == list(spans.values())
    assert [a.text for a in fig.layout.annotations] == list(spans)


def test_delay_curve_shows_skill_band_choice_and_truth():
    fig = delay_figures.plot_delay_curve(delay_table(), chosen=5.0, truth={"left": 5.5}, block_period=60)
    lines = {t.name: t for t in fig.data if t.fill is None}
    assert list(lines) == ["brain", "auditory"]
    np.testing.assert_array_equal(lines["auditory"].x, [4, 5, 6])
    np.testing.assert_array_equal(lines["auditory"].y, [0.1, 0.3, 0.2])
    np.testing.assert_allclose(fig.data[2].y, [0.12, 0.32, 0.22, 0.18, 0.28, 0.08])
    assert [(s.x0, s.line.dash) for s in fig.layout.shapes] == [(5.5, "dash"), (5.0, "solid")]
    assert [a.text for a in fig.layout.annotations] == ["planted, left: 5.5 s", "chosen: 5 s"]
    assert "60 s" in fig.layout.title.subtitle.text
    plain = delay_figures.plot_delay_curve(delay_table().drop(columns="fold_spread"))
    assert len(plain.data) == 2 and not plain.layout.shapes and plain.layout.title.subtitle.text is None


def test_interval_of_the_chosen_delay_is_shaded_and_written():
    fig = delay_figures.plot_delay_curve(delay_table(), chosen=5.0, interval=(4.5, 5.5))
    assert [(s.x0, s.x1) for s in fig.layout.shapes] == [(4.5, 5.5), (5.0, 5.0)]
    assert fig.layout.annotations[0].text == "chosen: 5 s (4.5 to 5.5 s)"
    assert len(delay_figures.plot_delay_curve(delay_table(), chosen=5.0, interval=(np.nan, np.nan)).layout.shapes) == 1


def test_evidence_is_shown_beside_its_surrogates_and_says_when_there_is_nothing():
    table = pd.DataFrame({"delay": [4.0, 5, 6], "evidence": [-2.0, 7.0, 1.0]})
    sure, unsure = (delay_figures.plot_delay_evidence(table, region_table().iloc[k]) for k in (1, 0))
    np.testing.assert_array_equal(sure.data[0].y, [-2, 7, 1])
    band = [s for s in sure.layout.shapes if s.xref == "x domain"]
    assert band[0].y1 == 3.0 and "95 % of 130 surrogates" in sure.layout.annotations[0].text
    assert "NOT IDENTIFIABLE" in unsure.layout.title.text and "NOT" not in sure.layout.title.text


def test_intervals_tell_regions_with_a_delay_from_those_without():
    fig = delay_figures.plot_delay_intervals(region_table(), truth={"auditory": 5.2, "elsewhere": 9.0})
    rows = {t.name: t for t in fig.data}
    assert list(rows["identifiable"].y) == ["auditory"] and list(rows["not identifiable"].y) == ["brain"]
    assert rows["identifiable"].error_x.array[0] == 0.5 and rows["not identifiable"].error_x.arrayminus[0] == 0
    assert list(rows["planted"].y) == ["auditory"]


def test_settings_show_the_best_delay_of_each_and_the_blocks_alone():
    fig = delay_figures.plot_settings(settings_table())
    lines = {t.name: list(t.y) for t in fig.data}
    np.testing.assert_allclose(lines["1 further windows and blocks"], [0.111, 0.211])
    np.testing.assert_allclose(lines["0 further windows"], [0.1, 0.2])
    assert fig.layout.shapes[0].y0 == pytest.approx(0.001)


def test_slider_of_curves_holds_every_setting_of_every_region():
    fig = delay_figures.curve_player(CURVES, [4.0, 5, 6], prefix="Features: ", title="t")
    steps = fig.layout.sliders[0].steps
    assert [step.label for step in steps] == ["1", "2"] and fig.layout.sliders[0].active == 1
    np.testing.assert_allclose(steps[0].args[0]["y"], [[0.1, 0.3, 0.2], [0, 0, 0]])
    np.testing.assert_allclose(fig.data[0].y, [0.2, 0.6, 0.4])
    assert fig.layout.yaxis.range[1] > 0.6


def test_chooser_holds_the_curve_of_every_combination_in_the_order_of_its_knobs():
    delays = (4.0, 5.0, 6.0)
    rows = [
        {"n_features": n, "n_lags": lag, "blocks": b, "delay": d, "skill": n + 10 * lag + 100 * b + d / 100}
        for n in (1, 2, 3)
        for lag in (0, 1)
        for b in (False, True)
        for d in delays
    ]
    rows += [{"n_features": 0, "n_lags": 0, "blocks": True, "delay": d, "skill": -1.0} for d in delays]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)
    fig = delay_figures.delay_chooser({"auditory": table, "brain": table.assign(skill=-table["skill"])})
    knobs, curves = fig.layout.meta["knobs"], np.array(fig.layout.meta["curves"])
    sizes = [len(knob["values"]) for knob in knobs]
    assert sizes == [3, 2, 2] and curves.shape == (12, 2, 3)
    for row in (row for row in rows if row["n_features"]):
        chosen = [knobs[0]["values"].index(str(row["n_features"])), row["n_lags"], int(row["blocks"])]
        at = np.ravel_multi_index(chosen, sizes), slice(None), delays.index(row["delay"])
        np.testing.assert_allclose(curves[at], [row["skill"], -row["skill"]])
    active = np.ravel_multi_index([knob["active"] for knob in knobs], sizes)
    np.testing.assert_allclose([trace.y for trace in fig.data], curves[active])  # drawn first is what the knobs say
    assert fig.layout.yaxis.range[0] < curves.min() and fig.layout.yaxis.range[1] > curves.max()


@pytest.mark.parametrize("affine", [LEFTWARD, SAGITTAL], ids=["left-handed axial", "sagittal"])
@pytest.mark.parametrize(("view", "right", "up"), [("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)])
def test_a_voxel_appears_at_its_millimetres(affine, view, right, up):
    volume, voxel = np.zeros(SHAPE), (1, 5, 3)
    volume[voxel] = 1.0
    mm = affine[:3] @ [*voxel, 1]
    first = brain_figures.plot_truth_prediction(
        volume, volume, affine=affine, voxel=voxel, view=view, time=0, **MAP
    ).data[0]
    row, column = np.argwhere(first.z == 1)[0]
    assert (first.x[column], first.y[row]) == (mm[right], mm[up])
    assert (first.z == 1).sum() == 1
    assert np.all(np.diff(first.x) > 0) and np.all(np.diff(first.y) > 0)  # left of the picture is left of the person


def test_slices_say_where_they_lie_and_which_side_is_left(grid):
    fig = brain_figures.plot_slices(grid, affine=LEFTWARD, n_slices=2, **MAP)
    texts = [a.text for a in fig.layout.annotations]
    assert texts == ["z = -4 mm", "<b>L</b>", "<b>R</b>", "z = 4 mm", "<b>L</b>", "<b>R</b>"]
    np.testing.assert_array_equal(fig.data[0].z, grid[::-1, :, 1].T)  # i runs to the left, so the picture is flipped
    unknown = brain_figures.plot_slices(grid, n_slices=2, **MAP)
    assert [a.text for a in unknown.layout.annotations] == ["k = 1", "k = 3"]
    np.testing.assert_array_equal(unknown.data[0].z, grid[:, :, 1].T)


def test_voxels_outside_the_mask_stay_empty_over_a_grey_background(grid):
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 2:5, 1:4] = True
    fig = brain_figures.plot_slices(
        grid[mask], mask=mask, background=np.ones(SHAPE), affine=np.eye(4), n_slices=1, **MAP
    )
    anatomy, overlay = fig.data
    np.testing.assert_array_equal(overlay.z, np.where(mask, grid, np.nan)[:, :, 2].T)
    assert anatomy.z.shape == overlay.z.shape and np.isfinite(anatomy.z).all()
    assert fig.layout[anatomy.coloraxis].colorscale == ((0, "#000000"), (1, "#FFFFFF"))
    alone = brain_figures.plot_slices(grid, mask=mask, n_slices=3, **MAP)
    np.testing.assert_array_equal(alone.data[0].z, grid[2:4, 2:5, 1].T)  # cropped to the mask
    assert [a.text for a in alone.layout.annotations] == ["k = 1", "k = 2", "k = 3"]


def test_colour_ranges_are_symmetric_where_asked_and_as_told(grid):
    skewed = np.where(grid > 0, 3 * grid, grid)
    axis = brain_figures.plot_slices(skewed, symmetric=True, **MAP).layout.coloraxis
    assert axis.cmin == -axis.cmax == -np.percentile(np.abs(skewed), 99)
    assert axis.colorscale[0][1] == "rgb(5,48,97)"  # blue below zero
    assert brain_figures.plot_slices(grid, symmetric=True, limit=0.5, **MAP).layout.coloraxis.cmin == -0.5
    told = brain_figures.plot_slices(grid, limit=(0, 9), **MAP).layout.coloraxis
    assert (told.cmin, told.cmax) == (0, 9)


def test_dark_background_is_cut_off_but_never_a_voxel_of_the_map(grid):
    bright = np.zeros(SHAPE)
    bright[2:5, 3:5] = 1.0
    sparse = np.full(SHAPE, np.nan)
    sparse[0, 4, 2] = grid[0, 4, 2]
    anatomy, overlay = brain_figures.plot_slices(sparse, background=bright, **MAP).data
    np.testing.assert_array_equal(anatomy.x, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(anatomy.y, [3, 4])
    assert overlay.z[1, 0] == grid[0, 4, 2] and np.isnan(overlay.z).sum() == 9


def test_a_map_without_any_voxel_still_shows_the_brain():
    fig = brain_figures.plot_slices(np.full(SHAPE, np.nan), background=np.ones(SHAPE), symmetric=True, **MAP)
    assert np.isfinite(fig.data[0].z).all() and np.isnan(fig.data[1].z).all()


def test_original_predicted_and_difference_in_this_order(grid, rng):
    guess = grid + rng.normal(size=SHAPE).astype(np.float32) + 0.5
    fig = brain_figures.plot_truth_prediction(grid, guess, time=310.08, **MAP)
    original, predicted, difference = (t.z for t in fig.data)
    np.testing.assert_array_equal(original, grid[:, :, 2].T)
    np.testing.assert_array_equal(predicted, guess[:, :, 2].T)
    np.testing.assert_allclose(difference, predicted - original, atol=1e-6)
    assert [t.coloraxis for t in fig.data] == ["coloraxis", "coloraxis", "coloraxis2"]
    assert fig.layout.coloraxis2.cmin == -fig.layout.coloraxis2.cmax < 0
    assert fig.layout.coloraxis.cmin != -fig.layout.coloraxis.cmax
    assert [a.text for a in fig.layout.annotations] == ["original", "predicted", "predicted − original"]
    assert "310.1 s" in fig.layout.title.text and not fig.frames


@pytest.mark.slow
def test_player_moves_through_time_within_one_colour_range_and_stays_small(rng):
    mask = np.zeros((40, 64, 64), bool)
    mask[4:36, 6:58, 8:56] = True
    true = rng.normal(size=(100, mask.sum())).astype(np.float32)
    times = np.arange(100) * 0.608 + 300
    fig = brain_figures.slice_player(true, true / 2, times, mask=mask, affine=LEFTWARD, **MAP)
    assert len(fig.frames) == 40
    assert (fig.frames[0].name, fig.frames[-1].name) == ("300.0", "360.2")
    volume = np.full(mask.shape, np.nan, np.float32)
    volume[mask] = true[-1]
    np.testing.assert_array_equal(fig.frames[-1].data[0].z, volume[35:3:-1, 6:58, 32].T)
    np.testing.assert_allclose(fig.frames[-1].data[2].z, -fig.frames[-1].data[0].z / 2)
    assert all(f.data[2].coloraxis == "coloraxis2" for f in fig.frames)
    assert [step.args[0][0] for step in fig.layout.sliders[0].steps] == [f.name for f in fig.frames]
    assert [b.label for b in fig.layout.updatemenus[0].buttons] == ["▶ play", "❚❚ pause"]
    assert len(fig.to_json()) < 1_500_000


def test_data_without_a_voxel_grid_becomes_one_bar_per_region():
    values, names = np.array([0.1, -0.3, 0.2]), ["left", "right", "front"]
    fig = brain_figures.plot_slices(values.reshape(3, 1, 1), names=names, symmetric=True, **MAP)
    np.testing.assert_allclose(fig.data[0].x, values, rtol=1e-6)
    assert list(fig.data[0].y) == names and list(fig.data[0].text) == ["0.1", "-0.3", "0.2"]
    low, high = fig.layout.xaxis.range
    assert low == -high < -0.3
    movie = np.array([values, 2 * values]).reshape(2, 3, 1, 1)
    player = brain_figures.slice_player(movie, movie / 2, [0.0, 2.0], names=names, **MAP)
    np.testing.assert_allclose(player.frames[1].data[2].x, -values, rtol=1e-6)
    assert player.layout.xaxis.range[1] > 0.6  # the largest value of all frames


def test_scores_keep_the_order_of_the_table_and_name_the_reference():
    table = score_table(r_median=0.1)
    table.loc[1, ["mse", "skill"]] = np.nan
    other = table.assign(region="brain", mse=5.0)
    table = pd.concat([other, table, table.assign(prediction="open_loop", mse=7.0)])
    fig = figures.plot_scores(table, region="auditory", prediction="one_step")
    assert list(fig.data[0].y) == MODELS == list(fig.layout.yaxis.categoryarray)
    np.testing.assert_array_equal(fig.data[0].x, np.where(np.arange(11) == 1, np.nan, np.linspace(9e-5, 2e-5, 11)))
    assert fig.data[0].text[0] == "9e-05"
    assert [(a.y, a.text) for a in fig.layout.annotations] == [("copy_previous", "no value")]
    assert fig.layout.xaxis.type is None and "lower is better" in fig.layout.title.text
    skill = figures.plot_scores(table, region="auditory", prediction="one_step", metric="skill")
    assert skill.data[0].text[-1] == "0.7 over constant" and "higher is better" in skill.layout.title.text
    r2 = figures.plot_scores(table.assign(r2=-0.1), region="auditory", prediction="one_step", metric="r2")
    assert r2.layout.xaxis.title.text == "Median R², 1 − residual / variance (no unit)"
    assert r2.layout.title.text == "Median R², 1 − residual / variance in auditory, one-step: higher is better"
    wide = figures.plot_scores(
        score_table().assign(mse=np.logspace(-5, -1, 11)), region="auditory", prediction="one_step"
    )
    assert wide.layout.xaxis.type == "log"
    with pytest.raises(ValueError, match="region 'visual' and prediction 'one_step'"):
        figures.plot_scores(table, region="visual", prediction="one_step")


def test_losses_are_the_numbers_given():
    loss = figures.plot_loss(loss_table())
    assert [(t.name, t.line.dash) for t in loss.data][:2] == [("a, train", "dash"), ("a, val", "solid")]
    assert list(loss.data[2].y) == [1, 1] and list(loss.data[3].y) == [2, 1]
    assert loss.data[2].line.color == loss.data[3].line.color != loss.data[0].line.color


def test_a_map_that_is_no_grid_needs_its_mask():
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        brain_figures.plot_slices(np.zeros(4), **MAP)


def test_notebook_pages_need_no_network(grid, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", pio.renderers.default)  # is put back afterwards
    renderer.use_notebook_renderer()
    bundle = brain_figures.plot_slices(grid, **MAP)._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "application/vnd.plotly.v1+json"}  # data once, and words; no plotly.js
    data = bundle["application/vnd.plotly.v1+json"]
    assert data["config"]["displaylogo"] is False and len(data["data"]) == len(
        brain_figures.plot_slices(grid, **MAP).data
    )
    assert "plotlyServerURL" not in data["config"]
    assert bundle["text/plain"].startswith(MAP["title"])
