"""The slice viewer in real JupyterLab and Chromium: scrubbed, clicked, played, its pixels held against the arrays."""

import itertools
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import browser
import nibabel as nib
import numpy as np
import pytest
import requests
import soundfile
from plotly import colors
from processes import free_port
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
SHAPE, N, T_R = (10, 14, 12), 130, 0.608
TEST = np.arange(50, 130)
GREYS = [[0, "rgb(0, 0, 0)"], [1, "rgb(255, 255, 255)"]]
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is a browser"),
]

RUN = """
import numpy as np
import pandas as pd
from pathlib import Path
from bold_audio.data import BoldRun
from bold_audio.runs import RunFiles
from bold_audio.slice_viewer import SliceViewer

def open_run(codes):
    arrays = np.load("arrays.npz")
    events = pd.DataFrame({"onset": [0.0, 30.0, 60.0], "duration": 30.0, "trial_type": ["music", "speech", "music"]})
    where = Path("sub-sim_task-film_bold.nii.gz")
    said = {"Manufacturer": "SIMULATED by bold_audio"}
    mask = arrays["mask"]
    files = RunFiles(where, 130, mask.shape, arrays["affine"], 0.608, 0.0, events, said, codes)
    regions = {"brain": np.ones(mask.sum(), bool)}
    Y = np.load("volumes.npy", mmap_mode="r")
    mean = np.zeros(mask.shape, np.float32)
    mean[mask] = Y[:50].mean(axis=0)
    return BoldRun(files, Y, mask, arrays["affine"], (0, 2000), mean, regions), arrays

run, arrays = open_run((1, 1))
"""
SHOW = """
given = {("sound", "one_step"): arrays["sound"], ("history_sound", "one_step"): arrays["past"]}
given |= {("sound", "open_loop"): arrays["past"]}
viewer = SliceViewer(run, given, volumes=np.arange(50, 130), sound="film.wav")
viewer
"""
UNKNOWN = "unknown = SliceViewer(open_run((0, 0))[0])\nunknown"
MAPS = """
maps = {"r": run.to_grid(arrays["past"][0] - arrays["past"][1])}
SliceViewer.of_maps(maps, background=run.mean_image, affine=run.affine)
"""
PIXELS = """(canvas) => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.height, canvas.width, ...data];
}"""


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """A small SIMULATED run, two predictions of its end and a sound; the folder that they lie in."""
    folder = tmp_path_factory.mktemp("lab")
    rng = np.random.default_rng(0)
    where = (np.indices(SHAPE).reshape(3, -1).T / np.array(SHAPE) - 0.45) * (2.2, 2, 2.1)
    mask = (np.linalg.norm(where, axis=1) < 0.9).reshape(SHAPE)
    affine = np.diag([-4.0, 4, 4, 1])
    affine[:3, 3] = (20, -28, -24)
    level = 600 + 500 * rng.random(mask.sum())
    Y = (level + 8 * rng.standard_normal((N, mask.sum()))).astype(np.float32)
    sound = (level + 3 * rng.standard_normal((80, mask.sum()))).astype(np.float32)
    sound[:, 100] = Y[TEST, 100] + 4 * rng.standard_normal(80)
    past = (level + 5 * rng.standard_normal((80, mask.sum()))).astype(np.float32)
    np.save(folder / "volumes.npy", Y)
    made = {"mask": mask, "affine": affine, "sound": sound, "past": past}
    np.savez(folder / "arrays.npz", **made)
    seconds = np.arange(16_000 * 48) / 16_000
    loud = 0.3 * np.sin(2 * np.pi * 440 * seconds) * (0.2 + np.sin(seconds / 3) ** 2)
    soundfile.write(folder / "film.wav", loud.astype(np.float32), 16_000)
    return {"Y": Y, "folder": folder, **made}


@pytest.fixture(scope="module")
def lab(arrays):
    """JupyterLab, and a page in which the notebook has run."""
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("PYTHONPATH", str(ROOT))
        server = stack.enter_context(browser.Lab(arrays["folder"]).start())
        server.write("viewer.ipynb", RUN, SHOW, UNKNOWN, MAPS)
        chromium = stack.enter_context(browser.chromium())
        page = browser.new_page(chromium)
        page.set_default_timeout(20_000)
        server.open(page, "viewer.ipynb")
        for cell in range(2):
            server.run_cell(page, cell)
        page.wait_for_selector(".ba-viewer[data-course]")
        yield server, page, chromium


@pytest.fixture
def page(lab):
    """The page with the viewer as it was opened; whatever is done in it may leave no error in the console."""
    _, page, _ = lab
    page.faults.clear()
    yield page
    assert page.faults == []


def go(page, volume=60, model="sound", kind="one_step", quantity="intensity"):
    """Put the viewer into a known state and wait for its planes."""
    page.get_by_label("model", exact=True).first.select_option(model)
    page.get_by_label("prediction", exact=True).first.select_option(kind)
    page.get_by_label("shown", exact=True).first.select_option(quantity)
    page.locator("[data-axis=time]").first.fill(str(volume))
    where = f'[data-volume="{volume}"][data-model="{model}"][data-kind="{kind}"][data-quantity="{quantity}"]'
    page.wait_for_selector(f".ba-viewer{where}")


def picture(page, panel, plane, viewer=0):
    canvas = page.locator(".ba-viewer").nth(viewer).locator(f"canvas[data-panel={panel}][data-plane={plane}]")
    height, width, *data = canvas.evaluate(PIXELS)
    return np.array(data, np.uint8).reshape(height, width, 4)


def turned(arrays, values):
    """Values as nibabel's canonical image has them, NaN outside the mask."""
    grid = np.full(SHAPE, np.nan)
    grid[arrays["mask"]] = values
    return nib.as_closest_canonical(nib.Nifti1Image(grid, arrays["affine"])).get_fdata()


def planes(grid, voxel):
    x, y, z = voxel
    return {"axial": np.rot90(grid[:, :, z]), "coronal": np.rot90(grid[:, y, :]), "sagittal": np.rot90(grid[x])}


def limits_of(page, panel, viewer=0):
    texts = page.locator(".ba-viewer").nth(viewer).locator(".ba-panel").nth(panel).locator(".ba-scale span")
    return [float(text.replace("−", "-")) for text in texts.all_inner_texts()]


def voxel_of(page):
    return tuple(int(v) for v in page.locator(".ba-viewer").first.get_attribute("data-voxel").split(","))


def check_pixels(page, arrays, panel, values, scale):
    """Every pixel of a panel's three planes has the colour that plotly gives to the array's value there."""
    name = ["measured", "predicted", "difference"][panel]
    low, high = limits_of(page, panel)
    for plane, wanted in planes(turned(arrays, values), voxel_of(page)).items():
        got, inside = picture(page, name, plane), np.isfinite(wanted)
        assert got.shape[:2] == wanted.shape
        assert (got[~inside][:, 3] == 0).all() and (got[inside][:, 3] == 255).all()
        at = np.clip((wanted[inside] - low) / (high - low), 0, 1)
        colour = np.array([colors.unlabel_rgb(c) for c in colors.sample_colorscale(scale, at)])
        # Half a step of 254, and limits read from the page in four digits: a few steps of a colour channel.
        assert np.abs(got[inside][:, :3] - colour).max() <= 6


def check_all(page, arrays, volume, predicted):
    measured = arrays["Y"][volume]
    check_pixels(page, arrays, 0, measured, GREYS)
    check_pixels(page, arrays, 1, predicted, GREYS)
    check_pixels(page, arrays, 2, predicted - measured, "RdBu_r")


def test_pixels_are_the_arrays_values(page, arrays):
    go(page, 60)
    check_all(page, arrays, 60, arrays["sound"][10])


def test_pixels_on_the_screen_are_those_of_the_canvas(page, arrays, tmp_path):
    """The page scales and places the canvas: voxels must still be seen where they are."""
    from PIL import Image

    go(page, 60)
    canvas = page.locator("canvas[data-panel=measured][data-plane=sagittal]").first
    canvas.screenshot(path=tmp_path / "plane.png")
    seen = np.asarray(Image.open(tmp_path / "plane.png").convert("RGB")).astype(int)
    wanted = picture(page, "measured", "sagittal").astype(int)
    rows, columns = wanted.shape[:2]
    _, y, z = voxel_of(page)
    for i in range(rows):
        for j in range(columns):
            if wanted[i, j, 3] and i != rows - 1 - z and j != y and 1 < i < rows - 2:  # not under crosshair or letters
                at = seen[int((i + 0.3) * len(seen) / rows), int((j + 0.3) * seen.shape[1] / columns)]
                assert np.abs(at - wanted[i, j, :3]).max() <= 3


def test_scrubbing_shows_each_volume(page, arrays):
    go(page, 60)
    slider = page.locator("[data-axis=time]").first
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector('.ba-viewer[data-volume="65"]')
    check_all(page, arrays, 65, arrays["sound"][15])
    for volume in (79, 51, 64, 70):
        slider.fill(str(volume))
    page.wait_for_selector('.ba-viewer[data-volume="70"]')  # the last one wins
    check_all(page, arrays, 70, arrays["sound"][20])


def test_before_the_test_part_nothing_is_predicted(page, arrays):
    go(page, 10)
    check_pixels(page, arrays, 0, arrays["Y"][10], GREYS)
    assert not picture(page, "predicted", "axial")[..., 3].any()
    assert page.get_by_text("no prediction of this volume").first.is_visible()


def test_switching_the_model_shows_its_prediction(page, arrays):
    go(page, 60, model="history_sound")
    check_all(page, arrays, 60, arrays["past"][10])
    go(page, 60, model="sound", kind="open_loop")
    check_pixels(page, arrays, 1, arrays["past"][10], GREYS)
    options = page.get_by_label("prediction", exact=True).first.locator("option")
    assert options.all_inner_texts() == ["one-step", "open-loop"]
    page.get_by_label("model", exact=True).first.select_option("history_sound")  # has no open-loop prediction
    page.wait_for_selector('.ba-viewer[data-model="history_sound"][data-kind="one_step"]')


def test_change_from_the_mean(page, arrays):
    go(page, 60, quantity="change")
    mean = arrays["Y"][:50].mean(axis=0)
    check_pixels(page, arrays, 0, arrays["Y"][60] - mean, "RdBu_r")
    check_pixels(page, arrays, 1, arrays["sound"][10] - mean, "RdBu_r")


def points(page, name):
    """A drawn course as the page has it: array of (x, y) in pixels."""
    path = page.locator(f".ba-viewer >> nth=0 >> path[data-name={name}]").get_attribute("d")
    return np.array(re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path), float)


def test_click_on_a_voxel_draws_its_course(page, arrays):
    go(page, 60)
    box = page.locator(".ba-plane[data-panel=predicted][data-plane=axial]").first.bounding_box()
    x, y, z = 6, 5, voxel_of(page)[2]
    page.mouse.click(
        box["x"] + (x + 0.5) / SHAPE[0] * box["width"], box["y"] + (SHAPE[1] - y - 0.5) / SHAPE[1] * box["height"]
    )
    page.wait_for_selector(f'.ba-viewer[data-voxel="{x},{y},{z}"][data-course="{x},{y},{z}"]')
    index = (SHAPE[0] - 1 - x, y, z)
    column = int(np.flatnonzero(np.flatnonzero(arrays["mask"]) == np.ravel_multi_index(index, SHAPE))[0])
    for name, wanted in (("measured", arrays["Y"][:, column]), ("sound", arrays["sound"][:, column])):
        drawn = points(page, name)
        assert len(drawn) == len(wanted)
        assert np.corrcoef(drawn[:, 1], wanted)[0, 1] < -0.9999  # pixels count downwards
    assert len(points(page, "copy_previous")) == N - 1
    assert np.allclose(
        np.diff(points(page, "measured")[:, 0]), np.diff(points(page, "measured")[:, 0]).mean(), atol=0.11
    )
    place = (arrays["affine"] @ [*index, 1])[:3]
    said = page.locator(".ba-readout").first.inner_text().replace("−", "-")
    assert f"x {place[0]:g}, y {place[1]:g}, z {place[2]:g} mm (voxel {index[0]}, {index[1]}, {index[2]})" in said
    r = stats.pearsonr(arrays["Y"][TEST, column], arrays["sound"][:, column])[0]
    legend = page.locator(".ba-legend").first.inner_text().replace("−", "-")
    assert f"sound (r {float(f'{r:.3f}'):g})" in legend
    check_all(page, arrays, 60, arrays["sound"][10])


def test_arrow_keys_move_the_crosshair_not_the_notebook(page, lab):
    go(page, 60)
    plane = page.locator(".ba-plane[data-panel=measured][data-plane=coronal]").first
    plane.focus()
    x, y, z = voxel_of(page)
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "PageDown"):
        page.keyboard.press(key)
    page.wait_for_selector(f'.ba-viewer[data-voxel="{x - 1},{y - 1},{z + 2}"]')
    page.keyboard.press(".")
    page.wait_for_selector('.ba-viewer[data-volume="61"]')
    page.keyboard.press(",")
    page.wait_for_selector('.ba-viewer[data-volume="60"]')
    for key in ("b", "a", "d", "d", "x", "m"):  # commands of JupyterLab: new cells, deleted cells
        page.keyboard.press(key)
    assert page.locator(".jp-CodeCell").count() == 4
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"  # focus is seen


def test_silent_play_goes_on_and_pauses(page):
    go(page, 20)
    page.get_by_label("sound", exact=True).uncheck()
    page.get_by_label("speed").first.select_option("16")
    page.locator(".ba-play").first.click()
    page.wait_for_function("() => +document.querySelector('.ba-viewer').dataset.volume > 40")
    page.keyboard.press("Shift+Tab")
    page.locator(".ba-plane").first.focus()
    page.keyboard.press(" ")
    page.wait_for_selector('.ba-viewer[data-playing="false"]')
    page.wait_for_timeout(300)
    first = page.locator(".ba-viewer").first.get_attribute("data-volume")
    page.wait_for_timeout(400)
    assert page.locator(".ba-viewer").first.get_attribute("data-volume") == first
    page.get_by_label("speed").first.select_option("fastest")
    page.locator(".ba-play").first.click()
    page.wait_for_selector('.ba-viewer[data-volume="129"][data-playing="false"]')  # stops at the end
    page.get_by_label("speed").first.select_option("1")


def test_picture_follows_the_sound(page):
    page.wait_for_selector(".ba-viewer[data-sound=ready]", timeout=120_000)
    go(page, 30)
    page.get_by_label("sound", exact=True).check()
    page.evaluate(
        """() => {
             window.seen = [];
             document.querySelector('.ba-viewer').addEventListener('painted', (e) => window.seen.push(e.detail));
           }"""
    )
    page.locator(".ba-play").first.click()
    page.wait_for_function("() => window.seen.filter((s) => s.heard !== null).length >= 6", timeout=60_000)
    page.locator(".ba-play").first.click()
    page.wait_for_selector(".ba-viewer[data-seconds]")
    seen = [one for one in page.evaluate("() => window.seen") if one["heard"] is not None]
    heard = [one["heard"] for one in seen]
    assert all(a < b for a, b in itertools.pairwise(heard))
    for one in seen:  # how late a picture may be depends on the machine and is the benchmark's to say
        assert 30 <= one["volume"] <= one["heard"] / T_R + 0.1
    # Where the sound stops, the picture stops.
    stopped = float(page.locator(".ba-viewer").first.get_attribute("data-seconds"))
    assert heard[-1] <= stopped
    page.wait_for_selector(f'.ba-viewer[data-volume="{int(stopped / T_R + 1e-6)}"]')


def test_scrubbing_while_it_plays_leaves_the_sound_on(page):
    page.wait_for_selector(".ba-viewer[data-sound=ready]", timeout=120_000)
    go(page, 30)
    box = page.get_by_label("sound", exact=True)
    box.check()
    page.locator(".ba-play").first.click()
    page.locator("[data-axis=time]").first.evaluate(
        """(slider) => {
             for (const volume of [40, 41, 42, 43]) {
               slider.value = volume;
               slider.dispatchEvent(new Event('input'));  // before the play() of the last one has settled
             }
             window.seen = [];
             document.querySelector('.ba-viewer').addEventListener('painted', (e) => window.seen.push(e.detail));
           }"""
    )
    page.wait_for_function("() => window.seen.filter((s) => s.heard !== null).length >= 3", timeout=60_000)
    page.locator(".ba-play").first.click()
    assert box.is_checked()


def test_a_browser_that_refuses_the_sound_unticks_its_box(page):
    page.wait_for_selector(".ba-viewer[data-sound=ready]", timeout=120_000)
    go(page, 30)
    box = page.get_by_label("sound", exact=True)
    box.check()
    page.evaluate(
        """() => {
             window.play = HTMLMediaElement.prototype.play;
             HTMLMediaElement.prototype.play = () => Promise.reject(new DOMException('', 'NotAllowedError'));
           }"""
    )
    page.locator(".ba-play").first.click()
    page.wait_for_function("(box) => !box.checked", arg=box.element_handle())
    page.wait_for_selector('.ba-viewer[data-playing="true"]')  # goes on without it
    page.locator(".ba-play").first.click()
    page.evaluate("() => { HTMLMediaElement.prototype.play = window.play; }")
    box.check()


def test_click_on_the_time_axis_goes_there(page):
    go(page, 60)
    axis = page.locator(".ba-svg").first
    box = axis.bounding_box()
    width = box["width"] - 76
    axis.click(position={"x": 64 + width * 24.5 / N, "y": box["height"] / 2})  # waits until nothing moves
    page.wait_for_selector('.ba-viewer[data-volume="24"]')


def test_best_random_and_null_voxel(page, arrays):
    go(page, 60)
    page.get_by_label("best, random and null voxel instead").check()
    page.wait_for_selector(".ba-viewer[data-compared]")
    page.wait_for_function("() => document.querySelector('.ba-viewer').dataset.compared.includes('null')")
    found = {}
    for part in page.locator(".ba-viewer").first.get_attribute("data-compared").split(";"):
        role, voxel, r = part.split(" ")
        found[role] = (tuple(int(v) for v in voxel.split(",")), float(r))
    r = [stats.pearsonr(arrays["Y"][TEST, v], arrays["sound"][:, v])[0] for v in range(arrays["Y"].shape[1])]
    i, j, k = np.argwhere(arrays["mask"])[100]
    assert np.argmax(r) == 100
    assert found["best"] == ((SHAPE[0] - 1 - i, j, k), pytest.approx(max(r), abs=1e-4))
    assert found["null"][1] < found["best"][1]
    texts = page.locator(".ba-svg").first.text_content()
    assert "Null voxel: r = " in texts and "moved on by" in texts
    page.locator(".ba-jumps").get_by_role("button", name="best").click()
    page.wait_for_selector(f'.ba-viewer[data-voxel="{SHAPE[0] - 1 - i},{j},{k}"]')
    page.get_by_label("model", exact=True).first.select_option("history_sound")
    page.get_by_text("a model with a past would have to be fitted again").wait_for()
    page.get_by_label("best, random and null voxel instead").uncheck()
    page.wait_for_selector(".ba-svg path[data-name=copy_previous]")


def test_left_and_right_are_named_only_where_they_are_known(page, lab):
    server, *_ = lab
    first = page.locator(".ba-viewer").first
    assert first.locator(".ba-plane[data-plane=axial] .ba-side").all_inner_texts() == ["L", "R"] * 3
    assert first.locator(".ba-plane[data-plane=sagittal] .ba-side").all_inner_texts() == ["P", "A"] * 3
    server.run_cell(page, 2)
    page.locator(".ba-viewer").nth(1).locator("canvas").first.wait_for()
    page.locator(".ba-viewer").nth(1).locator(".ba-readout", has_text="voxel").wait_for()
    unknown = page.locator(".ba-viewer").nth(1)
    assert unknown.locator(".ba-side").count() == 0
    assert "left and right are not labelled: orientation unknown (sform and qform are 0)." in unknown.inner_text()
    assert " mm" not in unknown.locator(".ba-readout").inner_text()


def test_maps_over_the_mean(page, lab, arrays):
    server, *_ = lab
    server.run_cell(page, 3)
    viewer = page.locator(".ba-viewer").last
    viewer.locator(".ba-readout", has_text="mm").wait_for()
    assert viewer.locator("[data-axis=time]").count() == 0
    assert viewer.locator("canvas[data-panel=map]").count() == 3


def test_every_control_has_a_name(page):
    names = page.evaluate(
        """() => [...document.querySelectorAll('.ba-viewer input, .ba-viewer select, .ba-viewer button, .ba-plane')]
             .map((e) => e.getAttribute('aria-label') || e.textContent || e.closest('label')?.textContent || '')"""
    )
    assert len(names) > 20
    assert all(name.strip() for name in names)


def test_app_wants_its_token_and_shows_the_viewer_on_a_narrow_page(arrays, lab):
    """`make app`, on a notebook of the test's own: loopback, a token, no other host."""
    recipe = (ROOT / "Makefile").read_text().split("\napp:")[1].split("\n\n")[0]
    options = re.findall(r"--Voila\.\S+", recipe)
    assert "--Voila.ip=127.0.0.1" in options and "--Voila.auto_token=True" in options
    import nbformat

    cells = [nbformat.v4.new_code_cell(cell) for cell in (RUN, SHOW)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), arrays["folder"] / "app.ipynb")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = [option for option in options if "auto_token" not in option] + ["--token=secret"]
    command = [sys.executable, "-m", "voila", "app.ipynb", "--no-browser", f"--port={port}", *options]
    command += ["--template=bold_audio"]
    variables = {"PYTHONPATH": str(ROOT), "JUPYTER_PATH": str(ROOT / "notebooks" / "app")}
    with browser.running(command, folder=arrays["folder"], port=port, **variables):
        assert requests.get(url, timeout=60, allow_redirects=False).status_code in (302, 403)
        page = browser.new_page(lab[2], {"width": 390, "height": 1400})
        page.goto(f"{url}/?token=secret")
        page.wait_for_selector(".ba-viewer[data-course]", timeout=120_000)
        wide = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1]
        page.set_viewport_size({"width": 1280, "height": 1400})
        page.wait_for_timeout(300)
        page.locator("[data-axis=time]").fill("55")
        page.wait_for_selector('.ba-viewer[data-volume="55"]')
        assert page.faults == []
