"""Runs of any BIDS dataset: found by what they are called, several of one person, raw or preprocessed."""

import json
import re
import shutil
from dataclasses import replace

import librosa
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import soundfile

from bold_audio import adopt, bids, data, models, pairing, splits, workflow
from bold_audio.audit import blocks_in_events
from bold_audio.files import DataError, ParameterError, write_table
from bold_audio.params import load_params
from bold_audio.run import main
from bold_audio.runs import locate_runs
from bold_audio.simulate import simulate_subject

pytestmark = pytest.mark.slow

SHAPE, T_R = (6, 5, 4), 2.0
AFFINE = np.diag([3.0, 3, 3, 1])
EVENTS = "onset\tduration\ttrial_type\n4\t30\tmusic\n34\t30\tspeech\n"


@pytest.fixture
def tree(tmp_path):
    """Function: write files of a dataset; a name that ends in _bold.nii.gz becomes a scan of so many volumes."""

    def write(*files, affine=AFFINE, t_r=T_R, n_volumes=12, shape=SHAPE):
        for name, content in (one if isinstance(one, tuple) else (one, None) for one in files):
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if ".nii" not in name:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
                continue
            data = np.random.default_rng(len(name)).integers(
                100, 2000, (*shape, n_volumes)[: 4 if "bold" in name else 3]
            )
            image = nib.Nifti1Image(data.astype(np.int16) if content is None else content, affine)
            image.header.set_xyzt_units("mm", "sec")
            if image.ndim == 4:
                image.header.set_zooms((3, 3, 3, t_r))
            nib.save(image, path)
        return tmp_path / "data"

    return write


@pytest.fixture
def located(tmp_path):
    """Function: the runs of sub-01 under these parameters."""

    def locate(**given):
        folders = {"data_dir": str(tmp_path / "data"), "outputs_dir": str(tmp_path / "outputs")}
        return locate_runs(load_params("01", "tiny", **folders | given))

    return locate


# --- which file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sub-01/func/sub-01_task-film_bold.nii.gz", {}),
        ("sub-01/func/sub-01_task-film_bold.nii", {}),
        ("sub-01/func/sub-01_task-film_run-1_bold.nii.gz", {}),
        ("sub-01/func/sub-01_task-film_run-01_bold.nii.gz", {"run": 1}),
        ("sub-01/func/sub-01_task-film_run-2_bold.nii.gz", {"run": "02"}),
        ("sub-01/ses-a/func/sub-01_ses-a_task-film_run-1_bold.nii.gz", {}),
        ("sub-01/ses-a/func/sub-01_ses-a_task-film_run-1_bold.nii.gz", {"session": "a", "run": "all"}),
        ("sub-01/func/sub-01_task-nap_acq-mb8_dir-AP_bold.nii.gz", {"task": "nap"}),
        ("sub-01/func/sub-01_task-nap_acq-mb8_dir-AP_bold.nii.gz", {"task": "nap", "bids_entities": {"acq": "mb8"}}),
        ("sub-01/func/sub-01_task-film_space-T1w_bold.nii.gz", {"space": "T1w"}),
        ("sub-01/ses-01/func/sub-01_ses-01_task-film_bold.nii.gz", {"session": "01"}),
        ("sub-01/ses-01/func/sub-01_ses-01_task-film_bold.nii.gz", {"session": 1}),  # as YAML reads 01
    ],
)
def test_the_only_run_that_fits_is_found(tree, located, name, given):
    tree(name, "sub-02/func/sub-02_task-film_bold.nii.gz")
    found = located(audio_onset=0, **given)
    assert found.bold.as_posix().endswith(name) and found.parts == (found,)
    assert found.entities == name.split("/")[-1].split("_bold")[0]


@pytest.mark.parametrize(
    ("names", "given", "match"),
    [
        (["task-film_run-1", "task-film_run-2"], {}, r"several runs of film \(1, 2\) - set run to one or all"),
        (
            ["task-film_acq-a", "task-film_acq-b"],
            {},
            "several files fit: sub-01_task-film_acq-a.*set session, space or",
        ),
        (["task-film_run-1"], {"run": 2}, "sub-01 run 2 is not there: .*run-2_bold.nii.gz is missing"),
        (["task-film_run-1"], {"run": ["1", "3"]}, "sub-01 run 3 is not there"),
        (["task-film_run-1"], {"task": "nap"}, "sub-01 is not there: .*task-nap"),
        (
            ["task-film_acq-a"],
            {"bids_entities": {"acq": "b"}},
            "acq-b_bold.nii.gz is missing .scans of this subject: sub-01_task-film_acq-a_bold.nii.gz. - .*entities",
        ),
        (["task-film_acq-a"], {"derivatives": "no"}, "other subjects there: none. - .* or set derivatives"),
        (["task-film_space-T1w"], {}, "sub-01 is not there"),
        (["task-film_desc-clean"], {}, "sub-01 is not there"),
        (["task-film"], {"session": "x"}, "sub-01 is not there: .*ses-x"),
    ],
)
def test_what_is_not_one_file_is_refused_with_what_is_there(tree, located, names, given, match):
    tree(*(f"sub-01/func/sub-01_{name}_bold.nii.gz" for name in names))
    with pytest.raises(DataError, match=match) as error:
        located(audio_onset=0, **given)
    assert "\n" not in str(error.value) and " - " in str(error.value)


def test_who_is_only_among_the_preprocessed_is_not_unknown(tree):
    root = tree("sub-02/func/sub-02_task-film_bold.nii.gz", "derivatives/p/sub-01/func/sub-01_task-film_bold.nii.gz")
    given = {"data_dir": str(root), "outputs_dir": str(root.parent / "outputs")}
    bids.check_subject(load_params("01", "tiny", **given, derivatives="derivatives/p"))
    with pytest.raises(ParameterError, match="unknown subject '01' - did you mean 02. subjects of tiny: 02"):
        bids.check_subject(load_params("01", "tiny", **given))


def test_the_session_that_is_named_goes_before_one_that_means_the_same(tree, located):
    tree(*(f"sub-01/ses-{s}/func/sub-01_ses-{s}_task-film_bold.nii.gz" for s in ("1", "01")))
    for session in ("1", "01"):
        assert f"ses-{session}_" in located(audio_onset=0, session=session).bold.name


def test_events_without_an_end_are_taken_but_for_the_audit(tree, located):
    root = tree("sub-01/func/sub-01_task-film_bold.nii.gz")
    write_table(root / "sub-01/func/sub-01_task-film_events.tsv", pd.DataFrame(
        {"onset": [2.0], "duration": ["n/a"], "trial_type": ["story"]}))  # fmt: skip
    found = located()
    assert found.onset == 2 and blocks_in_events(found.events) == []


def test_runs_of_two_sessions_are_told_apart_by_name(tree, located):
    tree(*(f"sub-01/ses-{s}/func/sub-01_ses-{s}_task-film_run-1_bold.nii.gz" for s in "ab"))
    with pytest.raises(DataError, match="several files fit: sub-01_ses-a.*, sub-01_ses-b.* - set session"):
        located(audio_onset=0)
    assert "ses-b" in located(audio_onset=0, session="b").bold.name


def test_packed_run_is_taken_where_both_are_there(tree, located):
    tree("sub-01/func/sub-01_task-film_bold.nii", "sub-01/func/sub-01_task-film_bold.nii.gz")
    assert located(audio_onset=0).bold.name.endswith(".gz")


def test_the_part_of_an_unfinished_download_is_no_image(tree, located):
    name = "sub-01/func/sub-01_task-film"
    root = tree(f"{name}_bold.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz")
    image, t1w = root / f"{name}_bold.nii.gz", root / "sub-01/anat/sub-01_T1w.nii.gz"
    parts = [path.with_name(f"{path.name}.part") for path in (image, t1w)]
    for path, part in zip((image, t1w), parts, strict=True):
        part.write_bytes(path.read_bytes())
    parts.append(image.with_name("sub-01_task-film_desc-brain_mask.nii.gz.part"))
    parts[-1].touch()
    params = load_params("01", "tiny", data_dir=str(root))
    assert located(audio_onset=0).bold == image and bids.find_t1w(params, image) == [t1w]
    assert bids.files_beside(image)["mask"] is None
    image.unlink()
    t1w.unlink()
    with pytest.raises(DataError, match="sub-01 is not there: .*other subjects there: none"):
        located(audio_onset=0)
    assert bids.find_t1w(params, image) == []


# --- what is inherited --------------------------------------------------------------------


def test_sidecars_and_events_are_inherited_key_by_key_the_nearest_wins(tree, located):
    run = "sub-01/ses-a/func/sub-01_ses-a_task-film_run-1"
    tree(
        f"{run}_bold.nii.gz",
        ("bold.json", {"RepetitionTime": 9.0, "TaskName": "not ours"}),  # no underscore: belongs to nobody
        ("task-film_bold.json", {"RepetitionTime": 1.0, "A": "root", "B": "root", "C": "root"}),
        ("task-nap_bold.json", {"RepetitionTime": 5.0}),
        ("sub-01/sub-01_task-film_bold.json", {"A": "subject", "B": "subject"}),
        ("sub-01/ses-a/sub-01_ses-a_task-film_bold.json", {"A": "session"}),
        (f"{run}_bold.json", {"RepetitionTime": T_R}),
        ("task-film_events.tsv", EVENTS),
    )
    found = located()
    assert found.t_r == T_R and found.onset == 4.0
    assert {key: found.sidecar[key] for key in "ABC"} == {"A": "session", "B": "subject", "C": "root"}
    tree((f"{run}_events.tsv", EVENTS.replace("\n4\t", "\n6\t")))
    assert located().onset == 6.0


def test_events_of_another_run_are_not_taken(tree, located):
    tree("sub-01/func/sub-01_task-film_run-1_bold.nii.gz", ("sub-01/func/sub-01_task-film_run-2_events.tsv", EVENTS))
    with pytest.raises(DataError, match="there is no sub-01_task-film_run-1_events.tsv - set audio_onset"):
        located()


# --- several runs -------------------------------------------------------------------------


def test_several_runs_are_one_after_the_other_each_with_its_own_sound(tree, located):
    for k, n in ((1, 12), (2, 9), (10, 11)):
        name = f"sub-01/func/sub-01_task-film_run-{k}"
        tree(f"{name}_bold.nii.gz", (f"{name}_events.tsv", EVENTS.replace("\n4\t", f"\n{k}\t")), n_volumes=n)
    found = located(run="all")
    assert [part.n_volumes for part in found.parts] == [12, 9, 11] and found.n_volumes == 32
    assert found.starts.tolist() == [0, 12, 21] and found.entities == "sub-01_task-film"
    assert [part.onset for part in found.parts] == [1, 2, 10]
    np.testing.assert_allclose(found.volume_times, np.arange(32) * T_R)
    np.testing.assert_allclose(found.sound_times[12:21], np.arange(9) * T_R - 2)
    assert found.t_r == T_R and found.grid == SHAPE
    two = located(run=[10, 1])
    assert [part.n_volumes for part in two.parts] == [11, 12], "in the order asked for"


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"shape": (7, 5, 4)}, "differ in grid or place"),
        ({"affine": AFFINE + np.eye(4, k=3)}, "differ in grid or place"),
        ({"t_r": 1.5}, "repetition time of 1.5 s, .* of 2 s"),
    ],
)
def test_runs_that_do_not_go_together_are_refused(tree, located, other, match):
    tree("sub-01/func/sub-01_task-film_run-1_bold.nii.gz")
    tree("sub-01/func/sub-01_task-film_run-2_bold.nii.gz", **other)
    with pytest.raises(DataError, match=match):
        located(run="all", audio_onset=0)


def test_split_by_time_and_by_run():
    usable = np.ones(100, bool)
    usable[[*range(5), *range(60, 68)]] = False  # the sound of both runs begins a little late
    options = {"skip_initial": 0, "train_fraction": 0.5, "gap": 4, "usable": usable, "n_before": 2}
    split = splits.split_runs([60, 40], T_R, **options)
    assert split.train.tolist() == [*range(7, 30), *range(70, 80)]
    assert split.gap.tolist() == [30, 31, 80, 81]
    assert split.test.tolist() == [*range(32, 60), *range(82, 100)]
    assert [part.tolist() for part in splits.stretches(split.train)] == [[*range(7, 30)], [*range(70, 80)]]
    whole = splits.split_runs([60, 40], T_R, by="run", **options)
    assert whole.train.tolist() == [*range(7, 60)] and whole.test.tolist() == [*range(70, 100)] and not len(whole.gap)
    later = splits.split_runs([60, 40], T_R, by="run", **options | {"skip_initial": 10, "gap": 16})
    assert later.gap.tolist() == [*range(70, 73)] and later.test.tolist() == [*range(73, 100)], "16 s tell the level"
    one = splits.split_runs([100], T_R, **options | {"usable": np.arange(100) >= 5})
    expected = splits.split_volumes(100, T_R, skip_initial=0, train_fraction=0.5, gap=4, usable=np.arange(100) >= 7)
    assert all(np.array_equal(getattr(one, part), getattr(expected, part)) for part in ("train", "gap", "test"))
    with pytest.raises(ParameterError, match="split_by run needs several runs"):
        splits.split_runs([100], T_R, by="run", **options)
    with pytest.raises(ParameterError, match="of run 2 can be used"):
        splits.split_runs([60, 40], T_R, by="run", **options | {"usable": np.arange(100) < 68})


# --- two simulated runs -------------------------------------------------------------------

QUICK = {"delays": [4.0, 5.0, 6.0], "mlp_delays": [5.0], "max_epochs": 5, "history_order": 2, "sweep_fwhm": 0}
SOUNDS = ["stimuli/film.wav", "stimuli/film2.wav"]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A SIMULATED subject with two runs of 300 volumes, each with a film of its own."""
    root = tmp_path_factory.mktemp("two") / "sim"
    simulate_subject(root, shape=(18, 22, 22), n_volumes=300, runs=2, strength=0.5)
    return root


@pytest.fixture(scope="module")
def subject(two_runs):
    """Function: the two-run subject, opened; what one test has made of a scan and a sound serves the others."""
    outputs = str(two_runs.parent / "outputs")

    def make(root=two_runs, **given):
        folders = {"data_dir": str(root), "outputs_dir": outputs, "models_dir": outputs}
        runs = {"run": "all", "audio_path": SOUNDS}
        return workflow.open_subject(load_params("sim", **folders | runs | QUICK | given))

    return make


def test_first_run_is_the_same_with_and_without_a_second(two_runs, tmp_path):
    simulate_subject(tmp_path / "one", shape=(18, 22, 22), n_volumes=300, strength=0.5)
    names = ("sub-sim/ses-mri3t/func/sub-sim_ses-mri3t_task-film_run-1_bold.nii.gz", "stimuli/film.wav")
    assert all((tmp_path / "one" / name).read_bytes() == (two_runs / name).read_bytes() for name in names)
    other = two_runs / names[0].replace("run-1", "run-2")
    assert other.read_bytes() != (two_runs / names[0]).read_bytes()


def test_runs_are_brought_to_one_level_by_volumes_that_are_never_scored(subject, two_runs, tmp_path):
    """A second run 20 % louder, as a scanner's gain may be: its own train volumes, or those before its test, tell."""
    root = shutil.copytree(two_runs, tmp_path / "louder")
    path = next(root.glob("sub-sim/ses-mri3t/func/*run-2_bold.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image((np.asanyarray(image.dataobj) * 1.2).astype(np.int16), image.affine, image.header), path)
    for by in ("time", "run"):
        one = subject(root, split_by=by)
        own = [one.Y[one.split.train[one.split.train < 300]], one.Y[one.split.test[one.split.test >= 300]]]
        apart = np.abs(np.diff([part.mean(axis=0) for part in own], axis=0)) / own[0].std(axis=0)
        assert np.median(apart) < 1.0, "twenty per cent of the mean would be some fifteen standard deviations"


def test_models_are_fitted_as_if_no_other_run_were_near(subject):
    """History and sound by brute force, run by run: no lag and no delay looks across the border."""
    one = subject()
    rows = workflow.fit_linear_rows(one, 5.0, names=("history", "sound"))
    split, starts = one.split, one.run.files.starts
    first = [int(start + np.argmax(split.train[split.train >= start] - start)) for start in starts]
    assert all(part[0] >= start + 2 for part, start in zip(splits.stretches(split.train), starts, strict=True)), first
    made = models.predict_row(one, rows["history"], split.test, "one_step", fitted_on=split.train)
    order, mean = one.params.history_order, one.Y[split.train].mean(axis=0)  # taken off, or float32 tells nothing apart

    def lagged(volumes, voxel):
        past = [one.Y[volumes - lag, voxel] - mean[voxel] for lag in range(1, order + 1)]
        return np.column_stack([np.ones(len(volumes)), *past])

    for voxel in (0, one.Y.shape[1] // 2, one.Y.shape[1] - 1):
        known = np.linalg.lstsq(lagged(split.train, voxel), one.Y[split.train, voxel] - mean[voxel], rcond=None)[0]
        np.testing.assert_allclose(rows["history"].phi[:, voxel], known[1:], atol=1e-5)
        np.testing.assert_allclose(made[:, voxel], mean[voxel] + lagged(split.test, voxel) @ known, rtol=1e-6)
    parts = [pairing.make_design(s, f.sound_times, f.t_r, response="hrf") for s, f in zip(
        workflow.read_features(one.params, one.run.files), one.run.files.parts, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(one.designs["sound"].at(5.0), np.vstack([part.at(5.0) for part in parts]))


@pytest.mark.parametrize(("history", "looks_back"), [(0, 2), (9, 9)])
def test_as_many_volumes_of_its_own_run_precede_each_volume_as_models_look_back(subject, history, looks_back):
    """History of order 2, or a network that has 9 previous volumes: none of them is a test volume of the run before."""
    given = {"response": "delay", "delays": [0.0, 1.0], "mlp_delays": [0.0], "skip_initial": 0, "target": "difference"}
    one = subject(**given, mlp_history=history)
    first = [part[0] for part in splits.stretches(one.whole_run)] - one.run.files.starts
    assert list(first) == [2 + looks_back] * 2, "at 1 s the sound does not reach the first two"


@pytest.mark.parametrize("by", ["time", "run"])
def test_open_loop_starts_anew_in_every_run(subject, by):
    one = subject(split_by=by)
    row = workflow.fit_linear_rows(one, 5.0, names=("history",))["history"]
    split = one.split
    made = models.predict_row(one, row, split.test, "open_loop", fitted_on=split.train)
    last = split.test >= 300
    begin = split.train[split.train >= 300][-1] + 1 if by == "time" else split.test[0]
    series = one.Y[begin - 4 : begin].astype(np.float64)
    for k in range(begin, split.test[-1] + 1):
        step = row.drive(np.array([k]))[0] + sum(row.phi[lag - 1] * series[-lag] for lag in range(1, len(row.phi) + 1))
        series = np.vstack([series, step])
    np.testing.assert_allclose(made[last], series[-last.sum() :], rtol=1e-3)


@pytest.mark.parametrize("by", ["time", "run"])
def test_nothing_fitted_knows_the_test_part_of_any_run(subject, two_runs, tmp_path, by):
    """Other test volumes in both runs: mask, levels, sweep and models stay as they are, bit for bit."""
    before = subject(split_by=by)
    root = shutil.copytree(two_runs, tmp_path / "spoilt")
    for k, path in enumerate(sorted(root.glob("sub-sim/ses-mri3t/func/*_bold.nii.gz"))):
        image = nib.load(path)
        data = np.asanyarray(image.dataobj).copy()
        test = before.split.test[(before.split.test >= 300 * k) & (before.split.test < 300 * (k + 1))] - 300 * k
        data[..., test] = np.random.default_rng(k).integers(0, 5000, (*data.shape[:3], len(test)))
        nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
    after = subject(root, split_by=by)
    fitted = []
    for one in (before, after):
        found = workflow.ensure_sweep(one)
        rows = workflow.fit_linear_rows(one, found.delay, follows=found.follows)
        model, _, _, _ = workflow.ensure_mlp(one)
        row = {name: np.vstack([row.phi, row.drive(one.split.train[:1])]) for name, row in rows.items()}
        fitted.append(
            row
            | {f"mlp {name}": value.numpy() for name, value in model.state_dict().items()}
            | {"mask": one.run.mask, "range": np.array(one.run.value_range), "train": one.Y[one.split.train]}
            | {"sweep": found.table.drop(columns="region").to_numpy(), "voxels": found.voxels.to_numpy()}
        )
    assert not np.array_equal(before.Y[before.split.test], after.Y[after.split.test])
    for name, value in fitted[0].items():
        assert np.array_equal(value, fitted[1][name], equal_nan=True), name


def test_planted_delay_is_found_in_two_runs(subject):
    found = workflow.ensure_sweep(subject(delays=[4, 4.5, 5, 5.5, 6, 6.5, 7]))
    assert found.chosen["identifiable"] and 5.0 <= found.delay <= 6.5, "5.0 s left, 6.5 s right"


def test_shift_that_brings_one_run_onto_another_is_no_surrogate():
    from bold_audio.significance import admissible_shifts

    one = admissible_shifts(600, 1.0, longest_delay=10)
    two = admissible_shifts(600, 1.0, longest_delay=10, starts=(0, 250))
    assert set(two) < set(one)
    assert not [k for k in two if abs(k - 250) < 20 or abs(k - 350) < 20], "the second onto the first, and back"
    assert set(one) - set(two) == {k for k in one if abs(k - 250) < 20 or abs(k - 350) < 20}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"audio_path": ["stimuli/film.wav"] * 3}, "audio_path has 3 for 2 runs - give one for each run"),
        ({"run": 1, "split_by": "run", "audio_path": SOUNDS[0]}, "split_by run needs several runs"),
        ({"audio_path": [SOUNDS[0], "stimuli/none.wav"]}, "sound file not found: .*none.wav"),
    ],
)
def test_sounds_and_runs_that_do_not_go_together_are_refused(subject, given, match):
    with pytest.raises((DataError, ParameterError), match=match):
        subject(**given)


def test_one_sound_serves_all_runs(subject):
    one = subject(audio_path=SOUNDS[0])
    at = one.designs["sound"].at(5.0)
    np.testing.assert_array_equal(at[:300], at[300:])
    assert one.sound.source.count("film") == 1
    both = subject()
    assert "film.wav and sound file film2.wav" in both.sound.source
    assert len(both.input_md5) == 8  # two runs, their sidecars and events, two sounds


def test_runs_with_sounds_of_two_rates_have_the_same_features(subject, two_runs, tmp_path):
    """MFCCs of another number of mel bands are other features: the first film at 16 kHz is heard as at 44.1 kHz."""
    y, rate = soundfile.read(two_runs / SOUNDS[0])
    slow = str(tmp_path / "slow.wav")
    soundfile.write(slow, librosa.resample(y, orig_sr=rate, target_sr=16000), 16000)
    mixed = subject(audio_path=[SOUNDS[0], slow])
    at = mixed.designs["sound"].at(5.0)
    full, low = at[:300], at[300:]
    kept = np.isfinite(full).all(axis=1)
    r = [np.corrcoef(full[kept, k], low[kept, k])[0, 1] for k in range(full.shape[1])]
    assert min(r) > 0.95
    assert mixed.sound.n_bands < subject().sound.n_bands == 128
    assert any("MFCCs of all runs are made of its" in said for said in mixed.sound.warnings)


@pytest.fixture
def heard(two_runs, tmp_path):
    """Function: the sounds of runs, read, as `open_subject` merges them; and the path of the second film, changed."""
    y, rate = soundfile.read(two_runs / SOUNDS[1], dtype="int16")

    def changed(change):
        soundfile.write(tmp_path / "changed.wav", change(y, rate), rate)
        return str(tmp_path / "changed.wav")

    def hear(**given):
        folders = {"data_dir": str(two_runs), "outputs_dir": str(two_runs.parent / "outputs")}
        params = load_params("sim", **folders | {"run": "all"} | QUICK | given)
        return workflow.first_sound(workflow.read_features(params, workflow.ensure_scan(params)))

    return hear, changed


def test_what_is_wrong_with_the_sound_of_a_later_run_is_told_with_its_name(heard):
    hear, changed = heard
    late = changed(lambda y, rate: np.roll(y, 5 * rate))
    said = "sound is 5 s late against the film's blocks: audio_onset -5 would put it right"
    assert hear(audio_path=SOUNDS).alarms == ()
    assert hear(audio_path=[SOUNDS[0], late]).alarms == (f"run-2: {said}",)
    assert hear(audio_path=[late, SOUNDS[1]]).alarms == (f"run-1: {said}",)
    assert hear(audio_path=late).alarms == (said,)  # of every run, so once
    assert hear(audio_path=late, run=2).alarms == (said,)
    short = changed(lambda y, rate: y[: -20 * rate])
    (warning,) = hear(audio_path=[SOUNDS[0], short], allow_short=True).warnings
    assert re.fullmatch(r"run-2: sound stops at 162\.4 s, the scan needs 182\.4 s of it: the last .*", warning)


def test_annotations_of_all_runs_are_the_same_where_one_run_has_no_blocks(two_runs, tmp_path):
    write_table(
        tmp_path / "words.tsv", pd.DataFrame({"onset": np.arange(0, 170, 0.5), "offset": np.arange(0.25, 170, 0.5)})
    )
    folders = {"data_dir": str(two_runs), "outputs_dir": str(tmp_path)}
    given = {"run": "all", "feature_source": "annotations", "annotation_tables": [str(tmp_path / "words.tsv")]}
    params = load_params("sim", **folders | QUICK | given)
    files = workflow.ensure_scan(params)
    assert all("speech_block" in one.names for one in workflow.read_features(params, files))
    without = replace(files.parts[1], events=files.parts[1].events.query("trial_type != 'speech'"))
    made = workflow.read_features(params, replace(files, parts=(files.parts[0], without)))
    assert made[0].names == made[1].names and "speech_block" not in made[0].names


@pytest.mark.parametrize(
    ("tables", "taken"),
    [
        ([["1_words.tsv", "1_syllables.tsv"], ["2_syllables.tsv", "2_words.tsv"]], ["1_words.tsv", "2_words.tsv"]),
        (["syllables.tsv", "words.tsv"], ["words.tsv", "words.tsv"]),
        ([["1_words.tsv"], ["2_syllables.tsv"]], ["1_words.tsv", None]),
        (["syllables.tsv"], [None, None]),
    ],
)
def test_each_run_is_held_against_its_own_words(heard, two_runs, monkeypatch, tables, taken):
    hear, _ = heard
    asked = []
    monkeypatch.setattr(adopt, "judge_sound", lambda made, *_, words: asked.append(words) or made)
    hear(audio_path=SOUNDS, annotation_tables=tables)
    assert asked == [None if name is None else two_runs / name for name in taken]


# --- preprocessed runs --------------------------------------------------------------------


def as_fmriprep(root, *, runs=(1, 2), **sidecar):
    """Write what fMRIPrep leaves of the simulated runs: scan in a space, brain mask, confounds."""
    out = root / "derivatives/fmriprep"
    func = out / "sub-sim/ses-mri3t/func"
    func.mkdir(parents=True)
    (out / "dataset_description.json").write_text('{"Name": "SIMULATED fMRIPrep", "DatasetType": "derivative"}')
    for run in runs:
        name = f"sub-sim_ses-mri3t_task-film_run-{run}"
        raw = nib.load(root / f"sub-sim/ses-mri3t/func/{name}_bold.nii.gz")
        made = f"{name}_space-MNI152NLin2009cAsym_res-2"
        nib.save(raw, func / f"{made}_desc-preproc_bold.nii.gz")
        (func / f"{made}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": 0.608} | sidecar))
        mean = np.asanyarray(raw.dataobj).mean(axis=3)
        brain = nib.Nifti1Image((mean > 500).astype(np.uint8), raw.affine)
        nib.save(brain, func / f"{made}_desc-brain_mask.nii.gz")
        motion = np.random.default_rng(run).normal(size=(raw.shape[3], 2))
        table = pd.DataFrame(motion, columns=["trans_x", "framewise_displacement"])
        table.to_csv(func / f"{name}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
        (func / f"{name}_desc-brain_bold.nii.gz").write_bytes(b"not the one")
    return out


@pytest.fixture
def prepared(two_runs, tmp_path):
    """Function: a copy of the dataset with a simulated fMRIPrep tree."""

    def make(**given):
        root = shutil.copytree(two_runs, tmp_path / "prepared")
        return root, as_fmriprep(root, **given)

    return make


def test_preprocessed_run_comes_with_its_mask_confounds_and_the_raw_events(prepared, subject):
    root, out = prepared()
    one = subject(root, derivatives="derivatives/fmriprep", run=1, audio_path=SOUNDS[0])
    files = one.run.files
    assert files.bold.parent == out / "sub-sim/ses-mri3t/func" and files.onset == 0.0
    assert files.events["trial_type"].tolist()[0] == "music"
    assert files.confounds.name == "sub-sim_ses-mri3t_task-film_run-1_desc-confounds_timeseries.tsv"
    mask = np.asanyarray(nib.load(files.mask).dataobj) > 0
    assert (one.run.mask <= mask).all() and one.run.n_voxels >= 0.99 * mask.sum()
    assert files.confounds.name in one.input_md5 and files.mask.name in one.input_md5
    coarse = subject(root, derivatives="derivatives/fmriprep", run=1, audio_path=SOUNDS[0], downsample=2).run
    within = data.downsample_grid(mask, files.affine, 2)[0] == 1
    assert (coarse.mask <= within).all() and coarse.n_voxels >= 0.95 * within.sum()
    both = subject(root, derivatives="derivatives/fmriprep")
    assert len(both.run.files.parts) == 2 and "space-MNI152NLin2009cAsym" in both.run.files.entities


@pytest.mark.parametrize(
    ("sidecar", "start"),
    [
        ({}, 0.0),
        ({"StartTime": 0.304, "SliceTimingCorrected": True}, 0.0),  # moved to the middle of each repetition
        ({"StartTime": 0.0, "SliceTimingCorrected": True}, -0.304),
        ({"StartTime": 1.216, "SliceTimingCorrected": False}, 1.216),
        ({"SliceTimingCorrected": True}, 0.0),
    ],
)
def test_moment_that_slices_were_moved_to_counts(prepared, subject, sidecar, start):
    root, _ = prepared(**sidecar)
    one = subject(root, derivatives="derivatives/fmriprep", run=1, audio_path=SOUNDS[0], allow_short=True)
    np.testing.assert_allclose(one.run.files.volume_times, start + np.arange(300) * 0.608, atol=1e-12)


@pytest.mark.parametrize("value", ["0.3", True, 1e9, None])
def test_start_that_cannot_be_is_refused(tree, located, value):
    name = "sub-01/func/sub-01_task-film_bold"
    tree(f"{name}.nii.gz", (f"{name}.json", {"RepetitionTime": T_R, "StartTime": value}))
    with pytest.raises(DataError, match="StartTime in the sidecar must be a number of s"):
        located(audio_onset=0)


def test_maps_of_a_template_space_say_so(prepared, subject):
    root, _ = prepared()
    one = subject(root, derivatives="derivatives/fmriprep", run=1, audio_path=SOUNDS[0])
    workflow.ensure_sweep(one)
    about = json.loads(next(one.params.subject_path.glob("*space-MNI*stat-delay_statmap.json")).read_text())
    assert "SpatialReference" not in about
    assert about["Sources"][0].startswith("bids:raw:derivatives/fmriprep/sub-sim/ses-mri3t/func/")


def test_missing_derivatives_name_the_file(prepared, subject):
    root, _ = prepared(runs=(1,))
    with pytest.raises(DataError, match="sub-sim run 2 is not there: .*derivatives/fmriprep.*run-2.*desc-preproc_bold"):
        subject(root, derivatives="derivatives/fmriprep", run=2)
    with pytest.raises(DataError, match="is not there: .*desc-smooth_bold"):
        subject(root, derivatives="derivatives/fmriprep", run=1, desc="smooth")


# --- what is taken off, run by run ---------------------------------------------------------


def test_confounds_of_the_table_are_taken_off_in_every_run(prepared, subject):
    root, _ = prepared()
    given = {"derivatives": "derivatives/fmriprep", "audio_path": SOUNDS}
    plain, clean = subject(root, **given), subject(root, **given, confounds=["trans_x"])
    for k, part in enumerate(clean.run.files.parts):
        rows = clean.split.train[(clean.split.train >= 300 * k) & (clean.split.train < 300 * (k + 1))]
        x = pd.read_csv(part.confounds, sep="\t")["trans_x"].to_numpy()[rows - 300 * k]
        design = np.column_stack([np.ones(len(x)), x])
        expected = plain.Y[rows] - design[:, 1:] @ np.linalg.lstsq(design, plain.Y[rows], rcond=None)[0][1:]
        centred = expected - expected.mean(axis=0), clean.Y[rows] - clean.Y[rows].mean(axis=0)
        np.testing.assert_allclose(*centred, atol=0.02)
    path = clean.run.files.parts[1].confounds
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="confounds_timeseries.tsv has 299 rows, the run 300 volumes"):
        subject(root, **given, confounds=["trans_x"])


def test_run_without_train_part_has_nothing_that_confounds_could_be_fitted_on(subject):
    for given in ({"confounds": ["drift"]}, {"detrend": True}):
        with pytest.raises(
            ParameterError, match="fitted on train volumes, .*run-2_bold.nii.gz has none - leave them out"
        ):
            subject(split_by="run", **given)


@pytest.fixture
def moved_between(two_runs, tmp_path):
    """A copy whose second run is the first one again, the head one voxel (4 mm) further and 10 % brighter."""
    root = shutil.copytree(two_runs, tmp_path / "moved")
    first, second = sorted(root.glob("sub-sim/ses-mri3t/func/*_bold.nii.gz"))
    image = nib.load(first)
    data = (np.roll(np.asanyarray(image.dataobj), 1, axis=0) * 1.1).astype(np.int16)
    nib.save(nib.Nifti1Image(data, image.affine, image.header), second)
    return root


@pytest.mark.parametrize("by", ["time", "run"])
def test_all_runs_are_realigned_to_one_place(moved_between, subject, by):
    """After realign the second run's volumes look like the first's; as they came they do not."""
    alike = {}
    for realign in (False, True):
        one = subject(moved_between, audio_path=SOUNDS[0], split_by=by, realign=realign)
        spread = one.Y[100:105] - one.Y[110:115], one.Y[400:405] - one.Y[410:415]  # the same noise in both runs
        alike[realign] = np.corrcoef(spread[0].ravel(), spread[1].ravel())[0, 1]
    assert alike[True] > 0.9 > alike[False]


def test_nothing_is_called_a_jump_because_another_run_begins(moved_between, subject):
    found = workflow.ensure_quality(subject(moved_between, audio_path=SOUNDS[0]))
    assert np.isnan(found.volumes["dvars"][[0, 300]]).all() and np.isfinite(found.volumes["dvars"][301])
    assert np.isnan(found.volumes["framewise_displacement"][[0, 300]]).all()
    assert not len(found.outliers) and not found.volumes["finding"].str.startswith("jump").any()
    far = found.volumes[["trans_x"]].iloc[310:590].abs().mean().item()
    assert 3.5 < far < 4.5, "the second run lies 4 mm from the first, whose mean is the reference"


# --- all notebooks --------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["two runs", "preprocessed"])
def test_notebooks_and_report_from_end_to_end(two_runs, prepared, tmp_path, kind, capsys):
    """What 06 needs and is not there, the network and its export, it makes."""
    if kind == "two runs":
        root, given = two_runs, {"run": "all", "audio_path": SOUNDS}
    else:
        root, given = prepared()[0], {"derivatives": "derivatives/fmriprep", "run": 1, "audio_path": SOUNDS[0]}
    given |= {
        "data_dir": str(root),
        "outputs_dir": str(tmp_path / "out"),
        "models_dir": str(tmp_path / "models"),
    } | QUICK
    options = [word for name, value in given.items() for word in ("-p", name, json.dumps(value))]
    with pytest.raises(SystemExit) as ended:
        main(["run", "--subject", "sim", "--steps", "00,03,06", *options])
    assert ended.value.code == 0, capsys.readouterr().err
    folder = tmp_path / "out/sim/sub-sim"
    pages = {path.name for path in (folder / "report").glob("*.html")}
    about = {"index.html", "model_card.html", "map_of_the_sound.html"}
    assert pages == about | {"00_data_download.html", "03_dt_sweep.html", "06_inference.html"}
    assert "SIMULATED" in (folder / "report/06_inference.html").read_text()
    test = np.load(folder / "y_test_full.npy")
    (predicted,) = folder.glob("*_desc-predicted_bold.nii.gz")
    assert nib.load(predicted).shape == (18, 22, 22, len(test))
    name = "sub-sim_ses-mri3t_task-film_desc" if kind == "two runs" else "space-MNI152NLin2009cAsym_res-2_desc"
    assert name in predicted.name
    assert {"mlp", "history_sound"} <= set(pd.read_csv(folder / "scores.tsv", sep="\t")["model"])


def test_entities_are_read_from_names_alone():
    from pathlib import Path

    assert bids.entities_of(Path("task-film_bold.json")) == {"task": "film"}
    assert bids.entities_of(Path("sub-1_x_run-01_desc-a-b_bold.nii.gz")) == {"sub": "1", "run": "01", "desc": "a-b"}


def test_a_person_is_compared_with_the_first_of_the_tree_whoever_comes_later(tmp_path):
    for k in range(40):
        (tmp_path / f"sub-{k:02}").mkdir()
    params = load_params("35", "sim", data_dir=str(tmp_path))
    compared = bids.compared_subjects(params)
    assert compared == [*(f"{k:02}" for k in range(29)), "35"]
    (tmp_path / "sub-40").mkdir()
    assert bids.compared_subjects(params) == compared
