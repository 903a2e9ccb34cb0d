"""Parameters: every usual spelling is understood, everything else refused in one line."""

import math
import shutil
import types
from functools import partial
from pathlib import Path

import pytest
import refusals
import yaml
from pydantic import ValidationError

from bold_audio.files import ParameterError, project_root
from bold_audio.params import load_params, normalise_subject, notebook_params, read_parameter_file
from bold_audio.schema import Params

WITH_FMRI = "04 07 08 09 11 13 14 15 16 18 22 24 27 28 29 31 35 41 43 44 45 46 47 51 52 53 55 56 60 62"  # METHOD.md
REAL_SUBJECTS = WITH_FMRI.split()

refused = partial(refusals.refused, kind=ParameterError)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of the test's own: the real common.yaml and one dataset, tiny, with subject 01."""
    params = tmp_path / "project" / "params"
    (params / "tiny").mkdir(parents=True)
    (params.parent / "notebooks").mkdir()
    shutil.copy(project_root() / "params" / "common.yaml", params)
    (params / "tiny.yaml").write_text("data_dir: data/tiny\n")
    (params / "tiny" / "sub-01.yaml").write_text('subject: "01"\n')
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(params.parent))
    return params.parent


def test_there_are_files_for_exactly_the_30_real_subjects():
    folder = project_root() / "params" / "ds003688"
    assert sorted(p.name for p in folder.iterdir()) == [f"sub-{s}.yaml" for s in REAL_SUBJECTS]


@pytest.mark.parametrize("subject", REAL_SUBJECTS)
def test_every_real_subject_loads(subject):
    params = load_params(subject)
    assert (params.subject, params.dataset, params.task) == (subject, "ds003688", "film")
    # Papermill's -f reads this file without our checks: 09 without quotes would arrive as another number.
    assert read_parameter_file(project_root() / f"params/ds003688/sub-{subject}.yaml")["subject"] == subject


def test_common_yaml_gives_every_parameter_its_default():
    common = read_parameter_file(project_root() / "params" / "common.yaml")
    assert set(common) == set(Params.model_fields) - {"subject", "dataset", "data_dir"}


@pytest.mark.parametrize(
    "dataset", sorted(p.stem for p in (project_root() / "params").glob("*.yaml") if p.stem != "common")
)
def test_every_dataset_file_loads(dataset):
    params = load_params("01", dataset)
    assert params.dataset == dataset
    assert params.data_note  # every report says what scan it shows


# --- the subject ------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [9, "9", "09", "sub-09", "sub-9", " SUB-09 ", "09\n"])
def test_spellings_of_a_subject_mean_the_same(spelling):
    assert normalise_subject(spelling) == "09"
    assert load_params(spelling).subject == "09"


@pytest.mark.parametrize(
    ("spelling", "label"), [("sim", "sim"), ("sub-sim", "sim"), (11, "11"), ("AB1", "AB1"), (123, "123")]
)
def test_other_labels_stay_as_they_are(spelling, label):
    assert normalise_subject(spelling) == label


@pytest.mark.parametrize(
    "subject",
    ["", " ", None, [9], ["09"], True, False, 9.0, -9, b"09", "1.e1", "1e+1", "../etc", "a/b", "..", "-rf", "sub-",
     "sub-sub-09", "0 9", "a\nb", "\x00", "٩", "x" * 300],
    ids=lambda s: repr(s)[:12],
)  # fmt: skip
def test_what_cannot_be_a_subject_is_refused(subject):
    with refused("subject must be") as caught:
        load_params(subject)
    assert repr(subject) in str(caught.value)


def test_the_simulated_subject_has_its_own_dataset():
    assert load_params("sim").dataset == "sim"
    assert load_params(9).dataset == "ds003688"
    assert load_params("18", "alice").dataset == "alice"


@pytest.mark.parametrize("line", ["subject: 011", "subject: 011  # a person", "subject:  09"])
def test_a_bare_number_with_a_zero_is_refused_in_yaml(tmp_path, line):
    path = tmp_path / "sub-011.yaml"
    path.write_text(f"lr: 0.1\n{line}\n")
    with refused('write the subject in quotes: "0(11|9)"'):
        read_parameter_file(path)


@pytest.mark.parametrize("line", ['subject: "011"', "subject: '011'"])
def test_a_quoted_number_with_a_zero_is_taken(tmp_path, line):
    (tmp_path / "a.yaml").write_text(line)
    assert read_parameter_file(tmp_path / "a.yaml") == {"subject": "011"}


def test_a_subject_file_with_a_bare_number_is_refused_when_it_is_used(project):
    (project / "params" / "tiny" / "sub-01.yaml").write_text("subject: 01\n")
    with refused('sub-01.yaml: .* - write the subject in quotes: "01"'):
        load_params("01", "tiny")


# --- names and values -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("n_mfc", "n_mfcc"), ("delay", "delays"), ("trainfraction", "train_fraction"), ("Lr", "lr"), ("alpha", "alphas")],
)
def test_a_misspelt_name_gets_the_nearest_right_one(wrong, meant):
    with refused(rf"^unknown parameter {wrong} - did you mean {meant}\?$"):
        load_params("09", **{wrong: 1})


def test_a_name_like_no_other_points_to_the_list():
    with refused("unknown parameter qqqq - see params/common.yaml"):
        load_params("09", qqqq=1)


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny/sub-01.yaml", "common.yaml"])
def test_a_misspelt_name_in_any_file_is_refused(project, name):
    path = project / "params" / name
    path.write_text(path.read_text() + "\nn_mfc: 20\n")
    with refused("unknown parameter n_mfc - did you mean n_mfcc"):
        load_params("01", "tiny")


def test_a_misspelt_name_with_a_newline_still_gives_one_line():
    with refused("unknown parameter"):
        load_params("09", **{"x = 1\n__import__('os')": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_mfcc", True), ("n_mfcc", 2.5), ("n_mfcc", 0), ("n_mfcc", 129), ("n_mfcc", "many"), ("n_mfcc", [20]),
        ("lr", True), ("lr", 0), ("lr", -1e-3), ("lr", math.nan), ("lr", math.inf), ("lr", "fast"),
        ("delays", -1), ("delays", [-1]), ("delays", [4, -1]), ("delays", [math.nan]), ("delays", [math.inf]),
        ("delays", "4,5"), ("delays", 5), ("delays", []), ("delays", [1000]), ("delays", [5, 4]), ("delays", [4, 4]),
        ("delays", [4, True]), ("delays", ["4 s"]), ("mlp_delays", [5, 4]), ("mlp_delays", [-1]),
        ("train_fraction", 0), ("train_fraction", 1), ("train_fraction", 1.5), ("train_fraction", math.nan),
        ("train_fraction", True), ("gap", -1), ("gap", 121), ("gap", math.nan), ("skip_initial", -0.1), ("n_folds", 1),
        ("n_folds", True), ("alphas", [0]), ("alphas", [-1]), ("alphas", [math.nan]), ("alphas", [True]),
        ("alphas", []), ("alphas", [math.inf]), ("run", [1, 1]), ("run", ["1", "01"]),
        ("hidden_dims", []), ("hidden_dims", [0]), ("hidden_dims", [True]),
        ("dropout", 1), ("dropout", -0.1),
        ("weight_decay", -1), ("weight_decay", math.nan), ("n_components", 0), ("max_epochs", 0), ("seed", -1),
        ("seed", 1.5), ("audio_onset", math.inf), ("audio_onset", True), ("audio_onset", "early"),
        ("smoothing_fwhm", -1), ("smoothing_fwhm", 51), ("downsample", 0), ("downsample", 1.5), ("detrend", "maybe"),
        ("allow_short", 2), ("response", "hemodynamic"), ("target", "volumes"), ("feature_source", "sound"),
        ("t_r_source", "json"), ("runtime", "triton2"), ("prediction", "two_step"), ("session", "a b"),
        ("session", "../x"), ("run", True), ("run", 1.0), ("task", "x" * 51), ("model_name", "../x"),
        ("model_name", "a/b"), ("model_name", "-rf"), ("model_name", "x" * 300), ("mlflow_experiment", "a\nb"),
        ("mlflow_uri", "sqlite:///mine.db"), ("mlflow_uri", "127.0.0.1:8080"), ("mlflow_uri", "http://"),
        ("model_version", 0), ("chunk_voxels", 1), ("history_order", 0), ("history_order", 21), ("sound_lags", -1),
        ("annotation_tables", "words.tsv"), ("mask", True), ("data_dir", 5), ("n_fft", 16), ("sample_rate", 0),
    ],
    ids=lambda v: repr(v)[:16],
)  # fmt: skip
def test_a_wrong_value_is_refused_under_its_name(name, value):
    with refused(rf"^{name}(\.\d+)?: ") as caught:
        load_params("09", **{name: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("mlflow_uri", "http://me:hunter2@127.0.0.1:8080", "MLFLOW_TRACKING_PASSWORD"),
        ("triton_url", "me:hunter2@127.0.0.1:8001", "host:port"),
        ("triton_url", "grpcs://me:hunter2@127.0.0.1:8001", "host:port"),
        ("dvc_url", "https://me:hunter2@dav.example.org/x", "YANDEX_WEBDAV_TOKEN"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(name, value, mend):
    with refused(f"^{name}: must not hold a user or password - .*{mend}[^@]*$") as caught:
        load_params("09", **{name: value})
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_message_tells_the_rule_and_the_value():
    with refused(r"^dropout: input should be less than 1, got '1.5' - see dropout in params/common.yaml$"):
        load_params("09", dropout=1.5)
    with refused(
        r"^delays: must be in increasing order, each delay once, got '\[5, 4\]' - see delays in params/common.yaml$"
    ):
        load_params("09", delays=[5, 4])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"response": "fir"}, "response fir needs sound_lags"),
        ({"sound_lags": 3}, "sound_lags does nothing with response hrf - set it to 0, or take response fir"),
        ({"hop_length": 4096}, "hop_length 4096 must not exceed n_fft 2048"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(given, match):
    with refused(match):
        load_params("09", **given)


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("lr", "1e-3", 0.001), ("n_mfcc", "20", 20), ("n_mfcc", 13.0, 13), ("run", 2, "2"), ("session", "02", "02"),
        ("run", [1, "10", "01b"], ["1", "10", "01b"]),
        ("alphas", [4, 1, 1], [1.0, 4.0]), ("alphas", [1, math.inf], [1.0, math.inf]), ("delays", [0], [0.0]),
        ("delays", [0, 0.304, 120], [0.0, 0.304, 120.0]), ("audio_onset", -20, -20.0), ("audio_onset", 0, 0.0),
        ("sound_lags", 0, 0), ("mlp_delays", [], []), ("train_fraction", 0.01, 0.01), ("seed", 0, 0),
    ],
    ids=lambda v: repr(v)[:16],
)  # fmt: skip
def test_right_values_are_taken_with_their_own_type(name, value, taken):
    got = getattr(load_params("09", **{name: value}), name)
    assert got == taken
    assert type(got) is type(taken)


def test_yaml_text_1e_3_becomes_a_number(project):
    (project / "params" / "tiny.yaml").write_text("data_dir: data/tiny\nlr: 1e-3\n")
    assert yaml.safe_load("lr: 1e-3") == {"lr": "1e-3"}  # what YAML makes of it
    assert load_params("01", "tiny").lr == 0.001


def test_fir_with_lags_is_taken():
    assert load_params("09", response="fir", sound_lags=3).sound_lags == 3


# --- which file wins --------------------------------------------------------------------


def test_common_then_dataset_then_subject_then_given(project):
    params = project / "params"
    default = read_parameter_file(params / "common.yaml")
    (params / "tiny.yaml").write_text("data_dir: data/tiny\nn_mfcc: 11\ngap: 11\nseed: 11\n")
    (params / "tiny" / "sub-01.yaml").write_text("gap: 12\nseed: 12\n")
    got = load_params("01", "tiny", seed=13)
    assert (got.n_folds, got.n_mfcc, got.gap, got.seed) == (default["n_folds"], 11, 12, 13)
    assert 11 not in (default["n_mfcc"], default["gap"], default["seed"])
    other = load_params("02", "tiny")  # without a file of its own
    assert (other.n_mfcc, other.gap, other.seed) == (11, 11, 11)


def test_none_means_as_in_the_files(project):
    (project / "params" / "tiny.yaml").write_text("data_dir: data/tiny\nn_mfcc: 11\n")
    assert load_params("01", "tiny", n_mfcc=None).n_mfcc == 11


def test_the_files_do_not_rename_the_subject(project):
    (project / "params" / "tiny" / "sub-01.yaml").write_text('subject: "44"\ndataset: other\n')
    got = load_params("01", "tiny")
    assert (got.subject, got.dataset) == ("01", "tiny")


def test_a_dataset_without_a_file_needs_data_dir():
    with refused("dataset mine has no file in params/ .*alice.*ds003688.*sim.* - pass data_dir"):
        load_params("01", "mine")
    params = load_params("01", "mine", data_dir="/somewhere")
    assert (params.dataset, str(params.data_path), params.task) == ("mine", "/somewhere", "film")


@pytest.mark.parametrize("dataset", ["../x", "a b", "a/b", "a-b", 5, ["sim"], "\x00"], ids=repr)
def test_what_cannot_be_a_dataset_is_refused(dataset):
    with refused("dataset must be"):
        load_params("01", dataset, data_dir="/somewhere")


def test_a_dataset_of_300_letters_is_refused():
    with refused("dataset"):
        load_params("01", "x" * 300, data_dir="/somewhere")


def test_outputs_inside_the_raw_data_are_refused():
    with refused("outputs_dir"):
        load_params("09", outputs_dir="data/ds003688/sub-09")


@pytest.mark.parametrize("name", ["data_dir", "outputs_dir", "mask", "data_note", "mlflow_uri"])
@pytest.mark.parametrize("text", ["a\0b", "a\x1b[31m", "a\ud800"])
def test_text_that_cannot_be_a_name_or_written_is_refused(name, text):
    with refused(f"{name}: (must not hold control characters|input should be a valid string)"):
        load_params("sim", **{name: text})


def test_text_within_lists_and_dictionaries_is_looked_at_too():
    with refused("annotation_tables"):
        load_params("sim", annotation_tables=[["a", "b\0"]])
    for path in ("b\0", "b\ud800"):
        with refused("regions: must not hold control characters"):
            load_params("sim", regions={"a": {"mask": path}})


def test_the_home_of_nobody_is_refused():
    with refused("there is no home folder for ~nobody_at_all/x - write the whole path"):
        load_params("sim", outputs_dir="~nobody_at_all/x")


@pytest.mark.parametrize("name", ["data_dir", "outputs_dir", "audio_path", "derivatives"])
@pytest.mark.parametrize("path", ["x" * 256, "é" * 130, "\U0001f9e0/" * 900])
def test_paths_that_no_disk_takes_are_refused(name, path):
    with refused("is longer than a disk takes - choose a shorter one"):
        params = load_params("sim", **{name: path})
        assert params.audio_files and params.derivatives_path


@pytest.mark.parametrize("name", ["CON", "nul", "Aux.txt", "com1", "LPT9.onnx"])
def test_names_that_windows_keeps_for_itself_are_refused(name):  # P14
    with refused("model_name"):
        load_params("sim", model_name=name)
    assert load_params("sim", model_name=f"{name}sole".replace(".", "_")).model_name


# --- parameter files --------------------------------------------------------------------


def test_yaml_that_would_run_code_is_refused_with_its_line(tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "evil.yaml"
    path.write_text(f'lr: 0.1\nseed: 1\nn_mfcc: !!python/object/apply:os.system ["touch {canary}"]\n')
    with refused("cannot read parameter file .*evil.yaml, line 3 - "):
        read_parameter_file(path)
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"lr: 0.1\nseed:\n\t- 1\n", "line 3 - write it as"),
        (b"- 1\n- 2\n", "must hold 'name: value' lines, got a list"),
        (b"hello", "must hold 'name: value' lines, got a str"),
        (b"\xff\xfe\x00a", "cannot read parameter file .* - write it as"),
        (b"a: \x00", "cannot read parameter file .* - write it as"),
        (b"n_mfcc: 20\nrun: 1\nn_mfcc: 40\n", "line 3: n_mfcc stands twice - keep one of them"),
        (b"regions:\n  a: {mask: m}\n  a: {mask: n}\n", "line 3: a stands twice - keep one of them"),
        (b"a: &x [1, 2]\nb: [*x, *x, *x]\n", "cannot read parameter file .*, line 2 - write it as"),
        (b"[" * 5000, "cannot read parameter file .* - write it as"),
        (b"task: 2001-13-01", "cannot read parameter file .* - write it as"),
        (b"allow_short: !!bool maybe", "cannot read parameter file .* - write it as"),
        (b"seed: !!int ''", "cannot read parameter file .* - write it as"),
        (b"task: !!timestamp x", "cannot read parameter file .* - write it as"),
        (b"gap: 1" + b":01" * 400 + b".5", "cannot read parameter file .* - write it as"),
        (b"seed: " + b"9" * 5000, "cannot read parameter file .* - write it as"),
    ],
)
def test_a_file_that_is_no_parameter_file_is_refused(tmp_path, content, match):
    (tmp_path / "bad.yaml").write_bytes(content)
    with refused(match) as caught:
        read_parameter_file(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with refused("parameter file not found: .*none.yaml - "):
        read_parameter_file(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n"])
def test_an_empty_file_sets_nothing(tmp_path, text):
    (tmp_path / "empty.yaml").write_text(text)
    assert read_parameter_file(tmp_path / "empty.yaml") == {}


# --- what a notebook passes -------------------------------------------------------------

NOTEBOOK = {
    "subject": "sim",
    "dataset": None,
    "n_mfcc": None,
    "__name__": "__main__",
    "_": 3,
    "_i1": "x = 1",
    "In": [""],
    "Out": {},
}


def test_papermill_injects_an_integer_subject():
    params = notebook_params(NOTEBOOK | {"subject": 9, "n_mfcc": 13})
    assert (params.subject, params.dataset, params.n_mfcc) == ("09", "ds003688", 13)


def test_what_a_notebook_leaves_none_is_as_in_the_files():
    assert notebook_params(NOTEBOOK) == load_params("sim")


@pytest.mark.parametrize("value", [30, 0.5, "x", True, None, [1], (1, 2), {"a": 1}], ids=repr)
def test_a_misspelt_injected_name_is_refused(value):
    with refused(r"^unknown parameter n_mfc - did you mean n_mfcc\?$"):
        notebook_params(NOTEBOOK | {"n_mfc": value})


def test_modules_functions_classes_and_private_names_are_no_parameters():
    others = {
        "np": types,
        "load": load_params,
        "Path": Path,
        "here": Path("."),
        "exit": object(),
        "_n_mfc": 3,
        "__x": 1,
    }
    assert notebook_params(NOTEBOOK | others) == load_params("sim")


def test_a_notebook_without_a_subject_is_refused():
    with refused("subject is missing - pass one, such as -p subject 09"):
        notebook_params({"n_mfcc": 13})


def test_reading_a_notebooks_names_changes_none_of_them():
    names = NOTEBOOK | {"subject": 9}
    before = dict(names)
    notebook_params(names)
    assert names == before


# --- where things go --------------------------------------------------------------------


def test_no_two_kinds_of_run_share_a_folder(project):
    (project / "params" / "tiny2.yaml").write_text("data_dir: data/tiny\n")
    runs = [
        load_params("01", "tiny"),
        load_params("01", "tiny", feature_source="annotations"),
        load_params("02", "tiny"),
        load_params("01", "tiny2"),
    ]
    assert len({p.subject_path for p in runs}) == 4
    assert len({p.exported_name for p in runs}) == 4
    assert runs[0].subject_path == project / "outputs" / "tiny" / "sub-01"
    assert runs[1].subject_path == project / "outputs" / "tiny-annotations" / "sub-01"


def test_paths_are_the_same_from_every_folder(monkeypatch):
    from_root = load_params("09")
    monkeypatch.chdir(project_root() / "notebooks")
    assert load_params("09").subject_path == from_root.subject_path
    assert load_params("09").data_path == from_root.data_path == project_root() / "data" / "ds003688"


def test_the_sound_file_lies_below_the_data_or_below_the_project(project):
    params = load_params("01", "tiny", audio_path="stimuli/film.wav")
    below, beside = (root / "stimuli" / "film.wav" for root in (params.data_path, project))
    assert params.audio_files == [below], "one that is nowhere is expected in the dataset"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert params.audio_files == [beside]
    below.parent.mkdir(parents=True)
    below.touch()
    assert params.audio_files == [below]
    elsewhere = project / "my film.wav"
    elsewhere.touch()
    assert load_params("01", "tiny", audio_path=str(elsewhere)).audio_files == [elsewhere]
    assert load_params("01", "tiny").audio_files == []


def test_parameters_cannot_be_changed_later():
    params = load_params("09")
    with pytest.raises(ValidationError, match="frozen"):
        params.n_mfcc = 13
    assert params.n_mfcc == load_params("09").n_mfcc
