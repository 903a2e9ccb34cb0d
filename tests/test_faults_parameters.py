"""docs/faults.md, parameters and paths: what cannot be right is refused before anything is made."""

import re

import pytest
from faults import OUTPUTS, rows
from refusals import tree_hash
from release import SIZES, release_content, release_items

from bold_audio import registry
from bold_audio.access import TOKEN_VARIABLE
from bold_audio.params import load_params, parse_given

pytestmark = pytest.mark.slow


@pytest.fixture
def nothing_made(site):
    """After the test, there is no file that was not there before."""
    before = tree_hash(site.root)
    yield
    assert tree_hash(site.root).keys() == before.keys()


def refuse(site, says, *arguments, **given):
    """Refuse a run of the simulated subject for its parameters; the first of them is the first that is looked at."""
    return site.refuse("run", "--dataset", "sim", "--subject", "sim", *arguments, status=2, says=says, **given)


# --- subjects -----------------------------------------------------------------------------


@pytest.fixture
def release(site, monkeypatch):
    """A small ds003688, complete in a folder."""
    content = release_content()
    items = release_items(content)
    monkeypatch.setattr(registry, "release_files", lambda: tuple(items))
    for path in SIZES:
        (site.root / "release" / path).parent.mkdir(parents=True, exist_ok=True)
        (site.root / "release" / path).write_bytes(content[path])
    return site.root / "release"


SPELLINGS = {"P01-9": "9", "P01-09": "09", "P01-sub-09": "sub-09", "P01-SUB-09": " SUB-09 "}


@rows(*SPELLINGS)
def test_spellings_of_a_subject(site, release, row):
    said = site.call("fetch", "--subject", SPELLINGS[row], "--data-dir", release)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("sub-09: nothing was missing")


@rows("P01-from Python")
def test_numbers_are_subjects_too(row):
    assert {load_params(subject).subject for subject in (9, "9", "09", "sub-09", " SUB-09 ")} == {"09"}


@rows("P02-99", "P02-1e1", "P02-None", "P03")
def test_subject_that_is_none_of_ds003688(site, row, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE)
    subject = {"P03": "01"}.get(row, row[4:])
    what = "sub-01 has no fMRI (iEEG only)" if row == "P03" else f"unknown subject '{subject}'"
    line = site.refuse_run(2, [what, "fMRI subjects: 04 07 08 09"], subject=subject, dataset="ds003688")
    assert bool(re.search(r"did you mean \d?9\d?\?", line)) == (row == "P02-99")


@rows("P02-own dataset", "P02-own dataset, case", "P02-own dataset, far")
def test_subject_that_a_dataset_of_ones_own_does_not_have(site, nothing_made, row):
    meant = {"P02-own dataset": "sin", "P02-own dataset, case": "SIM"}
    subject = meant.get(row, "Q9")
    line = site.refuse_run(
        2, [f"unknown subject '{subject}'", "subjects of tiny: b, sim"], subject=subject, dataset="tiny"
    )
    assert ("did you mean sim?" in line) == (row in meant)


@rows("P02-empty", "P02-list", "P14-subject", "P14-subject/", "P14-subject NUL", "P14-300 characters")
def test_subject_that_cannot_be_one(site, nothing_made, row):
    kinds = {"empty": "", "list": "[9]", "subject": "../../etc", "subject/": "a/b", "subject NUL": "a\0b"}
    subject = kinds.get(row[4:], "a" * 300)
    says = "subject must be letters and digits such as 09 or sub-09"
    site.refuse("run", "--subject", subject, status=2, says=says)


@rows("P02-from Python")
def test_what_is_no_subject_in_python(row):
    for subject in (None, [9], 9.0, True):
        with pytest.raises(ValueError, match="subject must be a label such as 09, got .* - write it in quotes"):
            load_params(subject)


@rows("P14-option")
def test_subject_that_looks_like_an_option(site, nothing_made, row):
    site.refuse("run", "--subject", "-rf", status=2, says=["--subject: expected one argument", "--help"])


@pytest.mark.parametrize("name", ["../../etc", "a/b", "a\0b", "a" * 300, "-rf", "CON", "con.x"])
@rows("P14-model", "P14-experiment", "P14-dataset")
def test_name_that_cannot_be_one(site, nothing_made, row, name):
    kind = {"P14-model": "model_name", "P14-experiment": "mlflow_experiment"}.get(row)
    if kind is None:
        site.refuse("run", "--subject", "sim", f"--dataset={name}", status=2, says="dataset must be")
    elif name in ("a\0b", "-rf"):
        refuse(site, ["cannot read", "quote it"] if "\0" in name else "-p: expected 2 arguments", **{kind: name})
    else:
        refuse(site, f"{kind}: must be letters, digits", **{kind: name})


# --- files --------------------------------------------------------------------------------


@rows("P04", "P04-session", "P11", "P04-empty", "P11-broken")
def test_parameter_file_that_cannot_be_right(site, nothing_made, row, project, monkeypatch):
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(project))
    canary = site.root / "canary"
    text, says = {
        "P04": ("lr: 0.01\nsubject: 011\n", 'write the subject in quotes: "011"'),
        "P04-session": ("session: 011\n", 'write the session in quotes: "011"'),
        "P04-empty": ("- 1\n- 2\n", "must hold 'name: value' lines, got a list"),
        "P11": (f"lr: 0.01\nseed: 1\nmask: !!python/object/apply:os.mkdir ['{canary}']\n", ", line 3"),
        "P11-broken": ("lr: 0.01\nmask: [brain\n", ", line 3"),
    }[row]
    path = project / "params/sim/sub-sim.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    refuse(site, [str(path), says])
    assert not canary.exists()


# --- names and values ---------------------------------------------------------------------


@rows("P05")
def test_number_in_powers_of_ten(site, row):
    (lr,) = parse_given([("lr", "1e-3")]).values()
    assert isinstance(lr, str), "YAML 1.1 takes it for text"
    assert site.params(lr=lr).lr == 0.001


@rows("P06")
def test_misspelt_name(site, nothing_made, row):
    refuse(site, "unknown parameter n_mfc - did you mean n_mfcc?", n_mfc=20)


DELAYS = {"-1": "[-1]", "nan": "[.nan]", "inf": "[.inf]", "4,5": "'4,5'", "1000": "[1000]", "none": "[]", "text": "[a]"}


@rows(*(f"P07-{name}" for name in DELAYS))
def test_delay_that_cannot_be_one(site, nothing_made, row):
    line = refuse(site, "delays", delays=DELAYS[row[4:]])
    assert row in ("P07-none", "P07-4,5", "P07-text") or "must be from 0 to 120 s" in line


PARTS = {
    "P08-gap": ({"gap": 100}, ["of 130 volumes of 0.608 s are left for test", "gap 100 s", "at least 8 are needed"]),
    "P08-short gap": ({"gap": 0.6}, ["gap 0.6 s is 1 volumes, fewer than history_order 2 - lengthen gap"]),
    "P08-skip": ({"skip_initial": 60}, ["are left for train", "skip_initial 60 s", "at least 8 are needed"]),
    "P08-all train": ({"train_fraction": 1}, ["train_fraction"]),
    "P08-no train": ({"train_fraction": 0}, ["train_fraction"]),
    "P08-folds": ({"n_folds": 5, "gap": 5, "steps": "00-02"}, ["volumes are left to fit on beside a held-out block"]),
    "P08-lag": ({"response": "fir", "sound_lags": 60, "delays": "[100]"}, ["of 130 volumes of 0.608 s are left"]),
}


@rows(*PARTS)
def test_parts_that_do_not_fit_the_run(site, row):
    given, says = PARTS[row]
    executed = site.folder / "00_data_download.ipynb"
    before = executed.read_bytes()
    site.refuse_run(2, says, **given)
    assert executed.read_bytes() == before  # refused before the first notebook


@rows("P09")
def test_name_that_would_be_executed(site, nothing_made, row):
    canary = site.root / "canary"
    refuse(site, "unknown parameter x = 1", **{f"x = 1; __import__('os').mkdir({str(canary)!r})#": 1})
    assert not canary.exists()


@rows("P10-long", "P10-unreadable")
def test_value_that_is_no_text_to_keep(site, nothing_made, row):
    value = "x" * 10_000_000 if row == "P10-long" else "a\0b"
    line = refuse(site, "data_note", data_note=value)
    assert len(line) < 500


@rows("P10-text")
def test_value_is_taken_as_text(site, row):
    value = 'it\'s "quoted" {{ x }} {y} %d\n# not YAML'
    assert parse_given([("data_note", repr(value).replace("\\'", "''"))]) != {}
    assert site.params(data_note=value).data_note == value


# --- folders ------------------------------------------------------------------------------


@rows("P12", "P13")
def test_folder_with_an_awkward_name(earlier, row):
    folder = earlier.root / OUTPUTS / "sim/sub-sim"
    assert "sub-sim: done in" in earlier.said.out
    assert (folder / "00_data_download.ipynb").is_file() and (folder / "report/00_data_download.html").is_file()
    assert {path.name for path in earlier.root.iterdir() if path.is_dir()} == {"data", OUTPUTS, "models"}


@rows("P15-outputs_dir", "P15-models_dir", "P15-checkpoint_dir", "P15-link")
def test_results_inside_the_raw_data(site, nothing_made, row, tmp_path):
    name, folder = row[4:], site.data / "results"
    if row == "P15-link":
        name, folder = "outputs_dir", tmp_path / "link/results"
        folder.parent.symlink_to(site.data)
    refuse(site, [f"{name} must lie outside the data", f"inside {site.data}"], **{name: folder})


@rows("P15-out")
def test_prediction_inside_the_raw_data(site, nothing_made, row):
    target = site.data / "sub-sim/new_bold.nii.gz"
    says = f"out must lie outside the data, got {target} inside {site.data}"
    site.refuse(
        "predict", "--dataset", "sim", "--subject", "sim", "--sound", site.sound, "--out", target, status=2, says=says
    )
