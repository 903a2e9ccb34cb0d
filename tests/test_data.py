"""A BIDS run is read as it is, left out where it is bad, and its test part shapes nothing."""

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from processes import peak
from refusals import refused

from bold_audio import data, images
from bold_audio.brain import write_dataset_description, write_map, write_volumes
from bold_audio.data import (
    BoldRun,
    downsample_grid,
    load_run,
    smooth_volumes,
)
from bold_audio.files import ParameterError, project_root
from bold_audio.params import load_params
from bold_audio.runs import locate_runs

SHAPE = (14, 15, 13)
N_VOLUMES = 20
TRAIN = np.arange(2, 12)
T_R = 0.608
AFFINE = np.array([[-4.0, 0.3, 0, 20], [0.2, 4, 0.1, -30], [0, 0.4, 3.9, -25], [0, 0, 0, 1]])
EVENTS = "onset\tduration\ttrial_type\n0\t6\tmusic\n6\t6\tspeech\n"
NAME = "sub-01_ses-mri3t_task-film_run-1_bold"


def head(dtype=np.int16, seed=0):
    """A bright, noisy ball on a dark, noisy background; values of a raw scan."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    inside = (np.sum(place**2, axis=0) < 0.6)[..., None]
    return (20 + 1000 * inside + rng.standard_normal((*SHAPE, N_VOLUMES)) * (3 + 10 * inside)).astype(dtype)


@dataclass
class Tree:
    """A BIDS tree of one run that the test may spoil."""

    root: Path

    @property
    def func(self):
        return self.root / "sub-01" / "ses-mri3t" / "func"

    @property
    def bold(self):
        return self.func / f"{NAME}.nii.gz"

    def params(self, **given):
        run = {"session": "mri3t", "task": "film", "run": 1, "mask": "none"}
        folders = {"data_dir": str(self.root), "outputs_dir": str(self.root.parent / f"{self.root.name}-outputs")}
        return load_params("01", "tiny", **(folders | run | given))

    def locate(self, **given):
        return locate_runs(self.params(**given))

    def load(self, train=TRAIN, **given):
        params = self.params(**given)
        return load_run(locate_runs(params), params, train=train)

    def edit(self, *changes):
        """Write bytes into the unpacked scan, each change (position, bytes); the gzip around it is whole."""
        content = bytearray(gzip.decompress(self.bold.read_bytes()))
        for position, new in changes:
            content[position : position + len(new)] = new
        self.bold.write_bytes(gzip.compress(bytes(content), compresslevel=1))


@pytest.fixture
def tree(tmp_path):
    """Function: a BIDS tree below tmp_path with one run."""

    def make(volumes=None, *, name="data", t_r=T_R, unit="sec", sidecar=(("RepetitionTime", T_R),), events=EVENTS,
             affine=AFFINE, ending=".nii.gz"):  # fmt: skip
        made = Tree(tmp_path / name)
        made.func.mkdir(parents=True)
        image = nib.Nifti1Image(head() if volumes is None else volumes, affine)
        image.header.set_xyzt_units("mm", unit)
        if image.ndim > 3:
            image.header.set_zooms((*image.header.get_zooms()[:3], t_r, *image.header.get_zooms()[4:]))
        nib.save(image, made.func / f"{NAME}{ending}")
        if sidecar is not None:
            (made.func / f"{NAME}.json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(dict(sidecar)))
        if events is not None:
            (made.func / f"{NAME.removesuffix('_bold')}_events.tsv").write_text(events)
        return made

    return make


def spoilt(volumes, *spots):
    """A float copy with (i, j, k, volume or slice, value) written into it."""
    volumes = volumes.astype(np.float32)
    for i, j, k, when, value in spots:
        volumes[i, j, k, when] = value
    return volumes


# --- repetition time --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_header", "unit", "in_sidecar", "source", "t_r"),
    [
        (0.608, "sec", 0.608, None, 0.608),
        (608, "msec", 0.608, None, 0.608),
        (608000, "usec", 0.608, None, 0.608),
        (0.608, "unknown", 0.608, None, 0.608),
        (0.6079, "sec", 0.608, None, 0.608),  # headers round; the sidecar's is the one taken
        (2.0, "sec", None, None, 2.0),
        (2000, "msec", None, None, 2.0),
        (2.0, "sec", 0.608, "sidecar", 0.608),
        (2.0, "sec", 0.608, "header", 2.0),
        (608, "msec", 2.0, "header", 0.608),
    ],
)
def test_the_repetition_time_is_found(tree, in_header, unit, in_sidecar, source, t_r):  # S10
    sidecar = {} if in_sidecar is None else {"RepetitionTime": in_sidecar}
    files = tree(t_r=in_header, unit=unit, sidecar=sidecar).locate(t_r_source=source)
    assert files.t_r == pytest.approx(t_r, rel=1e-6)
    np.testing.assert_allclose(files.volume_times, np.arange(N_VOLUMES) * t_r, rtol=1e-6)


@pytest.mark.parametrize(
    ("in_header", "unit", "in_sidecar", "source", "match"),
    [
        (2.0, "sec", 0.608, None, "repetition time 2 s in the header, 0.608 s in the sidecar - set t_r_source"),
        (608, "sec", 0.608, None, "repetition time 608 s in the header, 0.608 s in the sidecar - set t_r_source"),
        (0.0, "sec", 0.608, None, "repetition time 0 s in the header, 0.608 s in the sidecar - set t_r_source"),
        (0.65, "sec", 0.608, None, "0.65 s in the header"),
        (0.608, "sec", None, "sidecar", "there is no RepetitionTime - set t_r_source header"),
        (0.0, "sec", None, None, "a repetition time of 0 s cannot be right - "),
        (608, "sec", 608, None, "a repetition time of 608 s cannot be right - "),
        (0.608, "sec", float("nan"), None, "RepetitionTime in the sidecar must be a number, got nan - "),
        (0.608, "sec", -0.608, "sidecar", "a repetition time of -0.608 s cannot be right - "),
    ],
)
def test_a_doubtful_repetition_time_is_refused(tree, in_header, unit, in_sidecar, source, match):  # S10
    sidecar = {} if in_sidecar is None else {"RepetitionTime": in_sidecar}
    with refused(match) as caught:
        tree(t_r=in_header, unit=unit, sidecar=sidecar).locate(t_r_source=source)
    assert NAME in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"RepetitionTime": "fast"}', "RepetitionTime in the sidecar must be a number, got 'fast' - mend"),
        ('{"RepetitionTime": [0.608]}', r"RepetitionTime in the sidecar must be a number, got \[0\.608\] - mend"),
        ("[0.608]", "must hold names and values - fetch it again"),
    ],
)
def test_a_sidecar_of_another_shape_is_refused(tree, content, says):
    with refused(says):
        tree(sidecar=content).locate()


def test_a_damaged_sidecar_is_not_to_be_deleted(tree):
    with refused(f"{NAME}.json is not readable JSON") as caught:
        tree(sidecar='{"RepetitionTime": \n').locate()
    assert "delete" not in str(caught.value)


def test_an_unknown_unit_code_is_no_crash(tree):
    made = tree()
    made.edit((123, b"\x42"))
    assert made.locate(t_r_source="sidecar").t_r == T_R


def test_the_sidecar_of_the_whole_task_is_inherited(tree):
    made = tree(sidecar=None, t_r=0.0)
    (made.root / "task-film_bold.json").write_text(json.dumps({"RepetitionTime": T_R, "EchoTime": 0.03}))
    files = made.locate(t_r_source="sidecar")
    assert (files.t_r, files.sidecar["EchoTime"]) == (T_R, 0.03)


def test_the_runs_own_sidecar_wins_over_the_inherited_one(tree):
    made = tree()
    (made.root / "task-film_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    assert made.locate().t_r == T_R


def test_what_the_runs_own_sidecar_lacks_is_inherited(tree):
    made = tree(sidecar={"EchoTime": 0.03}, t_r=1.0)
    (made.root / "task-film_bold.json").write_text(json.dumps({"RepetitionTime": T_R}))
    assert made.locate(t_r_source="sidecar").t_r == T_R


# --- onset of the sound -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "given", "onset"),
    [
        ("0\t30\tmusic\n30\t30\tspeech\n", None, 0.0),
        ("-20.000\t744.000\tstory\n", None, -20.0),
        ("0\t5\tfixation\n8.5\t30\tspeech\n38.5\t30\tmusic\n", None, 8.5),
        ("-20.000\t744.000\tstory\n", 3.25, 3.25),
        ("12.5\t30\tspeech\n", 0, 0.0),
        ("1\t1\tface\n", -4, -4.0),
    ],
)
def test_the_sound_begins_where_the_events_or_the_caller_say(tree, rows, given, onset):
    files = tree(events="onset\tduration\ttrial_type\n" + rows).locate(audio_onset=given)
    assert files.onset == onset
    assert len(files.events) == rows.count("\n")


@pytest.mark.parametrize(
    ("events", "what"),
    [
        (None, "there is no"),
        ("onset\tduration\ttrial_type\n1\t1\tface\n2\t1\tn/a\n", "no music, speech or story event in"),
    ],
)
def test_without_a_sound_event_the_onset_is_never_guessed(tree, events, what):
    with refused(f"^{what} sub-01_.*_events.tsv - set audio_onset"):
        tree(events=events).locate()


def test_without_events_a_given_onset_is_enough(tree):
    files = tree(events=None).locate(audio_onset=1.5)
    assert (files.onset, files.events) == (1.5, None)


@pytest.mark.parametrize("onset", ["n/a", "soon"])
def test_an_onset_that_is_no_number_is_refused(tree, onset):
    with refused("events.tsv"):
        tree(events=f"onset\tduration\ttrial_type\n{onset}\t30\tmusic\n").locate()


def test_the_first_sound_event_is_the_earliest(tree):
    assert tree(events="onset\tduration\ttrial_type\n30\t30\tspeech\n0\t30\tmusic\n").locate().onset == 0.0


@pytest.mark.parametrize("events", ["onset\tduration\n0\t30\n", "onset\tduration\ttrial_type\n"])
def test_events_without_kinds_do_not_matter_when_the_onset_is_given(tree, events):
    assert tree(events=events).locate(audio_onset=0).onset == 0.0


# --- scans that are missing or bad ------------------------------------------------------


def test_a_missing_real_subject_tells_how_to_get_it(tmp_path):  # S06
    with refused("sub-09 is not there: .*bold-audio fetch --subject 09.*feature_source annotations") as caught:
        locate_runs(load_params("09", data_dir=str(tmp_path)))
    wanted = tmp_path / "sub-09/ses-mri3t/func/sub-09_ses-mri3t_task-film_run-1_bold.nii.gz"
    assert str(wanted) in str(caught.value)
    assert "subjects there: none" in str(caught.value)


def test_a_missing_subject_of_another_dataset_lists_who_is_there(tree):  # S06
    made = tree()
    for k in range(2, 16):
        (made.root / f"sub-{k:02d}").mkdir()
    (made.root / "sub-00.txt").touch()
    everyone = ", ".join(f"{k:02d}" for k in range(1, 13))
    with refused(f"unknown subject '77' - did you mean 07. subjects of tiny: {everyone}, …", ParameterError) as caught:
        locate_runs(load_params("77", "tiny", data_dir=str(made.root)))
    assert "fetch" not in str(caught.value)


def test_a_missing_simulated_subject_tells_how_to_make_it(tmp_path):
    with refused("sub-sim is not there: .* - make it with 'bold-audio simulate'"):
        locate_runs(load_params("sim", data_dir=str(tmp_path / "none")))


def test_a_run_of_another_task_is_missing(tree):
    with refused("sub-01 is not there: .*task-rest.* - check session, task, run, space and bids_entities"):
        tree().locate(task="rest")


@pytest.mark.parametrize("subject", ["99", "01"])
def test_a_subject_that_ds003688_does_not_have_is_refused(subject, tmp_path):
    with pytest.raises(ParameterError, match="04"):
        locate_runs(load_params(subject, data_dir=str(tmp_path)))


WHOLE = object()
BAD_FILES = {
    "empty": (b"", "scan is empty: .* - fetch it again"),
    "cut at half": (0.5, "scan damaged: .* - fetch it again"),
    "cut in the header": (0.001, "scan cannot be read: .* - fetch it again"),
    "git-annex pointer": (b"../../.git/annex/objects/xx/yy", "placeholder .first bytes b'../../.git/annex"),
    "HTML": (b"<html>\n<body>404</body>\n" * 50, "placeholder .first bytes b'<html>"),
    "packed HTML": (gzip.compress(b"<html>\n<body>404</body>\n" * 50), "scan cannot be read: .* - fetch it again"),
    "not packed": (WHOLE, "scan is not compressed"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gives_one_line(tree, kind):  # S01 S04 S05 S07
    content, match = BAD_FILES[kind]
    made = tree()
    whole = made.bold.read_bytes()
    if isinstance(content, float):
        content = whole[: int(content * len(whole))]
    made.bold.write_bytes(gzip.decompress(whole) if content is WHOLE else content)
    with refused(match) as caught:
        made.load()
    assert str(made.bold) in str(caught.value)


def test_an_unknown_data_type_gives_one_line(tree):  # S18
    made = tree()
    made.edit((70, (999).to_bytes(2, "little")))
    with refused("scan cannot be read: .*999.* - fetch it again"):
        made.locate()


NOWHERE = np.float32(np.nan).tobytes()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            (42, np.array([512, 512, 512, 32], "<i2").tobytes()),
            "cannot hold the shape .512, 512, 512, 32. of its header",
        ),
        ((48, (-5).to_bytes(2, "little", signed=True)), "scan (damaged|cannot be read)"),
        ((108, np.float32(np.inf).tobytes()), "scan cannot be read: .*infinity"),
        ((70, (32).to_bytes(2, "little") + (64).to_bytes(2, "little")), "scan holds colours or complex numbers"),
        ((280, NOWHERE), "scan has a header that puts it nowhere"),
        ((280, bytes(16)), "scan has a header that puts it nowhere"),
    ],
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_header_that_cannot_be_is_refused_before_its_size_is_asked_for(tree, change, match, ending):
    made = tree()
    made.edit(change)
    if ending == ".nii":
        (made.func / f"{NAME}.nii").write_bytes(gzip.decompress(made.bold.read_bytes()))
        made.bold.unlink()
    with peak() as most, refused(match):
        made.load()
    assert most() < 50e6


def test_a_small_file_that_unpacks_without_end_is_left_alone(tree):
    made = tree()
    zeros = gzip.compress(bytes(2**24))
    with made.bold.open("ab") as handle:
        for _ in range(60):  # a gigabyte in a megabyte
            handle.write(zeros)
    with peak() as most, refused("scan holds more volumes than its header says"):
        made.load()
    assert most() < 50e6


def test_what_nibabel_mends_in_a_header_is_told_in_the_report_and_not_on_stderr(tree, caplog):
    made = tree()
    made.edit((254, (99).to_bytes(2, "little")))  # sform_code
    assert "the header was mended: sform_code 99 not valid" in " ".join(made.locate().warnings)
    made.load()
    assert caplog.records == []


@pytest.mark.parametrize("there", ["folder", "link to nothing", "link to itself"])
def test_what_is_no_file_is_refused(tree, there):
    made = tree()
    made.bold.unlink()
    if there == "folder":
        made.bold.mkdir()
    else:
        made.bold.symlink_to("nothing" if there == "link to nothing" else made.bold.name)
    with refused("scan is no file"):
        made.locate()


@pytest.mark.parametrize(
    ("sidecar", "match"),
    [
        ("[" * 100_000, "not readable JSON"),
        (f'{{"RepetitionTime": 1{"0" * 400}}}', "RepetitionTime in the sidecar must be a number"),
        (f'{{"RepetitionTime": {{"{"x" * 5000}": 1}}}}', "RepetitionTime in the sidecar must be a number"),
        ('{"RepetitionTime": 0.608, "StartTime": 1e300}', "StartTime in the sidecar must be a number"),
    ],
)
def test_a_sidecar_of_a_stranger_is_refused_in_one_line(tree, sidecar, match):
    with refused(match) as caught:
        tree(sidecar=sidecar).locate()
    assert len(str(caught.value)) <= 1000


def test_region_names_that_are_no_list_name_nothing(tree):
    assert list(tree(sidecar={"RepetitionTime": T_R, "ROINames": 7}).load().regions) == ["volume"]


@pytest.mark.parametrize("onset", ["1e15", "-1e15", "9" * 400])
def test_a_sound_that_begins_in_another_age_is_refused(tree, onset):
    with refused("an onset of the sound of .* s cannot be right|onset in .* must be a number of seconds"):
        tree(events=f"onset\tduration\ttrial_type\n{onset}\t6\tmusic\n").load()


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1)])
def test_a_single_volume_is_no_run(tree, shape):  # S11
    with refused("holds one volume of shape .* - a film run needs a 4-D image"):
        tree(np.ones(shape, np.int16)).locate()


def test_a_header_that_promises_more_volumes_gives_one_line(tree):  # S09
    made = tree()
    made.edit((48, (641).to_bytes(2, "little")))
    with refused("scan damaged: .* - fetch it again"):
        made.load()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_header_that_promises_fewer_volumes_is_refused(tree, ending):  # S08
    made = tree(ending=ending)
    path = made.func / f"{NAME}{ending}"
    content = bytearray(gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes())
    content[48:50] = (12).to_bytes(2, "little")
    path.write_bytes(gzip.compress(bytes(content), compresslevel=1) if ending == ".nii.gz" else bytes(content))
    assert nib.load(path).get_fdata().shape[3] == 12, "nibabel says nothing"
    with refused("scan holds more volumes than its header says: .* - fetch it again"):
        made.load()


@pytest.mark.parametrize(("slope", "told"), [(np.nan, False), (0, False), (1, False), (np.inf, True), (-np.inf, True)])
def test_a_slope_that_scales_nothing_leaves_the_values_and_infinity_is_told(tree, slope, told):  # S16
    made = tree()
    made.edit((112, np.float32(slope).tobytes()))
    assert ("scl_slope" in " ".join(made.locate().warnings)) == told
    np.testing.assert_array_equal(made.load().volumes[3], head()[..., 3].ravel())


def test_other_grids_are_read(tree):  # S12; that a model refuses another grid is in test_serving
    assert tree(head()[:10, :, :12]).load().mask.shape == (10, 15, 12)


def test_two_orientations_that_differ_give_the_sform_and_a_map_that_lies_there(tree):  # S17
    made = tree()
    image = nib.load(made.bold)
    image.set_qform(np.diag([4.0, 4, 4, 1]), code=1)
    image.set_sform(AFFINE, code=2)
    nib.save(image, made.bold)
    run = made.load()
    np.testing.assert_allclose(run.affine, AFFINE, atol=1e-5)
    path = write_map(run, made.params(), run.volumes[0], model="m", stat="r", description="d")
    np.testing.assert_allclose(nib.load(path).affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(("end", "right"), [(12.16, True), (12.5, True), (8, True), (13, False), (400, False)])
def test_events_that_end_after_the_scan_are_refused(tree, end, right):  # S19
    made = tree(events=f"onset\tduration\ttrial_type\n0\t6\tmusic\n6\t{end - 6}\tspeech\n")
    if right:
        assert made.load().files.onset == 0
    else:
        with refused(
            f"events end at {end:.1f} s, the scan at 12.2 s .* - put this run's events beside it, or set audio"
        ):
            made.load()
    assert made.load(audio_onset=0).files.onset == 0


def test_events_that_end_long_before_the_scan_are_refused(tree):  # S19
    scan = np.repeat(head()[:10, :10, :10], 4, axis=3)
    with refused("events end at 12.0 s, the scan at 48.6 s"):
        tree(scan).load()


def test_a_scan_without_its_last_bytes_is_refused(tree):  # S02
    made = tree()
    made.bold.write_bytes(made.bold.read_bytes()[:-8])
    with refused("scan damaged"):
        made.load()


def test_a_scan_with_one_bit_flipped_is_refused(tree):  # S03
    made = tree()
    content = bytearray(gzip.compress(gzip.decompress(made.bold.read_bytes()), compresslevel=0))
    content[len(content) // 2] ^= 0b100
    made.bold.write_bytes(bytes(content))
    with refused("scan damaged"):
        made.load()


# --- volumes ----------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["none", "brain"])
def test_the_volumes_are_the_scans_own_values(tree, mask):
    run = tree().load(mask=mask)
    raw = head().astype(np.float32)
    np.testing.assert_array_equal(run.volumes, np.stack([raw[..., k][run.mask] for k in range(N_VOLUMES)]))
    assert run.volumes.dtype == np.float32
    assert run.volumes.flags.c_contiguous
    assert (run.n_voxels, run.mask.shape, run.files.n_volumes) == (run.mask.sum(), SHAPE, N_VOLUMES)
    np.testing.assert_allclose(run.affine, AFFINE, atol=1e-5)
    assert run.value_range == (raw[..., TRAIN].min(), raw[..., TRAIN].max())  # of the whole grid, not of the mask
    np.testing.assert_allclose(run.mean_image, raw[..., TRAIN].mean(axis=3), rtol=1e-5)
    assert run.whole == {"none": "volume", "brain": "brain"}[mask]


def test_a_brain_mask_keeps_the_head_and_not_the_air(tree):
    run = tree().load(mask="brain")
    inside = head().mean(axis=3) > 500
    assert np.mean(run.mask[inside]) > 0.7
    assert not run.mask[~inside].any()


def test_values_come_back_to_their_place_on_the_grid(tree):
    run = tree().load(mask="brain")
    grid = run.to_grid(run.volumes[3])
    np.testing.assert_array_equal(grid[run.mask], head()[..., 3][run.mask])
    assert np.isnan(grid[~run.mask]).all()
    assert (grid.shape, grid.dtype) == (SHAPE, np.float32)


def test_a_scan_that_is_not_packed_reads_the_same(tree):
    run, packed = tree(name="plain", ending=".nii").load(), tree(name="packed").load()
    assert run.files.bold.suffix == ".nii"
    assert run.files.entities == packed.files.entities == NAME.removesuffix("_bold")
    np.testing.assert_array_equal(run.volumes, packed.volumes)


def integers_with_slope(made):
    """Give the stored integers of a scan the slope 0.5 in its header, as converters of Philips scans do."""
    made.edit((112, np.float32(0.5).tobytes()), (116, np.float32(0).tobytes()))
    return made


def peak_of(made, **given):
    """Most memory that reading took, in float32 copies of the whole scan."""
    import nilearn.image  # noqa: F401 - its import is not counted

    params = made.params(**given)
    files = locate_runs(params)
    with peak() as most:
        load_run(files, params, train=np.arange(5, 40))
    return most() / (4 * files.n_volumes * np.prod(files.grid))


@pytest.fixture
def bigger():
    return np.random.default_rng(0).integers(500, 1000, (20, 20, 20, 60)).astype(np.int16)


@pytest.mark.parametrize(
    ("given", "most"),  # a float64 copy alone is 2
    [({}, 3), ({"downsample": 2}, 2), ({"detrend": True}, 4.5), ({"smoothing_fwhm": 6}, 4.5)],
    ids=str,
)
def test_reading_never_makes_a_float64_copy(tree, bigger, given, most):
    assert peak_of(tree(bigger), **given) < most


@pytest.mark.slow
def test_reading_scaled_integers_never_makes_a_float64_copy(tree, bigger):
    assert peak_of(integers_with_slope(tree(bigger))) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [{}, {"downsample": 2}, {"smoothing_fwhm": 6}, {"realign": True}, {"run": [1, 2]}], ids=str
)
def test_a_scan_larger_than_memory_is_read_slab_by_slab(tree, monkeypatch, given):
    given = given | {"audio_onset": 0}
    volumes = np.random.default_rng(0).integers(500, 1000, (20, 20, 20, 300)).astype(np.int16)
    made = tree(volumes)
    for path in list(made.func.iterdir()):
        shutil.copy(path, path.with_name(path.name.replace("run-1", "run-2")))
    whole = made.load(train=np.arange(5, 200), **given)
    monkeypatch.setattr(images, "SLAB", 2**18)  # 16 volumes
    params = made.params(**given, outputs_dir=str(made.root.parent / "again"))
    files = locate_runs(params)
    with peak() as most:
        slabs = load_run(files, params, train=np.arange(5, 200))
    assert most() < 0.7 * volumes.nbytes  # a third of a float32 copy
    np.testing.assert_array_equal(slabs.volumes, whole.volumes)
    np.testing.assert_array_equal(slabs.mean_image, whole.mean_image)
    assert slabs.value_range == whole.value_range
    assert sorted(path.name for path in Path(slabs.volumes.filename).parent.iterdir()) == [
        "counts.json", "grid.npz", "volumes.npy"
    ]  # fmt: skip


def test_integers_with_a_slope_are_scaled(tree):
    run = integers_with_slope(tree()).load()
    np.testing.assert_array_equal(run.volumes[5], head()[..., 5].ravel() * np.float32(0.5))


# --- the test part shapes nothing -------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"mask": "brain"},
        {"mask": "none"},
        {"mask": "brain", "detrend": True},
        {"downsample": 2},
        {"mask": "brain", "smoothing_fwhm": 6},
        {"mask": "brain", "realign": True},
        {"mask": "brain", "confounds": ["high_variance"]},
    ],
    ids=str,
)
def test_changing_every_later_volume_changes_nothing_fitted(tree, given):
    volumes = head()
    changed = volumes.copy()
    after = slice(TRAIN[-1] + 1, None)
    changed[..., after] = np.random.default_rng(1).integers(0, 9000, changed[..., after].shape)
    first, second = tree(volumes, name="a").load(**given), tree(changed, name="b").load(**given)
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_array_equal(first.mean_image, second.mean_image)
    np.testing.assert_array_equal(first.volumes[: TRAIN[-1] + 1], second.volumes[: TRAIN[-1] + 1])
    assert first.value_range == second.value_range
    assert first.counts == second.counts
    assert not np.allclose(first.volumes[after], second.volumes[after])


def test_changing_a_train_volume_changes_what_is_fitted(tree):
    changed = head()
    changed[..., TRAIN[3]] //= 2
    changed[0, 0, 0, TRAIN[4]] = 5000
    first, second = tree(name="a").load(mask="brain"), tree(changed, name="b").load(mask="brain")
    assert not np.array_equal(first.mean_image, second.mean_image)
    assert second.value_range == (second.value_range[0], 5000) != first.value_range


def test_volumes_before_train_shape_nothing(tree):
    changed = head()
    changed[..., : TRAIN[0]] = 9000
    first, second = tree(name="a").load(detrend=True), tree(changed, name="b").load(detrend=True)
    assert first.value_range == second.value_range
    np.testing.assert_array_equal(first.volumes[TRAIN], second.volumes[TRAIN])


def test_a_voxel_that_varies_only_in_test_is_left_out(tree):
    volumes = head()
    volumes[7, 7, 6, TRAIN] = 1000  # noise before and after
    run = tree(volumes).load(mask="brain")
    assert not run.mask[7, 7, 6]
    assert run.counts["constant in train"] == 1


# --- voxels left out --------------------------------------------------------------------


def test_constant_voxels_are_left_out_and_counted(tree):  # S14
    volumes = head()
    volumes[5:8, 7, 6] = 1000
    run, whole = tree(volumes, name="a").load(mask="brain"), tree(name="b").load(mask="brain")
    assert run.counts == {"constant in train": 3, "not finite": 0}
    assert run.n_voxels == whole.n_voxels - 3
    assert not run.mask[5:8, 7, 6].any()


def test_without_a_mask_every_voxel_stays(tree):
    volumes = head()
    volumes[5:8, 7, 6] = 1000
    assert tree(volumes).load(mask="none").n_voxels == np.prod(SHAPE)


@pytest.mark.parametrize("mask", ["brain", "none"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_few_voxels_that_are_no_numbers_are_left_out_and_counted(tree, mask, value):  # S13
    volumes = spoilt(head(), (7, 7, 6, 3, value), (6, 7, 6, slice(None), value), (7, 8, 6, 15, value))
    run = tree(volumes).load(mask=mask)
    assert run.counts["not finite"] == 3
    assert not run.mask[[7, 6, 7], [7, 7, 8], 6].any()
    assert np.isfinite(run.volumes).all()
    assert np.isfinite(run.mean_image).all()
    assert np.isfinite(run.value_range).all()


@pytest.mark.parametrize(("share", "words"), [(0.02, "2%"), (1.0, "100%")])
def test_many_voxels_that_are_no_numbers_are_an_error(tree, share, words):  # S13
    volumes = head(np.float32).reshape(-1, N_VOLUMES)
    volumes[: int(np.ceil(share * len(volumes))), 5] = np.nan
    with refused(f"{words} of the voxels of {NAME}.nii.gz are not numbers - "):
        tree(volumes.reshape(*SHAPE, N_VOLUMES)).load(mask="brain")


def test_many_voxels_that_are_no_numbers_are_an_error_with_smoothing_too(tree):
    volumes = head(np.float32)
    volumes[4:9, 4:9, 4:9, 5] = np.nan
    with refused("not numbers"):
        tree(volumes).load(mask="brain", smoothing_fwhm=6)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_scan_has_no_brain(tree, value):  # S14
    with refused("the brain mask of .* is empty - check the scan, or set mask"):
        tree(np.full((*SHAPE, N_VOLUMES), value, np.int16)).load(mask="brain")


# --- masks from files -------------------------------------------------------------------


def write_mask(made, mask, name="derivatives/mask.nii.gz", affine=AFFINE):
    path = made.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), path)
    return name


def some_voxels():
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 5, 6] = True
    return mask


def test_what_is_not_a_number_outside_a_given_mask_is_no_fault_of_the_scan(tree):
    """SPM writes NaN around the head."""
    volumes, mask = head(np.float32), some_voxels()
    around = volumes.copy()
    around[~mask] = np.nan
    made, clean = tree(around, name="a"), tree(volumes, name="b")
    name = write_mask(made, mask)
    write_mask(clean, mask)
    run = made.load(mask=name)
    assert run.counts["not finite"] == 0
    np.testing.assert_array_equal(run.volumes, clean.load(mask=name).volumes)
    with refused("of the voxels of .* are not numbers - check the scan, or name a mask without them"):
        made.load(mask="brain")
    around[4:9, 5, 6, 3] = np.nan
    spoilt_scan = tree(around, name="c")
    write_mask(spoilt_scan, mask)
    with refused("100% of the mask's voxels of .* are not numbers - check the scan"):
        spoilt_scan.load(mask=name)


def test_a_mask_of_the_scans_grid_is_made_coarser_with_it(tree):
    made, mask = tree(), np.zeros(SHAPE, bool)
    mask[4:9, 4:8, 4:8] = True  # of the fifth layer along i half a coarse voxel
    run = made.load(mask=write_mask(made, mask), downsample=2)
    assert np.argwhere(run.mask).tolist() == [[i, j, k] for i in (2, 3) for j in (2, 3) for k in (2, 3)]
    coarse = write_mask(made, run.mask, "derivatives/coarse.nii.gz", run.affine)
    same_run(run, made.load(mask=coarse, downsample=2))
    with refused(r"has the grid \(14, 15, 13\).*resample the mask|lies elsewhere"):
        made.load(mask=write_mask(made, mask, "derivatives/moved.nii.gz", np.diag([4.0, 4, 4, 1])), downsample=2)


def test_a_mask_file_is_taken_as_it_is_from_the_data_or_from_anywhere(tree, tmp_path):
    made = tree()
    below = made.load(mask=write_mask(made, some_voxels()))
    np.testing.assert_array_equal(below.mask, some_voxels())
    shutil.move(made.root / "derivatives" / "mask.nii.gz", tmp_path / "mine.nii.gz")
    np.testing.assert_array_equal(made.load(mask=str(tmp_path / "mine.nii.gz")).mask, some_voxels())


def test_another_mask_under_the_same_name_is_noticed(tree):
    made = tree()
    assert made.load(mask=write_mask(made, some_voxels())).n_voxels == 5
    other = some_voxels()
    other[4, 5, 6] = False
    assert made.load(mask=write_mask(made, other)).n_voxels == 4


def test_a_mask_that_cannot_be_right_is_refused(tree):
    made = tree()
    with refused("mask must be brain, none or a mask image, got 'brian' - no such file", ParameterError):
        made.load(mask="brian")
    with refused(r"has the grid \(14, 15, 12\), the scan \(14, 15, 13\) - "):
        made.load(mask=write_mask(made, some_voxels()[..., 1:]))
    with refused("mask of .* is empty - "):
        made.load(mask=write_mask(made, np.zeros(SHAPE)))
    (made.root / "text.nii.gz").write_text("hello")
    with refused("text.nii.gz"):
        made.load(mask="text.nii.gz")


def test_a_mask_with_a_fourth_axis_is_refused(tree):
    made = tree()
    with refused("mask"):
        made.load(mask=write_mask(made, np.stack([some_voxels()] * 2, axis=3)))


def test_a_damaged_mask_is_refused(tree):
    made = tree()
    path = made.root / write_mask(made, np.random.default_rng(0).integers(0, 2, SHAPE))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with refused("mask"):
        made.load(mask="derivatives/mask.nii.gz")


def test_a_mask_that_lies_elsewhere_in_the_head_is_refused(tree):
    made = tree()
    name = write_mask(made, some_voxels())
    nib.save(nib.Nifti1Image(some_voxels().astype(np.uint8), np.diag([2.0, 2, 2, 1])), made.root / name)
    with refused("mask"):
        made.load(mask=name)


# --- downsample, smooth, detrend --------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3])
def test_blocks_are_averaged_and_keep_their_place_in_the_head(tree, factor):
    run = tree().load(downsample=factor)
    coarse_shape = tuple(n // factor for n in SHAPE)
    assert run.mask.shape == coarse_shape
    raw = head().astype(float)
    for block in [(0, 0, 0), (2, 1, 3)]:
        fine = tuple(slice(factor * b, factor * (b + 1)) for b in block)
        values = run.volumes.reshape(N_VOLUMES, *coarse_shape)[(slice(None), *block)]
        np.testing.assert_allclose(values, raw[fine].mean(axis=(0, 1, 2)), rtol=1e-5)
        corners = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in fine], indexing="ij"), -1).reshape(-1, 3)
        in_mm = nib.affines.apply_affine(AFFINE, corners).mean(axis=0)
        np.testing.assert_allclose(nib.affines.apply_affine(run.affine, block), in_mm, atol=1e-4)


def test_downsampling_by_one_changes_nothing():
    coarse, affine = downsample_grid(head(), AFFINE, 1)
    np.testing.assert_array_equal(coarse, head())
    np.testing.assert_array_equal(affine, AFFINE)


def test_blocks_larger_than_the_grid_are_refused(tree):
    with refused("downsample 14 is larger than the grid .* - use a smaller factor", ParameterError):
        tree().load(downsample=14)


def test_smoothing_has_the_width_it_is_told(tree):
    volumes = np.zeros((13, 13, 13, N_VOLUMES), np.int16)
    volumes[6, 6, 6] = 10000
    volumes[..., 0] = 5000
    run = tree(volumes, affine=np.diag([4.0, 4, 4, 1])).load(smoothing_fwhm=8)
    smooth = run.volumes[3].reshape(13, 13, 13)
    assert smooth[7, 6, 6] / smooth[6, 6, 6] == pytest.approx(
        0.5, abs=0.01
    )  # 4 mm away: half of 8 mm, half of the peak
    assert smooth.sum() == pytest.approx(10000, rel=0.01)
    np.testing.assert_allclose(run.volumes[0].reshape(13, 13, 13)[6, 6, 6], 5000, rtol=0.01)  # volumes do not mix
    assert run.volumes.dtype == np.float32


def test_smoothing_inside_the_mask_is_a_gaussian_mean_of_its_voxels(tree):
    made = tree(affine=np.diag([4.0, 3, 2, 1]))
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 4:9, 4:7] = True
    run = made.load(mask=write_mask(made, mask, affine=np.diag([4.0, 3, 2, 1])))
    smooth = smooth_volumes(run, 6.0, until=5, cache_path=made.params().cache_path)
    place = np.argwhere(mask) * [4.0, 3, 2]  # mm
    for voxel in (0, 30, 74):
        weight = np.exp(-4 * np.log(2) * np.sum((place - place[voxel]) ** 2, axis=1) / 6.0**2)
        np.testing.assert_allclose(smooth[:, voxel], run.volumes[:5] @ weight / weight.sum(), rtol=2e-3)
    np.testing.assert_array_equal(
        run.volumes, tree(name="again", affine=np.diag([4.0, 3, 2, 1])).load().volumes[:, mask.ravel()]
    )
    assert smooth.dtype == np.float32 and smooth.shape == (5, mask.sum())


def test_without_smoothing_the_volumes_are_the_runs_own(tree):
    made = tree()
    run, cache = made.load(), made.params().cache_path
    before = sorted(cache.iterdir())
    plain = smooth_volumes(run, 0, until=5, cache_path=cache)
    assert plain.shape == (5, run.n_voxels) and np.shares_memory(plain, run.volumes)
    assert sorted(cache.iterdir()) == before, "nothing is written for it"


def test_detrending_takes_the_line_of_train_off_the_whole_run(tree):
    time = np.arange(N_VOLUMES)
    volumes = spoilt(head()) + (7 * time).astype(np.float32)
    volumes[..., TRAIN[-1] + 1 :] += 300  # a jump that the line must not follow
    made = tree(volumes)
    raw, run = made.load(), made.load(detrend=True)
    for voxel in (0, 500, 2000):
        y = raw.volumes[:, voxel].astype(float)
        slope, at_zero = np.polyfit(TRAIN, y[TRAIN], 1)
        np.testing.assert_allclose(run.volumes[:, voxel], y - (slope * time + at_zero) + y[TRAIN].mean(), atol=0.02)
    np.testing.assert_allclose(run.volumes[TRAIN].mean(axis=0), raw.volumes[TRAIN].mean(axis=0), rtol=1e-5)
    assert run.volumes.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_smoothing_takes_the_widest_numbers(tree, dtype):
    """nibabel makes an image of them only if told to; smoothing works on them in double precision."""
    made, usual = tree(name="wide"), tree(name="usual")
    image = nib.Nifti1Image(head().astype(dtype), AFFINE, header=nib.load(made.bold).header, dtype=dtype)
    nib.save(image, made.bold)
    assert nib.load(made.bold).get_data_dtype() == dtype
    found, wanted = (one.load(smoothing_fwhm=5).volumes for one in (made, usual))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


# --- the cache --------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch):
    """The times that a scan was unpacked."""
    calls, read = [], data._write_masked
    monkeypatch.setattr(data, "_write_masked", lambda *a, **k: calls.append(a) or read(*a, **k))
    return calls


def test_smoothed_volumes_are_read_from_the_cache_the_second_time(tree, monkeypatch):
    made = tree()
    run, cache = made.load(mask="brain"), made.params().cache_path
    first = smooth_volumes(run, 6.0, until=7, cache_path=cache)
    assert isinstance(first, np.memmap) and first.shape == (7, run.n_voxels)
    write, calls = data._write_smooth, []
    monkeypatch.setattr(data, "_write_smooth", lambda *a: calls.append(a[2:]) or write(*a))
    again = smooth_volumes(run, 6.0, until=7, cache_path=cache)
    assert not calls and again.filename == first.filename
    np.testing.assert_array_equal(first, again)
    for fwhm, until in ((4.0, 7), (6.0, 9)):
        other = smooth_volumes(run, fwhm, until=until, cache_path=cache)
        assert calls.pop() == (fwhm, until) and other.filename != first.filename and other.shape[0] == until
        assert np.array_equal(other[:7], first) == (fwhm == 6.0)


def test_smoothed_volumes_of_another_mask_or_scan_are_others(tree):
    made = tree()
    runs = [made.load(mask="brain"), made.load(), tree(head(seed=1), name="other").load()]
    made_of = [smooth_volumes(run, 6.0, until=7, cache_path=made.params().cache_path) for run in runs]
    assert len({smooth.filename for smooth in made_of}) == 3
    assert [smooth.shape[1] for smooth in made_of] == [run.n_voxels for run in runs]
    assert not np.array_equal(made_of[1], made_of[2])


def test_a_smoothing_that_breaks_off_leaves_no_cache_entry(tree, monkeypatch):
    made = tree()
    run, cache = made.load(mask="brain"), made.params().cache_path
    smooth, calls = data.gaussian_filter, []

    def breaks(*args, **given):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return smooth(*args, **given)

    monkeypatch.setattr(data, "gaussian_filter", breaks)
    with pytest.raises(KeyboardInterrupt):
        smooth_volumes(run, 6.0, until=7, cache_path=cache)
    assert not list(cache.glob("smooth-*"))
    whole = smooth_volumes(run, 6.0, until=7, cache_path=cache)
    assert whole.shape[0] == 7 and np.all(np.asarray(whole).any(axis=1))


def same_run(first, second):
    for name in ("volumes", "mask", "affine", "mean_image"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.value_range, first.counts, list(first.regions)) == (
        second.value_range,
        second.counts,
        list(second.regions),
    )


def test_the_second_load_does_not_unpack_the_scan(tree, readings, monkeypatch):
    made = tree()
    params = made.params(mask="brain")
    files = locate_runs(params)
    first = load_run(files, params, train=TRAIN)
    assert len(readings) == 1
    monkeypatch.setattr(data.nib, "load", lambda path: pytest.fail(f"{path} was read again"))
    same_run(first, load_run(files, params, train=TRAIN))
    same_run(first, load_run(files, made.params(mask="brain", n_mfcc=5, alphas=[1]), train=TRAIN))
    assert len(readings) == 1


def test_cached_volumes_are_mapped_not_copied(tree):
    run = tree().load()
    assert isinstance(run.volumes, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        run.volumes[0, 0] = 1


@pytest.mark.parametrize(
    "change", [{"mask": "brain"}, {"downsample": 2}, {"smoothing_fwhm": 5}, {"detrend": True}], ids=str
)
def test_another_parameter_makes_another_entry(tree, readings, change):
    made = tree()
    first = made.load()
    assert not np.array_equal(first.volumes, made.load(**change).volumes)
    same_run(first, made.load())
    assert len(readings) == 2


def test_another_repetition_time_makes_another_entry(tree, readings):
    """It stands in the sidecar, not in the scan, and drift is taken off by it."""
    made = tree(t_r=0.0)
    cleaned = []
    for t_r in (4.0, 8.0):
        (made.func / f"{NAME}.json").write_text(json.dumps({"RepetitionTime": t_r}))
        cleaned.append(made.load(confounds=["drift"], t_r_source="sidecar", audio_onset=0).volumes)
    assert len(readings) == 2 and not np.array_equal(*cleaned)


def test_another_train_part_or_another_code_makes_another_entry(tree, readings, monkeypatch):
    made = tree()
    made.load()
    made.load(train=TRAIN[:-1])
    assert len(readings) == 2
    monkeypatch.setattr(data, "code_fingerprint", lambda *modules: "another version")
    made.load()
    assert len(readings) == 3


def test_another_scan_under_the_same_name_makes_another_entry(tree, readings):
    made = tree()
    before = made.load()
    made.edit((352, b"\x55\x05"))  # the first voxel of volume 0
    after = made.load()
    assert len(readings) == 2
    assert (before.volumes[0, 0], after.volumes[0, 0]) == (head()[0, 0, 0, 0], 0x0555)


def test_a_damaged_scan_leaves_nothing_in_the_cache(tree):
    made = tree()
    content = bytearray(made.bold.read_bytes())
    content[-2000] ^= 1  # as long as it should be: only reading it all shows the damage
    made.bold.write_bytes(content)
    with refused("scan damaged"):
        made.load()
    assert not [p for p in made.params().cache_path.iterdir() if p.suffix != ".lock"]


@pytest.mark.slow
def test_two_processes_at_once_get_the_same_entry(tree, tmp_path):
    made = tree()
    code = (
        "import hashlib, json, sys, time\nimport numpy as np\n"
        "from bold_audio import data, runs\nfrom bold_audio.params import load_params\n"
        "read = data._write_masked\n"
        "def counted(*a, **k):\n"
        "    with open(sys.argv[2], 'a') as log: log.write('x')\n"
        "    time.sleep(0.2); read(*a, **k)\n"
        "data._write_masked = counted\n"
        "params = load_params('01', 'tiny', **json.loads(sys.argv[1]))\n"
        "files = runs.locate_runs(params)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "run = data.load_run(files, params, train=np.arange(2, 12))\n"
        "print(hashlib.md5(run.volumes.tobytes()).hexdigest())"
    )
    given = made.params().model_dump(include={"session", "task", "run", "mask", "data_dir", "outputs_dir"})
    command = [sys.executable, "-c", code, json.dumps(given), str(tmp_path / "log")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": project_root()}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        assert [p.stdout.readline() for p in processes] == ["ready\n"] * 2
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        one, two = (p.communicate(timeout=60)[0] for p in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert one == two != ""
    assert (tmp_path / "log").read_text() == "x"


# --- regions ----------------------------------------------------------------------------


def six_regions():
    return np.random.default_rng(0).standard_normal((6, 1, 1, N_VOLUMES)).astype(np.float32)


def test_named_regions_of_the_sidecar_become_regions(tree):
    names = ["LATL", "RATL", "LPTL", "LIPL", "LPreM", "LIFG"]
    volumes = six_regions()
    run = tree(volumes, sidecar={"RepetitionTime": T_R, "ROINames": names}).load()
    assert list(run.regions) == ["volume", *names]
    assert run.regions["volume"].all()
    for k, name in enumerate(names):
        np.testing.assert_array_equal(run.volumes[:, run.regions[name]][:, 0], volumes[k, 0, 0])
        assert run.regions[name].sum() == 1


def test_names_that_do_not_match_the_voxels_are_not_used(tree):
    run = tree(six_regions(), sidecar={"RepetitionTime": T_R, "ROINames": ["LATL", "RATL"]}).load()
    assert list(run.regions) == ["volume"]


@pytest.fixture
def planted(tree):
    """A tree with the truth of a simulated subject: 8 voxels on the left, 12 on the right, the rest silent."""
    made = tree()
    folder = made.root / "derivatives" / "truth" / "sub-01"
    folder.mkdir(parents=True)
    label, r2 = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    label[4:8, 6, 5:7], label[4:8, 9, 5:8] = 1, 2
    r2[label > 0] = 0.1
    r2[5, 6, 5] = 0.3
    nib.save(nib.Nifti1Image(label, AFFINE), folder / "sub-01_desc-planted_dseg.nii.gz")
    nib.save(nib.Nifti1Image(r2, AFFINE), folder / "sub-01_stat-r2_statmap.nii.gz")
    regions = [{"name": name, "label": k} for k, name in enumerate(("left", "right", "nowhere"), start=1)]
    (folder / "truth.json").write_text(json.dumps({"regions": regions}))
    return made


def test_planted_regions_are_known_voxel_by_voxel(planted):
    run = planted.load(mask="brain")
    sizes = {name: int(region.sum()) for name, region in run.regions.items()}
    assert (sizes.pop("brain"), sizes.pop("silent")) == (run.n_voxels, run.n_voxels - 20)
    assert sizes == {"planted_left": 8, "planted_right": 12, "planted_r2_over_0.2": 1}
    left = run.to_grid(run.regions["planted_left"])
    assert np.all(left[4:8, 6, 5:7] == 1)


@pytest.mark.parametrize("harm", ["[]", "{", '{"regions": [1]}', '{"regions": 7}', "no map", "cut map", "another grid"])
def test_a_truth_that_no_simulation_left_is_refused(planted, harm):
    folder = planted.root / "derivatives" / "truth" / "sub-01"
    label = folder / "sub-01_desc-planted_dseg.nii.gz"
    if harm == "no map":
        label.unlink()
    elif harm == "cut map":
        label.write_bytes(label.read_bytes()[:60])
    elif harm == "another grid":
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), AFFINE), label)
    else:
        (folder / "truth.json").write_text(harm)
    with refused("simulate the subject anew, or delete this folder"):
        planted.load(mask="brain")


def test_planted_regions_are_not_claimed_on_another_grid(planted):
    assert list(planted.load(downsample=2).regions) == ["volume"]


# --- maps -------------------------------------------------------------------------------


def test_a_map_has_the_scans_place_and_name(tree):
    made = tree()
    run, params = made.load(mask="brain"), made.params(mask="brain")
    values = np.arange(run.n_voxels, dtype=float)
    path = write_map(run, params, values, model="sound", stat="r", description="Pearson r.")
    assert path == params.subject_path / f"{NAME.removesuffix('_bold')}_desc-sound_stat-r_statmap.nii.gz"
    image = nib.load(path)
    np.testing.assert_array_equal(image.affine, nib.load(made.bold).affine)
    grid = image.get_fdata()
    np.testing.assert_array_equal(grid[run.mask], values)
    assert np.isnan(grid[~run.mask]).all()
    assert image.get_data_dtype() == np.float32
    about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert about["Description"] == "Pearson r."
    assert about["Sources"] == [f"bids:raw:sub-01/ses-mri3t/func/{NAME}.nii.gz"]
    assert len(list(path.parent.iterdir())) == 2


def test_a_map_of_a_coarse_run_lies_where_the_run_lies(tree):
    made = tree()
    run = made.load(downsample=2)
    image = nib.load(write_map(run, made.params(downsample=2), run.volumes[0], model="m", stat="r", description="d"))
    assert image.shape == (7, 7, 6)
    np.testing.assert_allclose(image.affine, downsample_grid(head(), AFFINE, 2)[1], atol=1e-4)


def test_the_same_volumes_are_the_same_bytes(tmp_path):
    """Whatever the name: neither it nor the time stands in the head of the gzip."""
    how = {"mask": np.ones((2, 2, 2), bool), "affine": AFFINE, "t_r": T_R, "about": {"Description": "p"}}
    for name in ("a", "b"):
        write_volumes(tmp_path / f"{name}.nii.gz", np.arange(40.0).reshape(5, 8), **how)
    packed = [(tmp_path / f"{name}.nii.gz").read_bytes() for name in ("a", "b")]
    assert packed[0] == packed[1] and packed[0][4:8] == bytes(4)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.header.get_zooms()[3] == np.float32(T_R) and image.header.get_xyzt_units() == ("mm", "sec")
    assert json.loads((tmp_path / "a.json").read_text()) == {"Description": "p", "RepetitionTime": T_R}


def without_orientation(made):
    made.edit((252, b"\0\0\0\0"))  # qform_code and sform_code
    return made


def test_an_unknown_orientation_is_told(tree):  # S17
    assert tree(name="a").locate().warnings == ()
    assert "orientation unknown" in " ".join(without_orientation(tree(name="b")).locate().warnings)


def test_a_map_claims_no_orientation_that_the_scan_lacks(tree):
    made = without_orientation(tree())
    run = made.load()
    path = write_map(run, made.params(), run.volumes[0], model="m", stat="r", description="d")
    assert int(nib.load(path).header["sform_code"]) == 0


def test_outputs_are_a_bids_derivative(tree):
    made = tree()
    for params in (made.params(), load_params("09", outputs_dir=str(made.root.parent / "out"))):
        write_dataset_description(params, "1.2.3")
        about = json.loads((params.subject_path.parent / "dataset_description.json").read_text())
        assert about["DatasetType"] == "derivative"
        assert about["GeneratedBy"] == [{"Name": "bold_audio", "Version": "1.2.3"}]
        assert bool(about["SourceDatasets"]) == (params.dataset == "ds003688")


# --- real data --------------------------------------------------------------------------


def test_alice_is_six_regions_that_began_hearing_20_s_before(shared, tmp_path):
    params = load_params(
        "18", "alice", data_dir=str(shared / "realdata" / "alice"), outputs_dir=str(tmp_path / "outputs")
    )
    files = locate_runs(params)
    assert (files.t_r, files.onset, files.n_volumes, files.grid) == (2.0, -20.0, 362, (6, 1, 1))
    run = load_run(files, params, train=np.arange(5, 250))
    assert isinstance(run, BoldRun)
    assert run.volumes.shape == (362, 6)
    assert list(run.regions) == ["volume", "LATL", "RATL", "LPTL", "LIPL", "LPreM", "LIFG"]
    raw = np.asanyarray(nib.load(files.bold).dataobj)
    np.testing.assert_array_equal(run.volumes, raw[:, 0, 0].T)


def test_the_sidecar_and_events_of_ds003688_fit_each_other(shared, tmp_path):
    func = "sub-09/ses-mri3t/func"
    name = "sub-09_ses-mri3t_task-film_run-1"
    if not (shared / "ds003688" / func).is_dir():
        pytest.skip(f"no ds003688 in {shared}")
    (tmp_path / func).mkdir(parents=True)
    for ending in ("bold.json", "events.tsv"):
        shutil.copy(shared / "ds003688" / func / f"{name}_{ending}", tmp_path / func)
    image = nib.Nifti1Image(np.zeros((2, 2, 2, 641), np.int16), np.diag([4.0, 4, 4, 1]))
    image.header.set_zooms((4, 4, 4, 0.608))
    nib.save(image, tmp_path / func / f"{name}_bold.nii.gz")  # the scan itself is not in the shared folder
    files = locate_runs(load_params("09", "standin", data_dir=str(tmp_path), session="mri3t", run=1))
    assert (files.t_r, files.onset, len(files.events)) == (0.608, 0.0, 13)
    assert files.volume_times[-1] == pytest.approx(640 * 0.608)
