"""Regions by their place in the template: left is left, every way of saying a region, and every reason for none."""

import json
import re
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bold_audio import anatomy, anatomy_figures, atlases, bids, register, workflow
from bold_audio.data import BoldRun
from bold_audio.files import AccessError, DataError, ParameterError
from bold_audio.params import load_params
from bold_audio.runs import RunFiles
from bold_audio.simulated_anatomy import FULL_SHAPE, simulated_head

SHIFT = np.array([2.0, -3.0, 5.0])  # template mm of the point 0 of the scanner, in the stand-in of `register`
NAME = "sub-01_task-film_bold.nii.gz"
SPHERE = {"auditory": {"sphere": [[-54, -20, 3], [57, -14, 2]], "radius": 12}}


@pytest.fixture
def make_run(tmp_path):
    """Function: a full-size run with the simulated head's mask, stored along ``axes``; and its parameters."""

    def make(axes="RAS", *, name=NAME, form_codes=(1, 1), **given):
        image, brain, _, affine = simulated_head(np.random.default_rng(0), shape=FULL_SHAPE)
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
        image, brain = (nib.Nifti1Image(a.astype(np.float32), affine).as_reoriented(turn) for a in (image, brain))
        mask, place = brain.get_fdata() > 0.5, brain.affine
        bold = tmp_path / "data/sub-01/func" / name
        bold.parent.mkdir(parents=True, exist_ok=True)
        files = RunFiles(bold, 2, mask.shape, place, 2.0, 0.0, None, {}, form_codes=form_codes)
        mean = image.get_fdata(dtype=np.float32)
        volumes = np.zeros((2, mask.sum()), np.float32)
        run = BoldRun(files, volumes, mask, place, (0, 1), mean, regions={"brain": np.ones(mask.sum(), bool)})
        folders = {"data_dir": str(tmp_path / "data"), "outputs_dir": str(tmp_path / "outputs")}
        return run, load_params("01", "mine", **(folders | {"regions": SPHERE} | given))

    return make


@pytest.fixture
def shifted(monkeypatch):
    """A stand-in for `register.register`: a shift; what it was called with."""
    calls = []

    def stand_in(image, affine, brain, *, t1w=None):
        calls.append(t1w)
        points = register.grid_points(image.shape, affine).T + SHIFT
        step = nib.affines.from_matvec(np.eye(3), SHIFT)
        return register.Registration({"step": step}, points.reshape(*image.shape, 3).astype(np.float32), 0.95)

    monkeypatch.setattr(register, "register", stand_in)
    return calls


def mm_of(run, roi):
    """Template mm of a region's voxels by nibabel, from the affine alone."""
    return nib.affines.apply_affine(run.affine, np.argwhere(run.mask)[roi]) + SHIFT


def write_image(path, values, affine, *, codes=(1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nib.save(image, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "SRA"])
def test_spheres_lie_at_their_mm_and_left_is_left_in_any_storage(make_run, shifted, axes):
    run, params = make_run(axes)
    assert nib.aff2axcodes(run.affine) == tuple(axes)
    found = anatomy.find_anatomy(run, params)
    assert list(found.regions) == ["auditory", "auditory_left", "auditory_right"] and found.reason is None
    every = nib.affines.apply_affine(run.affine, np.argwhere(run.mask)) + SHIFT
    for side, centre in zip(("left", "right"), SPHERE["auditory"]["sphere"], strict=True):
        roi = found.regions[f"auditory_{side}"]
        np.testing.assert_array_equal(roi, np.sum((every - centre) ** 2, axis=1) <= 144)
        assert (mm_of(run, roi)[:, 0] < 0).all() if side == "left" else (mm_of(run, roi)[:, 0] > 0).all()
        # The oracle of the side: the same region on the grid that nibabel calls closest to RAS+.
        image = nib.Nifti1Image((run.to_grid(roi) > 0).astype(np.uint8), run.affine)
        first = np.argwhere(np.asarray(nib.as_closest_canonical(image).dataobj))[:, 0]
        assert (first < 20).all() if side == "left" else (first >= 20).all()
    both = found.regions["auditory_left"] | found.regions["auditory_right"]
    np.testing.assert_array_equal(both, found.regions["auditory"])


@pytest.mark.slow
def test_a_scan_in_template_space_is_taken_as_it_lies(make_run, shifted):
    run, params = make_run(name="sub-01_task-film_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")
    found = anatomy.find_anatomy(run, params)
    points = nib.affines.apply_affine(run.affine, np.argwhere(run.mask))
    near = np.min([np.linalg.norm(points - c, axis=1) for c in SPHERE["auditory"]["sphere"]], axis=0)
    np.testing.assert_array_equal(found.regions["auditory"], near <= 12)
    assert found.how == "template space" and shifted == []
    anatomy.write_transform(run, params, found)
    assert not anatomy.transform_path(run, params).exists()


@pytest.mark.slow
def test_registered_once_and_the_transform_is_written(make_run, shifted):
    run, params = make_run()
    first, again = anatomy.find_anatomy(run, params), anatomy.find_anatomy(run, params)
    assert len(shifted) == 1 and shifted[0] is None
    np.testing.assert_array_equal(first.regions["auditory"], again.regions["auditory"])
    path = anatomy.transform_path(run, params)
    assert path.name == f"sub-01_task-film_from-boldref_to-{register.TEMPLATE}_mode-points_xfm.json"
    assert not params.subject_path.exists()  # whoever is only compared is left alone
    anatomy.write_transform(run, params, first)
    about = json.loads(path.read_text())
    assert about["Steps"]["step"][0] == [1, 0, 0, 2] and about["To"] == register.TEMPLATE and about["T1w"] is None
    assert re.fullmatch(r"dipy \d+\.\d+.*", about["Library"]) and about["Units"] == "mm"
    assert (about["Overlap"], about["Warnings"]) == (0.95, list(first.warnings))
    image = nib.load(anatomy.transform_path(run, params, ".nii.gz"))
    np.testing.assert_allclose(image.affine, run.affine)
    points = nib.affines.apply_affine(run.affine, (3, 4, 5)) + SHIFT
    np.testing.assert_allclose(image.get_fdata()[3, 4, 5], points, atol=1e-3)
    path.unlink()
    anatomy.write_transform(run, params, anatomy.find_anatomy(run, params))
    assert len(shifted) == 1 and path.is_file()  # written again from the cache
    written = path.stat().st_mtime_ns
    anatomy.write_transform(run, params, first)
    assert path.stat().st_mtime_ns == written
    run.mean_image[20, 30, 30] += 1
    anatomy.write_transform(run, params, anatomy.find_anatomy(run, params))
    assert len(shifted) == 2 and path.stat().st_mtime_ns != written


@pytest.mark.slow
def test_the_t1w_of_the_scans_session_comes_first(make_run, shifted, tmp_path):
    run, params = make_run(name="sub-01_ses-b_task-film_bold.nii.gz")
    head = np.arange(8**3, dtype=np.int16).reshape(8, 8, 8)
    subject = tmp_path / "data/sub-01"
    write_image(subject / "ses-a/anat/sub-01_ses-a_T1w.nii.gz", head, np.eye(4))
    for k in (2, 1):
        write_image(subject / f"ses-b/anat/sub-01_ses-b_run-{k}_T1w.nii.gz", head + k, np.eye(4))
    write_image(subject / "ses-b/anat/sub-01_ses-b_desc-brain_T1w.nii.gz", head, np.eye(4))
    paths = [path.name for path in bids.find_t1w(params, run.files.bold)]
    assert paths == [f"sub-01_ses-{end}_T1w.nii.gz" for end in ("b_run-1", "b_run-2", "a")]
    found = anatomy.find_anatomy(run, params)
    assert found.how == "T1w" and found.warnings == (f"3 T1w images, the first is used: {paths[0]}",)
    np.testing.assert_array_equal(shifted[0][0], head + 1)
    assert found.facts["warnings"] and paths[0] in [path.name for path in found.files]
    write_image(subject / f"ses-b/anat/{paths[0]}", head + 7, np.eye(4))
    anatomy.find_anatomy(run, params)
    assert len(shifted) == 2  # its content counts


@pytest.mark.parametrize("fault, told", [("flat", "has the shape 8 × 8 × 1"), ("codes", "does not say how it lies")])
def test_a_t1w_of_no_use_is_told_and_left_out(make_run, shifted, tmp_path, fault, told):
    run, params = make_run()
    shape, codes = ((8, 8, 1), (1, 1)) if fault == "flat" else ((8, 8, 8), (0, 0))
    write_image(tmp_path / "data/sub-01/anat/sub-01_T1w.nii.gz", np.ones(shape, np.int16), np.eye(4), codes=codes)
    found = anatomy.find_anatomy(run, params)
    assert found.how == "direct" and shifted == [None] and told in found.warnings[0]


def test_a_damaged_t1w_is_an_error(make_run, shifted, tmp_path):
    run, params = make_run()
    (tmp_path / "data/sub-01/anat").mkdir()
    (tmp_path / "data/sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"../.git/annex/objects")
    with pytest.raises(DataError, match="scan is a placeholder"):
        anatomy.find_anatomy(run, params)


@pytest.mark.parametrize(
    "how, reason",
    [
        ({"mask": "none"}, "without a brain mask"),
        ({"form_codes": (0, 0)}, "the header does not say how the scan lies"),
        ({"name": "sub-01_task-film_space-Talairach_bold.nii.gz"}, "space Talairach, which is neither MNI nor"),
        ({"regions": {}}, "asks for none"),
    ],
)
def test_reasons_for_no_regions(make_run, shifted, how, reason):
    run, params = make_run(**how)
    found = anatomy.find_anatomy(run, params)
    assert found.regions == {} and reason in found.reason and shifted == [] and found.how == "none"


def test_a_registration_that_cannot_be_right_gives_no_regions(make_run, monkeypatch):
    run, params = make_run()
    bad = register.Registration({"a": np.eye(4)}, np.zeros((*run.mask.shape, 3), np.float32), 0.3)
    monkeypatch.setattr(register, "register", lambda *a, **k: bad)
    path = anatomy.transform_path(run, params)
    path.parent.mkdir(parents=True)
    path.write_text("of an earlier run")
    found = anatomy.find_anatomy(run, params)
    assert found.regions == {} and "Dice of 0.30" in found.reason and path.exists()
    anatomy.write_transform(run, params, found)
    assert not path.exists()


def test_masks_in_the_scans_grid_and_in_template_space(make_run, shifted, tmp_path):
    run, _ = make_run("LPS")
    own = np.zeros(run.mask.shape, np.uint8)
    own[:, 30:36, 30:34] = 1
    write_image(tmp_path / "data/own.nii.gz", own, run.affine)
    affine = nib.affines.from_matvec(np.diag([2.0, 2, 2]), (-98, -134, -72))
    there = np.zeros((99, 117, 95), np.uint8)
    there[:49, 60:70, 40:50] = 1  # x from -99 to -1, y from -15 to 5, z from 7 to 27
    write_image(tmp_path / "data/there.nii.gz", there, affine)
    spec = {"own": {"mask": "own.nii.gz"}, "there": {"mask": "there.nii.gz"}}
    run, params = make_run("LPS", regions=spec)
    found = anatomy.find_anatomy(run, params)
    np.testing.assert_array_equal(found.regions["own"], own[run.mask] > 0)
    assert {"own_left", "own_right"} <= set(found.regions) and "there_left" not in found.regions
    mm = nib.affines.apply_affine(run.affine, np.argwhere(run.mask)) + SHIFT
    inside = np.all((mm > (-99, -15, 7)) & (mm < (-1, 5, 27)), axis=1)
    np.testing.assert_array_equal(found.regions["there"], inside)
    assert {path.name for path in found.files} == {"own.nii.gz", "there.nii.gz"}
    run, params = make_run(regions={"own": {"mask": "nowhere.nii.gz"}})
    with pytest.raises(ParameterError, match="regions: own: no mask image nowhere.nii.gz"):
        anatomy.find_anatomy(run, params)


def test_a_region_without_voxels_is_told_and_one_side_has_no_halves(make_run, shifted):
    spec = {"far": {"sphere": [[0, 110, 110]], "radius": 2}, "one": {"sphere": [0, -20, 10], "radius": 10}}
    run, params = make_run(regions=spec)
    found = anatomy.find_anatomy(run, params)
    assert list(found.regions) == ["one"] and "region far holds no voxel of the mask" in found.warnings


@pytest.fixture
def atlas(monkeypatch):
    """An atlas of two labels in place of Harvard-Oxford."""
    from nilearn import datasets

    values = np.zeros((99, 117, 95), np.int16)
    values[:, 60:70, 40:50], values[:, 30:40, 40:50] = 1, 7
    affine = nib.affines.from_matvec(np.diag([2.0, 2, 2]), (-98, -134, -72))
    lut = {"index": [0, 1, 7], "name": ["Background", "Frontal Pole", "Heschl's Gyrus"]}
    made = SimpleNamespace(maps=nib.Nifti1Image(values, affine), lut=lut)
    monkeypatch.setattr(datasets, "fetch_atlas_harvard_oxford", lambda *a, **k: made)
    atlases.read_atlas.cache_clear()
    yield
    atlases.read_atlas.cache_clear()


def test_a_label_of_an_atlas(make_run, shifted, atlas):
    run, params = make_run(regions={"heschl": {"atlas": "harvard_oxford", "label": "Heschl's Gyrus"}})
    found = anatomy.find_anatomy(run, params)
    mm = nib.affines.apply_affine(run.affine, np.argwhere(run.mask)) + SHIFT
    inside = np.all((mm[:, 1:] > (-75, 7)) & (mm[:, 1:] < (-55, 27)), axis=1)
    np.testing.assert_array_equal(found.regions["heschl"], inside)
    np.testing.assert_array_equal(found.regions["heschl_left"], inside & (mm[:, 0] < 0))
    run, params = make_run(regions={"heschl": {"atlas": "harvard_oxford", "label": "Heschl Gyrus"}})
    with pytest.raises(
        ParameterError, match="harvard_oxford has no label 'Heschl Gyrus' - did you mean Heschl's Gyrus"
    ):
        anatomy.find_anatomy(run, params)


def test_an_atlas_out_of_reach_says_what_to_do(monkeypatch):
    from nilearn import datasets

    def unreachable(*a, **k):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "fetch_atlas_juelich", unreachable)
    atlases.read_atlas.cache_clear()
    with pytest.raises(AccessError, match="atlas juelich cannot be fetched .no route to host. - fetch it where"):
        atlases.label_map("a", "juelich", "x")


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"a": {"sphere": [[1, 2, 3]], "radious": 3}}, "a has an unknown radious - did you mean radius"),
        ({"a": {"sphere": [[1, 2, 3]]}}, "a lacks its radius"),
        ({"a": {"sphere": [[1, 2]], "radius": 3}}, "a: sphere must be centres"),
        ({"a": {"sphere": [[1, 2, True]], "radius": 3}}, "a: sphere must be centres"),
        ({"a": {"sphere": [], "radius": 3}}, "a: sphere must be centres"),
        ({"a": {"sphere": [[1, 2, 300]], "radius": 3}}, "a: sphere must be centres"),
        ({"a": {"sphere": [[1, 2, 3]], "radius": float("nan")}}, "a: radius must be from 1 to 50 mm"),
        ({"a": {"sphere": [[1, 2, 3]], "mask": "x"}}, "one of sphere, atlas and mask, got sphere and mask"),
        ({"a": {"radius": 3}}, "one of sphere, atlas and mask, got none"),
        ({"a": {"mask": "x", "radius": 3}}, "a is a mask and takes no radius"),
        ({"a": {"mask": 3}}, "a: mask must be the path"),
        (
            {"a": {"atlas": "harvard-oxford", "label": "x"}},
            "unknown atlas harvard-oxford - did you mean harvard_oxford",
        ),
        ({"a": {"atlas": "aal", "label": 3}}, "a: label must be a name"),
        ({"a": 3}, "a must say what it is, got 3"),
        ({"brain": {"mask": "x"}}, "the name 'brain' must be"),
        ({"planted_x": {"mask": "x"}}, "the name 'planted_x' must be"),
        ([1], "must be names with what each region is"),
    ],
)
def test_the_schema_is_closed(spec, message):
    with pytest.raises(ParameterError, match=f"^regions: .*{message}") as told:
        load_params("sim", regions=spec)
    assert "\n" not in str(told.value)


BOTH = {"sphere": [[-12, 0, 0], [12, 0, 0]], "radius": 5}
LEFT = {"sphere": [[-48, 0, 0]], "radius": 5}


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("whole", [BOTH, {"mask": "x"}, {"atlas": "aal", "label": "x"}])
@pytest.mark.parametrize("side", ["a_left", "a_right"])
def test_a_name_that_a_side_of_another_region_gets_is_refused(whole, side, turn):
    """In either order: one of the two would silently be the other's voxels."""
    regions = dict([("a", whole), (side, LEFT)][::turn])
    with pytest.raises(ParameterError, match=f"^regions: {side} is also the name that a side of a gets - rename one"):
        load_params("sim", regions=regions)


@pytest.mark.parametrize("other", [LEFT, LEFT | {"sphere": [[0, 0, 0], [12, 0, 0]]}])
def test_a_name_that_no_side_of_another_region_gets_is_free(other):
    assert list(load_params("sim", regions={"a": other, "a_left": BOTH}).regions) == ["a", "a_left"]
    assert list(load_params("sim", regions={"b": BOTH, "a_left": LEFT}).regions) == ["b", "a_left"]


def test_the_default_is_the_auditory_region():
    assert load_params("09").regions == {"auditory": {"sphere": [[-54.0, -20, 3], [57.0, -14, 2]], "radius": 12.0}}


@pytest.mark.slow
def test_a_small_head_opens_without_regions_and_says_why(small_params):
    subject = workflow.open_subject(small_params())
    assert not any(name.startswith("auditory") for name in subject.run.regions)
    assert "too little to find a place" in subject.anatomy.reason


@pytest.mark.slow
def test_regions_of_an_opened_subject(small_params, sim_dir, monkeypatch):
    """What `open_subject` adds: regions after the whole, the T1w in the key, the reason in provenance."""
    roi, t1w = {}, next(sim_dir.glob("sub-sim/**/*_T1w.nii.gz"))

    def found(run, params):
        roi["auditory"] = np.arange(run.n_voxels) < 5
        return anatomy.Anatomy(roi, how="direct", files=(t1w,))

    plain = workflow.open_subject(small_params())
    monkeypatch.setattr(anatomy, "find_anatomy", found)
    subject = workflow.open_subject(small_params())
    assert next(iter(subject.run.regions)) == "brain" and subject.run.regions["auditory"] is roi["auditory"]
    assert "planted_auditory_left" in subject.run.regions
    assert subject.result_key() != plain.result_key()
    subject.record("here")
    written = json.loads(subject.path("provenance.json").read_text())["here"]["anatomy"]
    assert written["n_voxels"] == {"auditory": 5} and written["how"] == "direct"


@pytest.mark.slow
def test_the_transform_of_the_subject_that_is_run_is_written(small_params, monkeypatch):
    """Of `workflow.open_subject`, which every notebook calls; group maps are made from it."""

    def found(run, params):
        points = np.zeros((*run.mask.shape, 3), np.float32)
        known = {"Key": "a", "Library": "b", "Steps": {}, "T1w": None, "Overlap": 0.9, "Warnings": []}
        return anatomy.Anatomy(how="direct", template_mm=points, overlap=0.9, registration=known)

    monkeypatch.setattr(anatomy, "find_anatomy", found)
    subject = workflow.open_subject(small_params())
    path = anatomy.transform_path(subject.run, subject.params, ".nii.gz")
    assert path.parent == subject.params.subject_path and path.is_file()


@pytest.mark.slow
def test_the_simulated_subject_has_a_t1w_that_says_so(sim_dir, small_params):
    (path,) = bids.find_t1w(small_params(), next(sim_dir.glob("sub-sim/**/*_bold.nii.gz")))
    assert path.name == "sub-sim_ses-mri3t_run-1_T1w.nii.gz" and path.stat().st_size < 3e6
    assert "SIMULATED" in path.with_name(path.name.replace(".nii.gz", ".json")).read_text()
    assert nib.aff2axcodes(nib.load(path).affine) == ("P", "I", "R")


def test_the_picture_draws_every_region_in_three_cuts_with_its_sides(make_run, shifted):
    run, params = make_run("LAS")
    found = anatomy.find_anatomy(run, params)
    grids = {name: run.to_grid(found.regions[name]) > 0 for name in ("auditory_left", "auditory_right")}
    fig = anatomy_figures.plot_placed_regions(run.mean_image, run.affine, grids, title="SIMULATED")
    assert [trace.type for trace in fig.data].count("heatmap") == 6
    assert [trace.type for trace in fig.data].count("contour") == 12
    axial = next(trace for trace in fig.data if trace.type == "contour")
    at = np.argwhere(np.asarray(axial.z) > 0.5)
    left = np.asarray(axial.x)[at[:, 1]]
    assert len(left) and (left + SHIFT[0] < 0).all() and np.all(np.diff(axial.x) > 0)
    said = [note.text for note in fig.layout.annotations]
    assert said.count("<b>L</b>") == said.count("<b>R</b>") == 4 and said.count("<b>A</b>") == 2
    with pytest.raises(ValueError, match="no region with a voxel"):
        anatomy_figures.plot_placed_regions(run.mean_image, run.affine, {}, title="SIMULATED")
