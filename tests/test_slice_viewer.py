"""The slice viewer without a browser: what it shows of a run, an image or maps, and what it answers."""

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy import stats

from bold_audio import slices, soundtrack, viewable
from bold_audio.data import BoldRun
from bold_audio.files import DataError
from bold_audio.runs import RunFiles, SeveralRuns
from bold_audio.slice_viewer import SliceViewer

SHAPE, N, T_R = (5, 6, 7), 60, 2.0
TEST = np.arange(30, 60)


def make_run(tmp_path, *, codes=(1, 1), sidecar=None):
    """A masked run on disk, 60 volumes of a small grid that lies right to left, in two blocks of film."""
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) < 0.8
    mask[2, 3, 3] = True
    affine = np.diag([-4.0, 4, 4, 1])
    affine[:3, 3] = (8, -10, -12)
    Y = (1000 + 10 * rng.standard_normal((N, mask.sum()))).astype(np.float32)
    np.save(tmp_path / "volumes.npy", Y)
    volumes = np.load(tmp_path / "volumes.npy", mmap_mode="r")
    events = pd.DataFrame({"onset": [0.0, 30, 60, 90], "duration": 30.0, "trial_type": ["music", "speech"] * 2})
    files = RunFiles(Path("sub-x_task-film_bold.nii.gz"), N, SHAPE, affine, T_R, 0.0, events, sidecar or {}, codes)
    mean = np.zeros(SHAPE, np.float32)
    mean[mask] = Y[:25].mean(axis=0)
    regions = {"brain": np.ones(mask.sum(), bool), "odd": np.arange(mask.sum()) % 2 == 1}
    return BoldRun(files, volumes, mask, affine, (900.0, 1100.0), mean, regions)


def predictions_of(run):
    """A sound model that is right in one voxel, and one with a past."""
    rng = np.random.default_rng(1)
    sound = 1000 + rng.standard_normal((len(TEST), run.n_voxels)).astype(np.float32)
    sound[:, 11] = run.volumes[TEST, 11] + rng.standard_normal(len(TEST))
    past = sound + 3
    return {("sound", "one_step"): sound, ("history_sound", "one_step"): past, ("sound", "open_loop"): sound - 1}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def heard(run):
    """A viewer, and what it sends."""
    viewer = SliceViewer(run, predictions_of(run), volumes=TEST, maps={"r": run.volumes[0] - 1000})
    sent = []
    viewer.send = lambda content, buffers=None: sent.append((content, buffers))

    def ask(**question):
        sent.clear()
        viewer._on_question(viewer, question, [])
        ((content, buffers),) = sent
        return content, np.frombuffer(buffers[0], np.uint8) if buffers else None

    return viewer, ask


def grid_of(run, values):
    grid = nib.as_closest_canonical(nib.Nifti1Image(run.to_grid(values), run.affine))
    return np.asarray(grid.dataobj)


def planes_of(turned, voxel):
    x, y, z = voxel
    return np.concatenate([np.rot90(p).ravel() for p in (turned[:, :, z], turned[:, y, :], turned[x])])


def test_planes_are_those_of_the_arrays(run, heard):
    _, ask = heard
    given, voxel, k = predictions_of(run), (1, 2, 3), 40
    common = {"type": "planes", "voxel": voxel, "volume": k, "kind": "one_step", "view": "a", "seq": 9, "name": "r"}
    answer, planes = ask(model="history_sound", **common)
    assert (answer["type"], answer["view"], answer["seq"], answer["volume"]) == ("planes", "a", 9, k)
    assert [panel["name"] for panel in answer["panels"]] == ["measured", "predicted", "difference", "map"]
    predicted = given["history_sound", "one_step"][k - 30]
    wanted = [run.volumes[k], predicted, predicted - run.volumes[k], run.mean_image[run.mask], run.volumes[0] - 1000]
    look = [answer["panels"][i] for i in (0, 1, 2, 0, 3)]
    for values, panel, got in zip(wanted, look, np.split(planes, 5), strict=True):
        limits = (panel["low"], panel["high"])
        assert np.array_equal(got, slices.as_bytes(planes_of(grid_of(run, values), voxel), limits))
    for values, panel in zip([*wanted[:3], wanted[4]], answer["panels"], strict=True):
        assert panel["value"] == pytest.approx(grid_of(run, values)[voxel], rel=1e-6, nan_ok=True)
    assert answer["index"] == [SHAPE[0] - 1 - 1, 2, 3]
    assert answer["place"] == pytest.approx((run.affine @ [*answer["index"], 1])[:3])
    # The same colours for all volumes, and for all models of a kind; differences around 0.
    for other in ({"volume": 41}, {"model": "sound"}):
        again, _ = ask(**({"model": "history_sound"} | common | other))
        assert [(p["low"], p["high"]) for p in again["panels"]] == [(p["low"], p["high"]) for p in answer["panels"]]
    assert answer["panels"][2]["low"] == -answer["panels"][2]["high"]


def test_change_is_from_the_mean_and_nothing_is_predicted_before_the_test_part(run, heard):
    _, ask = heard
    voxel, k = (2, 3, 3), 3
    options = {"type": "planes", "voxel": voxel, "model": "sound", "kind": "one_step", "name": "r"}
    answer, planes = ask(volume=k, quantity="change", **options)
    measured, predicted, difference, *_ = answer["panels"]
    assert measured["look"] == "diverging" and measured["low"] == -measured["high"]
    values = run.volumes[k] - run.mean_image[run.mask]
    assert np.array_equal(
        np.split(planes, 5)[0],
        slices.as_bytes(planes_of(grid_of(run, values), voxel), (measured["low"], measured["high"])),
    )
    assert predicted["empty"] == difference["empty"] == "no prediction of this volume"
    assert not np.split(planes, 5)[1].any() and not np.split(planes, 5)[2].any()


def test_on_one_machine_an_answer_fills_a_segment(heard):
    viewer, _ = heard
    sent = []
    viewer.send = lambda content, buffers: sent.append([len(bytes(one)) for one in buffers])
    question = {"type": "planes", "voxel": [1, 2, 3], "volume": 40, "name": "r"}
    for near in (False, True):
        viewer._on_question(viewer, question | {"near": near}, [])
    (alone,), (planes, padding) = sent
    assert alone == planes and planes + padding > 65_536


def test_map_under_the_threshold_is_not_drawn(run, heard):
    _, ask = heard
    options = {"type": "planes", "voxel": (2, 3, 3), "volume": 3, "name": "r"}
    _, planes = ask(threshold=8.0, **options)
    drawn = np.split(planes, 5)[4] > 0
    assert np.array_equal(drawn, np.abs(planes_of(grid_of(run, run.volumes[0] - 1000), (2, 3, 3))) >= 8)
    assert 0 < drawn.sum() < drawn.size


def test_course_of_a_voxel_and_its_r(run, heard):
    _, ask = heard
    given = predictions_of(run)
    index = tuple(np.argwhere(run.mask)[11])
    voxel = slices.make_frame(SHAPE, run.affine).voxel_of(index)
    answer, raw = ask(type="course", voxel=list(voxel), kind="one_step", view="a")
    assert answer["names"] == ["measured", "sound", "history_sound", "copy_previous"]
    values = raw.view("<f4").reshape(4, N)
    assert np.array_equal(values[0], run.volumes[:, 11])
    assert np.array_equal(values[1][TEST], given["sound", "one_step"][:, 11])
    assert np.isnan(values[1][:30]).all()
    assert answer["r"]["sound"] == pytest.approx(stats.pearsonr(run.volumes[TEST, 11], values[1][TEST])[0], abs=1e-5)
    # Copying is held against the models on their volumes, not on the whole run.
    copied = stats.pearsonr(run.volumes[TEST, 11], run.volumes[TEST - 1, 11])[0]
    assert answer["r"]["copy_previous"] == pytest.approx(copied, abs=1e-5)
    outside = np.argwhere(~run.mask)[0]
    answer, raw = ask(
        type="course", voxel=list(slices.make_frame(SHAPE, run.affine).voxel_of(outside)), kind="one_step"
    )
    assert answer["names"] == [] and raw.size == 0


def test_the_best_voxel_comes_with_a_random_and_a_null_one(run, heard):
    viewer, ask = heard
    frame = viewer.scene.frame
    answer, raw = ask(type="compare", model="sound", kind="one_step", view="a")
    assert (answer["model"], answer["kind"]) == ("sound", "one_step")  # by which a late answer is known
    found = {f["role"]: f for f in answer["found"]}
    values = raw.view("<f4").reshape(3, 2, N)
    planted = frame.voxel_of(tuple(np.argwhere(run.mask)[11]))
    assert found["best"]["voxel"] == planted and found["best"]["r"] > 0.95
    assert found["null"]["r"] < 0.8 and "moved on by" in found["null"]["note"]
    assert found["random"]["r"] <= found["best"]["r"]
    for role, course in zip(("best", "random", "null"), values, strict=True):
        r = stats.pearsonr(course[0][TEST], course[1][TEST])[0]
        assert found[role]["r"] == pytest.approx(r, abs=1e-5)
    # A model with a past has no null voxel without predictions of a shifted sound.
    answer, _ = ask(type="compare", model="history_sound", kind="one_step")
    null = answer["found"][2]
    assert null["voxel"] is None and "fitted again to a shifted sound" in null["note"]


def test_null_predictions_that_were_given_are_used(run):
    given = predictions_of(run)
    null = {("history_sound", "one_step"): np.roll(given["history_sound", "one_step"], 5, axis=1)}
    viewer = SliceViewer(run, given, volumes=TEST, null=null)
    about, values = viewer.scene.compared("history_sound", "one_step")
    r = [stats.pearsonr(run.volumes[TEST, v], null["history_sound", "one_step"][:, v])[0] for v in range(run.n_voxels)]
    assert about[2]["r"] == pytest.approx(max(r), abs=1e-5)
    assert values.shape == (6, N)


def test_questions_that_cannot_be_answered_get_an_error_not_silence(heard):
    _, ask = heard
    for question, words in (
        ({"volume": 60, "voxel": [0, 0, 0]}, "volume must be between 0 and 59"),
        ({"volume": 0, "voxel": [0, 0, 9]}, "outside the grid"),
        ({"volume": 0, "voxel": [0, 0, 0], "model": "mlp"}, "no prediction of mlp"),
        ({"volume": 0}, "KeyError"),
    ):
        answer, _ = ask(type="planes", view="a", name="r", **question)
        assert (answer["type"], answer["view"]) == ("error", "a")
        assert words in answer["text"]


def test_show_goes_to_a_place_in_the_scans_own_space(run, heard):
    viewer, _ = heard
    sent = []
    viewer.send = lambda content, buffers=None: sent.append(content)
    viewer.show(volume=44, voxel=(0, 2, 3), model="history_sound")
    assert sent == [{"type": "go", "volume": 44, "model": "history_sound", "voxel": [4, 2, 3]}]
    viewer.show(place=run.affine[:3] @ [0, 2, 3, 1])
    assert sent[1]["voxel"] == [4, 2, 3]
    with pytest.raises(DataError, match="volume must be between"):
        viewer.show(volume=60)
    figure = viewer.figure()
    assert [trace.name for trace in figure.data][:2] == ["measured", "sound"]
    assert "x 8, y -2, z 0 mm" in figure.layout.title.text


def test_sides_and_mm_come_from_the_affine(run, tmp_path):
    about = SliceViewer(run).about
    assert [plane["sides"] for plane in about["planes"]] == ["LR", "LR", "PA"]
    assert about["axes"][0] == {"name": "x (mm)", "at": [-8, -4, 0, 4, 8]}
    assert about["panels"] == ["measured"] and about["reason"] == ""
    unknown = SliceViewer(make_run(tmp_path, codes=(0, 0))).about
    assert "orientation unknown" in unknown["reason"]
    assert [plane["sides"] for plane in unknown["planes"]] == ["", "", ""]
    assert unknown["axes"][0] == {"name": "i (voxel)", "at": [0, 1, 2, 3, 4]}


def test_simulated_is_called_simulated(tmp_path):
    assert SliceViewer(make_run(tmp_path, sidecar={"Manufacturer": "SIMULATED by bold_audio"})).about["note"] == (
        "SIMULATED: nobody was scanned"
    )
    assert SliceViewer(make_run(tmp_path)).about["note"] == ""


def save(path, data, affine=None, *, codes=(1, 1), t_r=1.5):
    image = nib.Nifti1Image(data, np.diag([-2.0, 2, 2, 1]) if affine is None else affine)
    if data.ndim == 4:
        image.header.set_zooms((2, 2, 2, t_r))
        image.header.set_xyzt_units("mm", "sec")
    image.set_sform(image.affine, codes[0])
    image.set_qform(image.affine, codes[1])
    nib.save(image, path)
    return path


def test_open_a_bare_image_unpacks_it_once_and_leaves_it_on_disk(tmp_path):
    data = np.random.default_rng(0).integers(0, 900, (*SHAPE, 9)).astype(np.int16)
    path = save(tmp_path / "sub-09_task-film_bold.nii.gz", data)
    viewer = SliceViewer.open(path, cache=tmp_path / "cache")
    assert isinstance(viewer.scene.measured.values, np.memmap)
    assert viewer.scene.times == pytest.approx(1.5 * np.arange(9))
    answer, planes = viewer.scene.planes(4, (1, 2, 3))
    wanted = planes_of(data[::-1, ..., 4].astype(float), (1, 2, 3))
    panel = answer["panels"][0]
    assert np.array_equal(planes, slices.as_bytes(wanted, (panel["low"], panel["high"])))
    changed, _ = viewer.scene.planes(4, (1, 2, 3), quantity="change")
    mean = data[::-1].astype(float).mean(axis=3)
    assert changed["panels"][0]["value"] == pytest.approx(data[::-1][1, 2, 3, 4] - mean[1, 2, 3], abs=1e-3)
    (folder,) = (tmp_path / "cache").glob("unpacked-*")
    before = folder.stat().st_mtime_ns
    SliceViewer.open(path, cache=tmp_path / "cache")
    assert [f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("unpacked-*")] == [before]


def test_sidecar_says_the_repetition_time(tmp_path):
    path = save(tmp_path / "a_bold.nii", np.zeros((*SHAPE, 3), np.int16), t_r=0)
    assert "no repetition time" in SliceViewer.open(path).about["note"]
    (tmp_path / "a_bold.json").write_text('{"RepetitionTime": 0.608}')
    viewer = SliceViewer.open(path)
    assert (viewer.about["t_r"], viewer.about["note"]) == (0.608, "")


def test_bare_image_of_unknown_orientation_names_no_side(tmp_path):
    about = SliceViewer.open(save(tmp_path / "a.nii", np.zeros((*SHAPE, 3), np.int16), codes=(0, 0))).about
    assert "orientation unknown" in about["reason"]


def test_images_that_cannot_be_shown_are_refused(tmp_path):
    with pytest.raises(DataError, match="no scan at .*nothing.nii"):
        SliceViewer.open(tmp_path / "nothing.nii")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="scan is empty"):
        SliceViewer.open(tmp_path / "empty.nii.gz", cache=tmp_path / "cache")
    path = save(tmp_path / "whole.nii.gz", np.random.default_rng(0).random((*SHAPE, 9)).astype(np.float32))
    (tmp_path / "cut.nii.gz").write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match="scan damaged"):
        SliceViewer.open(tmp_path / "cut.nii.gz", cache=tmp_path / "cache")
    (tmp_path / "long.nii.gz").write_bytes(path.read_bytes() + gzip.compress(bytes(2**22)))
    with pytest.raises(DataError, match="scan holds more volumes than its header says"):
        SliceViewer.open(tmp_path / "long.nii.gz", cache=tmp_path / "cache")
    short = gzip.decompress(path.read_bytes())[:-900]
    (tmp_path / "short.nii").write_bytes(short)
    with pytest.raises(DataError, match="scan damaged"):
        SliceViewer.open(tmp_path / "short.nii")
    assert not list((tmp_path / "cache").glob("unpacked-*/cut*"))


def test_maps_lie_over_the_mean_volume(tmp_path):
    rng = np.random.default_rng(0)
    r, mean = rng.standard_normal(SHAPE).astype(np.float32), rng.random(SHAPE).astype(np.float32)
    r[0] = np.nan
    affine = np.diag([-2.0, 2, 2, 1])
    viewer = SliceViewer.of_maps({"r": save(tmp_path / "r.nii", r), "t": np.abs(r)}, background=mean, affine=affine)
    assert viewer.about["panels"] == ["mean", "map"] and viewer.about["n_volumes"] == 1
    answer, planes = viewer.scene.planes(0, (1, 2, 3), name="r")
    assert [panel["look"] for panel in answer["panels"]] == ["grey", "diverging"]
    assert viewer.scene.planes(0, (1, 2, 3), name="t")[0]["panels"][1]["look"] == "overlay"
    limits = [(p["low"], p["high"]) for p in answer["panels"]]
    wanted = [(mean, limits[0]), (mean, limits[0]), (r, limits[1])]
    for (grid, limit), got in zip(wanted, np.split(planes, 3), strict=True):
        assert np.array_equal(got, slices.as_bytes(planes_of(grid[::-1], (1, 2, 3)), limit))
    alone = SliceViewer.of_maps(tmp_path / "r.nii")
    assert list(alone.about["maps"]) == ["r"] and alone.about["reason"] == ""


def test_maps_on_other_grids_are_refused(tmp_path):
    r = np.zeros(SHAPE, np.float32)
    with pytest.raises(DataError, match="has the grid .5, 6, 6."):
        SliceViewer.of_maps({"r": r}, background=r[..., 1:], affine=np.eye(4))
    with pytest.raises(DataError, match="lies elsewhere"):
        SliceViewer.of_maps({"r": save(tmp_path / "r.nii", r)}, background=save(tmp_path / "m.nii", r, np.eye(4)))
    with pytest.raises(DataError, match="no map"):
        SliceViewer.of_maps({})
    with pytest.raises(DataError, match="use run.to_grid"):
        SliceViewer.of_maps({"r": np.zeros(5)})
    with pytest.raises(DataError, match="no map at"):
        SliceViewer.of_maps(tmp_path / "none.nii")


def test_maps_of_a_run_must_fit_it(run):
    with pytest.raises(DataError, match="one value per voxel"):
        SliceViewer(run, maps={"r": np.zeros(3)})
    grid = viewable.scene_of_run(run, maps={"r": run.to_grid(run.volumes[0])}).maps["r"]
    assert np.array_equal(grid, run.volumes[0])


def test_sound_is_sent_beside_the_other_answers(run, tmp_path):
    y = np.sin(np.arange(16_000 * 20) / 3).astype(np.float32)
    soundfile.write(tmp_path / "film.wav", y, 16_000)
    viewer, sent = SliceViewer(run, sound=tmp_path / "film.wav"), []
    assert viewer.about["sound"] is True
    viewer.send = lambda content, buffers=None: sent.append((content, buffers))
    viewer._on_question(viewer, {"type": "sound", "view": "a", "plays": ["audio/ogg"]}, [])
    for thread in viewer.threads:
        thread.join()
    (loud, [envelope]), (sound, [packed]) = sent
    assert (loud["type"], sound["type"], sound["mime"]) == ("loudness", "sound", "audio/ogg")
    assert (sound["start"], sound["duration"]) == (0.0, pytest.approx(20))
    assert bytes(packed[:4]) == b"OggS"
    share = (np.frombuffer(envelope, np.uint8) > 0).mean()
    assert share == pytest.approx(20 / 120, abs=0.01)  # 20 s of sound in 120 s of scan
    sent.clear()
    viewer._on_question(viewer, {"type": "sound", "view": "a", "plays": ["audio/none"]}, [])
    for thread in viewer.threads:
        thread.join()
    assert sent[-1][0]["type"] == "error" and sent[-1][0]["text"].startswith("no sound: this browser plays neither")


def test_one_sound_serves_all_runs(run, tmp_path):
    soundfile.write(tmp_path / "film.wav", np.full(16_000 * 5, 0.5), 16_000)
    half = replace(run.files, n_volumes=N // 2, onset=10.0)
    viewer = SliceViewer(replace(run, files=SeveralRuns((half, half))), sound=tmp_path / "film.wav")
    track = viewer._sound.track
    loud = np.flatnonzero(np.abs(track.y) > 0.1) / soundtrack.RATE + track.onset
    # The second run begins at 60 s, and each run's sound 10 s after it.
    begins = loud[np.r_[True, np.diff(loud) > 1]]
    assert begins == pytest.approx([10.0, 70.0], abs=0.01) and track.duration == pytest.approx(65.0)


def test_a_scene_takes_no_sound(run, tmp_path):
    shown = viewable.scene_of_run(run)
    assert SliceViewer(shown).about["sound"] is False
    with pytest.raises(DataError, match="a Scene does not know when its sound begins - give SliceViewer the run"):
        SliceViewer(shown, sound=tmp_path / "film.wav")
