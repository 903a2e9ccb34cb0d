"""The command line and the whole way: what a run leaves, what it says when it cannot, and that it can be run again."""

import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from refusals import in_process, tree_hash
from release import TOKEN, traces

from bold_audio import ending, workflow
from bold_audio.access import TOKEN_VARIABLE
from bold_audio.execution import OPENING
from bold_audio.files import ParameterError, file_md5
from bold_audio.models import LINEAR_NAMES
from bold_audio.params import load_params, parse_given
from bold_audio.steps import STEPS, chosen_steps

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
COLUMNS = [
    "model",
    "prediction",
    "region",
    "mse",
    "r_median",
    "n_with_r",
    "r_best",
    "r2",
    "skill",
    "reference",
    "n_volumes",
    "n_voxels",
]
MODEL = "sim_sub-sim"


def call(program, *arguments, cwd=ROOT, **variables):
    """Run an installed program the way a person does, with further variables in its environment."""
    environment = {k: v for k, v in os.environ.items() if k != "BOLD_AUDIO_ROOT"} | variables
    command = [str(SCRIPTS / program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, env=environment)


def last_line(done):
    return [line for line in done.stderr.splitlines() if line.strip()][-1]


def given(**parameters):
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


def visible(path):
    """Text that a page shows."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    for hidden in soup(["script", "style"]):
        hidden.decompose()
    return " ".join(soup.get_text(" ").split())


# --- words of the command line ------------------------------------------------------------


@pytest.mark.parametrize(
    "text, numbers",
    [("00-06", "0123456"), ("03", "3"), ("3", "3"), ("02,03", "23"), (" 5 , 0-1", "015"), ("06,00,06", "06")],
)
def test_steps_are_run_in_order_each_once(text, numbers):
    assert [name[1] for name in chosen_steps(text)] == list(numbers)
    assert set(chosen_steps(text)) <= set(STEPS)


BACKWARDS = "06-00"


@pytest.mark.parametrize("text", ["", "abc", "1-", "-1", "0-1-2", "00_data_download", "07", "5-9", "99", BACKWARDS])
def test_steps_that_are_none_are_refused(text):
    with pytest.raises(ParameterError, match="steps must"):
        chosen_steps(text)


def test_values_are_read_as_yaml():
    pairs = [
        ("subject_list", "[1, 2.5]"),
        ("a", "null"),
        ("b", "true"),
        ("c", "text"),
        ("d", "'09'"),
        ("e", "7"),
        ("f", ""),
    ]
    assert parse_given(pairs, null=True) == {
        "subject_list": [1, 2.5],
        "a": None,
        "b": True,
        "c": "text",
        "d": "09",
        "e": 7,
        "f": None,
    }


@pytest.mark.slow
def test_value_that_cannot_be_read_or_would_run_code_is_refused(tmp_path):
    canary = tmp_path / "canary"
    for value in (
        "[4, 5",
        f"!!python/object/apply:os.mkdir ['{canary}']",
        "a: b: c",
        "\x00",
        "[&a [1], *a]",
        "[" * 5000,
        "2001-13-01",
    ):
        with pytest.raises(ParameterError, match="-p delays: cannot read .* quote it"):
            parse_given([("delays", value)])
    assert not canary.exists()


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.slow
def test_misspelt_parameter_is_one_line_with_the_nearest_name(tmp_path):
    done = call("bold-audio", "run", "--subject", "sim", *given(outputs_dir=tmp_path / "out", n_mfc=13))
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["bold_audio: unknown parameter n_mfc - did you mean n_mfcc?"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["run", "--subject", "../../etc"], "subject must be letters and digits"),
        (["run", "--subject", "sim", "--steps", "12"], "steps must be between 00 and 06"),
        (["run", "--subject", "sim", "-p", "delays", "[-1, 4]"], "delays.0"),
        (["run", "--subject", "sim", "-p", "lr", "nan"], "lr"),
        (["run", "--subject", "sim", "--dataset", "nowhere"], "dataset nowhere has no file in params/"),
        (["run", "--subject", "sim", "-p", "x = 1; __import__('os').mkdir('canary')#", "1"], "unknown parameter x = 1"),
        (["fetch", "--subject", "a/b"], "subject must be letters and digits"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_made(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "run":
        arguments = [*arguments, *given(outputs_dir=tmp_path / "out")]
    status, said = in_process(capsys, *arguments)
    assert status == 2
    (line,) = said.err.splitlines()
    assert line.startswith("bold_audio: ") and says in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["subject", "dataset"])
def test_subject_and_dataset_have_options_of_their_own(capsys, tmp_path, name):
    status, said = in_process(capsys, "run", "--subject", "sim", *given(outputs_dir=tmp_path / "out"), "-p", name, "13")
    assert status == 2
    assert f"--{name}" in said.err and len(said.err.splitlines()) == 1


@pytest.mark.parametrize("label", ["../x", "a b", "", "s-1"])
def test_simulated_subject_needs_a_plain_label(capsys, tmp_path, label):
    status, said = in_process(capsys, "simulate", tmp_path / "new", "--subject", label)
    assert status == 2
    (line,) = said.err.splitlines()
    assert line.startswith("bold_audio: ") and "subject must be letters and digits" in line
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_subject_that_was_not_fetched_is_one_line_with_the_way_to_get_it(project):
    done = call("bold-audio", "run", "--subject", "09", cwd=project)
    assert done.returncode == 3
    line = last_line(done)
    assert line.startswith("bold_audio: sub-09: sub-09 is not there")
    assert "'bold-audio fetch --subject 09'" in line and "audio_path" in line and "feature_source annotations" in line
    assert str(project / "data/ds003688/sub-09") in line
    assert "Traceback" not in done.stderr
    assert not (project / "data").exists()
    # No kernel was started for it, and the report says first what went wrong and what to do.
    outputs = project / "outputs/ds003688"
    assert not list(outputs.rglob("*.ipynb"))
    text = visible(outputs / "sub-09/report/index.html")
    assert text.index("sub-09 is not there") < text.index("What to do:") < text.index("bold-audio fetch --subject 09")
    assert "scan and sound: sub-09 is not there" in visible(outputs / "index.html")


@pytest.mark.slow
def test_plain_papermill_ends_with_what_is_missing_and_how_to_get_it(project):
    done = call("papermill", "notebooks/04_train.ipynb", "out.ipynb", "-p", "subject", "09", cwd=project)
    assert done.returncode != 0
    line = last_line(done)
    assert "sub-09 is not there" in line
    assert "bold-audio fetch --subject 09" in line and "audio_path" in line and "feature_source annotations" in line
    assert not (project / "data").exists()


@pytest.mark.slow
def test_misspelt_parameter_fails_under_plain_papermill(project):
    done = call("papermill", "notebooks/01_mfcc_exploration.ipynb", "out.ipynb", "-p", "n_mfc", "13", cwd=project)
    assert done.returncode != 0
    assert "unknown parameter n_mfc - did you mean n_mfcc?" in last_line(done)
    assert not (project / "data").exists() and not (project / "outputs").exists()


@pytest.mark.slow
def test_outputs_may_lie_in_a_folder_with_braces(project):  # P13
    done = call(
        "bold-audio", "run", "--subject", "09", "--steps", "00", *given(outputs_dir="out {x} 100%"), cwd=project
    )
    assert done.returncode == 3
    assert "sub-09 is not there" in last_line(done)
    assert (project / "out {x} 100%/ds003688/sub-09/report/index.html").is_file()


# --- the whole way ------------------------------------------------------------------------


class Finished:
    """What one run of all notebooks on the small simulated subject left."""

    def __init__(self, base, sim_dir):
        self.outputs, self.models, self.folder = base / "outputs", base / "models", base / "outputs/sim/sub-sim"
        self.given = {"data_dir": str(sim_dir), "outputs_dir": str(self.outputs), "models_dir": str(self.models)}
        self.given |= {"max_epochs": 3}
        before = tree_hash(ROOT / "notebooks")
        self.done = self.again()
        self.scan = next(sim_dir.glob("sub-sim/**/*_bold.nii.gz"))
        self.sources_kept = before == tree_hash(ROOT / "notebooks")
        self.provenance = json.loads(self.path("provenance.json").read_text()) if self.done.returncode == 0 else {}

    def again(self, *options):
        words = ("run", "--subject", "sim", *given(**self.given), *options)
        return call("bold-audio", *words, **{TOKEN_VARIABLE: TOKEN})

    def path(self, name):
        return self.folder / name

    def number(self, name):
        return float(self.path(name).read_text())

    def table(self, name):
        return pd.read_csv(self.path(name), sep="\t", keep_default_na=False, na_values=["n/a"])

    @property
    def raw(self):
        return np.asarray(nib.load(self.scan).dataobj)

    @property
    def subject(self):
        return workflow.open_subject(load_params("sim", **self.given))

    def predictions(self):
        """What was measured and what was predicted, and the volumes that these are."""
        full, predicted = (np.load(self.path(f"y_test_{name}.npy")) for name in ("full", "pred"))
        # 70 % of 641 volumes, then 16 s of 0.608 s; the end of the sound may cost a volume or two.
        return full, predicted, np.arange(448 + 27, 448 + 27 + len(full))


@pytest.fixture(scope="module")
def finished(sim_dir, tmp_path_factory):
    made = Finished(tmp_path_factory.mktemp("whole way"), sim_dir)
    if made.done.returncode:
        pytest.fail(made.done.stderr[-600:], pytrace=False)
    return made


@pytest.mark.thorough
def test_run_says_each_step(finished):
    lines = finished.done.stdout.splitlines()
    assert [line.split(": ")[1].split("  ")[0] for line in lines[:-1]] == [OPENING, *STEPS]
    assert all(line.endswith(" s (not done yet)") for line in lines[1:-1])
    assert "done in" in lines[-1] and "index.html" in lines[-1]


@pytest.mark.thorough
def test_run_that_goes_well_says_nothing_on_stderr(finished):
    assert finished.done.stderr == ""


@pytest.mark.thorough
def test_token_in_the_environment_is_in_nothing_that_was_written_or_said(finished):  # D10
    found = (path for base in (finished.outputs, finished.models) for path in base.rglob("*") if path.is_file())
    places = {str(path): path.read_bytes() for path in found}
    ends = ("mlflow.db", "04_train.ipynb", "04_train.html", "model.onnx", "best.ckpt")
    assert all(any(name.endswith(end) for name in places) for end in ends)
    places |= {"stdout": finished.done.stdout.encode(), "stderr": finished.done.stderr.encode()}
    assert [name for name, content in places.items() for trace in traces(TOKEN) if trace in content] == []


@pytest.mark.thorough
def test_sources_are_not_touched(finished):
    assert finished.sources_kept


@pytest.mark.thorough
def test_all_promised_files_are_there_and_no_half_ones(finished):
    promised = ["dt_sweep.tsv", "best_dt.txt", "best.ckpt", "mlp_history.tsv", "y_test_full.npy", "y_test_pred.npy"]
    promised += ["mse_test.txt", "dt_used.txt", "scores.tsv", "provenance.json", "summary.json", "report/index.html"]
    promised += [f"{step}.ipynb" for step in STEPS] + [f"report/{step}.html" for step in STEPS]
    assert [name for name in promised if not finished.path(name).is_file()] == []
    hidden = [
        p for base in (finished.outputs, finished.models) for p in base.rglob(".*") if not p.name.endswith("lock")
    ]
    assert {p.name for p in hidden} == {".bidsignore", ".subjects.json"}
    description = json.loads((finished.folder.parent / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "bold_audio"


@pytest.mark.thorough
def test_predictions_are_float32_volumes_of_the_test_part(finished):
    full, predicted, test = finished.predictions()
    mask = finished.subject.run.mask
    assert full.dtype == predicted.dtype == np.float32
    assert full.shape == predicted.shape == (len(test), int(mask.sum()))
    # The response to sound at the shortest delay peaks after 2 s: it needs 3 s of sound after a volume begins.
    assert 634 <= test[-1] <= 640
    assert np.array_equal(full, finished.raw[mask].T[test])
    assert np.isfinite(predicted).all()
    # Not the train mean and not the volume before: something was predicted.
    assert predicted.std(axis=0).max() > 0 and not np.array_equal(predicted[1:], full[:-1])


@pytest.mark.thorough
def test_mse_file_is_that_of_the_arrays_scaled_by_the_train_range(finished):
    full, predicted, _ = finished.predictions()
    bundle = json.loads((finished.models / MODEL / "1/bundle.json").read_text())
    first, last = bundle["train_volumes"]
    assert 17 <= first < 80 and last == 447, "10 s left out, or what a haemodynamic response needs of sound"
    train = finished.raw[..., first : last + 1].astype(float)
    assert bundle["value_range"] == [train.min(), train.max()]
    expected = np.mean((full.astype(float) - predicted) ** 2) / (train.max() - train.min()) ** 2
    assert finished.number("mse_test.txt") == pytest.approx(expected, rel=1e-6)
    scores = finished.table("scores.tsv")
    row = scores[(scores["model"] == "mlp") & (scores["prediction"] == "one_step") & (scores["region"] == "brain")]
    assert row["mse"].item() == pytest.approx(expected, rel=1e-6)
    assert finished.provenance["inference"]["prediction"] == "one_step"


@pytest.mark.thorough
def test_delay_used_is_the_one_of_the_model(finished):
    folder = finished.models / MODEL / "1"
    bundle = json.loads((folder / "bundle.json").read_text())
    delays = {finished.number("dt_used.txt"), bundle["delay"], float((folder / "best_dt.txt").read_text())}
    delays |= {finished.provenance["mlp"]["delay"], finished.provenance["inference"]["delay"]}
    assert len(delays) == 1
    history, kept = finished.table("mlp_history.tsv"), finished.provenance["mlp"]
    best = history.loc[history["val_evidence"].idxmax()]
    assert {best["delay"]} == delays
    assert "val_evidence" in kept["why"]
    for name in ("train_MSE", "val_MSE", "val_Pearson", "val_evidence"):
        assert best[name] == pytest.approx(kept[f"best_{name}"], rel=1e-6)
    assert list(history["run"].unique()) == [f"subsim_dt{k}" for k in (4, 5, 6, 7, 8)]
    assert history.groupby("run").size().tolist() == [3] * 5


@pytest.mark.thorough
def test_sweep_file_holds_every_delay_and_the_best_is_its_best(finished):
    table, region = finished.table("dt_sweep.tsv"), finished.provenance["dt_sweep"]["region"]
    assert {"delay", "region", "alpha", "skill", "fold_spread", "evidence"} <= set(table.columns)
    delays = finished.provenance["dt_sweep"]["parameters"]["delays"]
    assert len(delays) == 41 and all(list(rows["delay"]) == delays for _, rows in table.groupby("region"))
    curve = table[table["region"] == region]
    assert region == "responsive" and {"brain", "responsive"} <= set(table["region"])
    best = finished.number("best_dt.txt")
    assert best == curve.loc[curve["evidence"].idxmax(), "delay"]
    row = finished.table("dt_regions.tsv").set_index("region").loc[region]
    assert row["delay"] == best and row["low"] <= best <= row["high"] and 0 < row["p"] <= 1


@pytest.mark.thorough
def test_score_table_has_every_row_in_both_kinds_of_prediction(finished):
    table = finished.table("scores.tsv")
    assert list(table.columns)[: len(COLUMNS)] == COLUMNS
    assert list(table["prediction"].unique()) == ["one_step", "open_loop"]
    assert {"brain", "responsive"} <= set(table["region"])
    for _, rows in table.groupby(["prediction", "region"]):
        assert list(rows["model"]) == [*LINEAR_NAMES, "mlp"]
    assert set(table["n_volumes"]) == {len(finished.predictions()[0])}
    references = {"history_sound": "history", "history_blocks_sound": "history_blocks", "mlp": "history"}
    assert (table["reference"] == table["model"].map(references).fillna("constant")).all()
    # skill = 1 − Σ MSE / Σ MSE of the reference, on the same volumes and voxels
    mse = table.set_index(["prediction", "region", "model"])["mse"]
    for row in table.itertuples():
        assert row.skill == pytest.approx(
            1 - row.mse / mse[row.prediction, row.region, row.reference], rel=1e-6, abs=1e-6
        )
    for prediction in ("one_step", "open_loop"):
        assert mse[prediction, "brain", "constant"] == mse["one_step", "brain", "constant"]
    assert mse["open_loop", "brain", "copy_previous"] > mse["one_step", "brain", "copy_previous"]


@pytest.mark.thorough
def test_model_is_the_checkpoint_and_answers_what_was_written(finished):
    folder = finished.models / MODEL / "1"
    assert sorted(p.name for p in folder.iterdir()) == ["best_dt.txt", "bundle.json", "bundle.npz", "model.onnx"]
    bundle = json.loads((folder / "bundle.json").read_text())
    assert bundle["checkpoint_md5"] == file_md5(finished.path("best.ckpt"))
    assert torch.load(finished.path("best.ckpt"), weights_only=True)["bold_audio"]["delay"] == bundle["delay"]
    assert (bundle["subject"], bundle["target"], bundle["t_r"]) == ("sim", "whitened", 0.608)
    # Without the package's own inference: features → the sound's part s(x) → volumes, own history plus what s adds.
    subject, (_, predicted, test) = finished.subject, finished.predictions()
    X = (subject.designs["sound"].at(bundle["delay"]) - bundle["feature_mean"]) / bundle["feature_scale"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    s = session.run(["voxels"], {"features": X.astype(np.float32)})[0]
    s -= s[subject.split.train].mean(axis=0)
    history = workflow.fit_linear_rows(subject, bundle["delay"], names=("history",))["history"]
    rest = subject.Y - s  # what its own past continues
    volumes = s[test] + history.drive(test)
    for lag, weight in enumerate(history.phi, start=1):
        volumes += weight * rest[test - lag]
    np.testing.assert_allclose(volumes, predicted, rtol=1e-5)


@pytest.mark.thorough
def test_predicted_run_opens_as_a_scan_of_the_test_part(finished):
    _, predicted, test = finished.predictions()
    path = finished.path("sub-sim_ses-mri3t_task-film_run-1_desc-predicted_bold.nii.gz")
    image, scan, mask = nib.load(path), nib.load(finished.scan), finished.subject.run.mask
    assert np.allclose(image.affine, scan.affine) and image.header.get_zooms() == pytest.approx(scan.header.get_zooms())
    assert image.shape == (*mask.shape, len(test))
    data = np.asarray(image.dataobj)
    assert np.array_equal(data[mask].T, predicted) and not data[~mask].any()
    about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert about["RepetitionTime"] == 0.608 and about["StartTime"] == pytest.approx(test[0] * 0.608)
    assert "one_step" in about["Description"] and about["Sources"][0].endswith(finished.scan.name)


@pytest.mark.thorough
def test_maps_lie_where_the_scan_lies_and_say_what_they_are(finished):
    scan = nib.load(finished.scan)
    maps = sorted(finished.folder.glob("*_statmap.nii.gz"))
    prefix = "sub-sim_ses-mri3t_task-film_run-1_desc-"
    assert [p.name.removeprefix(prefix) for p in maps] == [
        "historySound_stat-gain_statmap.nii.gz",
        "historySound_stat-partialr_statmap.nii.gz",
        *(f"inference_stat-{s}_statmap.nii.gz" for s in ("delay", "delayhigh", "delaylow", "p", "pfwe", "q", "z")),
        *(f"oofHistory{s}_statmap.nii.gz" for s in ("BlocksSound_stat-gain", "BlocksSound_stat-partialr")),
        *(f"oofHistory{s}_statmap.nii.gz" for s in ("Sound_stat-gain", "Sound_stat-partialr")),
        "oofSound_stat-r_statmap.nii.gz",
        "sound_stat-r_statmap.nii.gz",
        "speechMusic_stat-t_statmap.nii.gz",
        "sweep_stat-delay_statmap.nii.gz",
        "sweep_stat-delayhigh_statmap.nii.gz",
        "sweep_stat-delaylow_statmap.nii.gz",
        "sweep_stat-p_statmap.nii.gz",
        "sweep_stat-skill_statmap.nii.gz",
    ]
    mask = finished.subject.run.mask
    for path in maps:
        image = nib.load(path)
        assert image.shape == scan.shape[:3] and np.allclose(image.affine, scan.affine)
        assert np.isnan(image.get_fdata()[~mask]).all() and np.isfinite(image.get_fdata()[mask]).any()
        about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        model = path.name.removeprefix(prefix).split("_")[0]
        seen = {"sweep": "inside train", "sound": "test part", "historySound": "test part"}.get(model, "whole run")
        assert seen in about["Description"] and about["Sources"][0].endswith("_bold.nii.gz")


@pytest.mark.thorough
def test_provenance_says_from_what_with_what_and_when(finished, sim_dir):
    steps = {"dt_sweep", "mlp", "export_mlp", "export_history_sound", "inference", "inference_map", "inference_regions"}
    steps |= {"controls", "outer_folds", "out_of_fold", "partition", "ablations", "responses", "horizon"}
    assert set(finished.provenance) == steps | {"learning_curve", "effective_samples"}
    for entry in finished.provenance.values():
        func = finished.scan.parent.glob(
            f"{finished.scan.name.split('_bold')[0]}_*"
        )  # the scan, its sidecar, its events
        assert entry["input_md5"] == {path.name: file_md5(path) for path in (*func, sim_dir / "stimuli/film.wav")}
        assert entry["parameters"]["max_epochs"] == 3 and entry["parameters"]["seed"] == 0
        assert entry["packages"]["numpy"] == np.__version__
        assert re.match(r"20\d\d-", entry["finished"])


def references(path):
    """Where a page's links lead, and what a browser would load for it, besides what lies in the page itself."""
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    links = [tag["href"] for tag in page.select("a[href]")]
    loaded = [tag.get("src") or tag.get("href") for tag in page.select("[src], link[href]")]
    return (*({one for one in found if not one.startswith(("data:", "#"))} for found in (links, loaded)),)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["index", "model_card", *STEPS])
def test_page_is_whole_offline(finished, name):
    path = finished.path(f"report/{name}.html")
    assert references(path)[1] <= {"plotly.min.js"}
    assert "default-src 'none'" in path.read_text(encoding="utf-8")
    assert path.stat().st_size < 10e6
    assert name not in STEPS or finished.path(f"{name}.ipynb").stat().st_size < 5e6
    assert "SIMULATED" in path.read_text(encoding="utf-8")


@pytest.mark.thorough
def test_index_links_every_page_and_gives_the_answer_in_words(finished):
    index = finished.path("report/index.html")
    own = {f"{step}.html" for step in STEPS} | {"model_card.html", "map_of_the_sound.html"}
    links, _ = references(index)
    assert links == own | {"../../index.html"} and all((index.parent / link).is_file() for link in links)
    text, summary = index.read_text(encoding="utf-8"), json.loads(finished.path("summary.json").read_text())
    assert "SIMULATED subject with a planted answer" in summary["about"] and summary["about"] in text
    assert any("The project that bold_audio replaces expected" in sentence for sentence in summary["sentences"])
    for sentence in summary["sentences"]:
        assert sentence.replace("**", "").replace("`", "") in visible(index)
    scores = finished.table("scores.tsv")
    row = scores[(scores["model"] == "mlp") & (scores["region"] == summary["region"])].iloc[0]
    assert f'<th scope="row">mlp</th><td>{row["mse"]:.3g}</td>' in text
    assert visible(finished.outputs / "sim/index.html").count("sub-sim") >= 1
    # Test part: r, gain, partial r; sweep: delay, skill; whole run: z, delay, speech against music; out of fold: five.
    assert text.count('src="data:image/png;base64,') == 13


@pytest.mark.thorough
def test_report_is_small_and_holds_the_library_once(finished):
    files = list(finished.path("report").iterdir())
    assert sum(path.stat().st_size for path in files) < 25e6
    assert [path.name for path in files if path.suffix == ".js"] == ["plotly.min.js"]
    assert not any("Plotly.register" in path.read_text(encoding="utf-8") for path in files if path.suffix == ".html")


@pytest.mark.thorough
def test_pages_say_from_which_scan_they_were_made(finished, sim_dir):
    for step in STEPS:
        text = visible(finished.path(f"report/{step}.html"))
        assert f"MD5 of {finished.scan.name} {file_md5(finished.scan)}" in text
        assert f"MD5 of film.wav {file_md5(sim_dir / 'stimuli/film.wav')}" in text


@pytest.mark.thorough
def test_card_repeats_the_bundle_and_the_score_table(finished):
    text, scores = visible(finished.path("report/model_card.html")), finished.table("scores.tsv")
    for name in (MODEL, f"{MODEL}_history_sound"):
        bundle = json.loads((finished.models / name / "1/bundle.json").read_text())
        assert bundle["onnx_md5"] in text and bundle["mask_hash"] in text and f"Δt = {bundle['delay']:g} s" in text
    region = json.loads(finished.path("summary.json").read_text())["region"]
    for row in scores[(scores["region"] == region) & scores["model"].isin(["mlp", "history_sound"])].itertuples():
        assert f"in {region}: MSE {row.mse:.4g}; " in text
    assert "The scan is SIMULATED" in text


@pytest.mark.thorough
def test_report_is_written_again_from_the_executed_notebooks(finished):
    folder = finished.path("report")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        if path.name != "map_of_the_sound.html":  # a result of notebook 06, not of its page
            path.unlink()
    done = call("bold-audio", "report", "--subject", "sim", *given(**finished.given))
    assert done.returncode == 0 and done.stderr == "" and "index.html" in done.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.thorough
def test_the_example_of_the_page_on_the_viewer_runs(finished):
    page = (ROOT / "docs/viewing.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert code.count('load_params("sim")') == 1
    exec(code.replace('load_params("sim")', 'load_params("sim", **given)'), {"given": finished.given})


def test_report_of_a_subject_that_never_ran_is_one_line(capsys, tmp_path):
    status, said = in_process(capsys, "report", "--subject", "sim", *given(outputs_dir=tmp_path / "out"))
    assert status == 3
    assert re.fullmatch(r"bold_audio: sub-sim: no executed notebook in .* - run 'bold-audio run .*' first\n", said.err)
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_each_delay_was_logged_to_mlflow(finished):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.outputs / 'mlflow/mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("sim").experiment_id])
    assert sorted(r.info.run_name for r in runs) == [f"subsim_dt{k}" for k in (4, 5, 6, 7, 8)]
    assert all({"train_MSE", "val_MSE", "val_Pearson"} <= set(r.data.metrics) for r in runs)


@pytest.mark.thorough
def test_second_run_uses_what_is_there_and_gives_the_same(finished):
    kept = (
        "best.ckpt",
        "best_dt.txt",
        "dt_sweep.tsv",
        "mlp_history.tsv",
        "scores.tsv",
        "mse_test.txt",
        "y_test_pred.npy",
    )
    before = {name: file_md5(finished.path(name)) for name in kept}
    versions = tree_hash(finished.models)
    skipped = finished.again()
    assert skipped.returncode == 0 and skipped.stderr == ""
    said = "is done, and nothing that it was made from has changed"
    assert skipped.stdout.splitlines()[:-1] == [f"sub-sim: {step} {said}" for step in STEPS]
    assert finished.again("--force").returncode == 0
    provenance = json.loads(finished.path("provenance.json").read_text())
    for step in ("dt_sweep", "mlp", "export_mlp", "export_history_sound"):
        assert provenance[step]["finished"] == finished.provenance[step]["finished"], step
    assert {name: file_md5(finished.path(name)) for name in kept} == before
    assert tree_hash(finished.models) == versions
    assert {p.name for p in (finished.models / MODEL).glob("[!.]*")} == {"1", "config.pbtxt"}


@pytest.mark.thorough
@pytest.mark.parametrize("where", ["root", "notebooks", "elsewhere"])
def test_training_notebook_runs_alone_from_any_folder(sim_dir, tmp_path, where):
    cwd = {"root": ROOT, "notebooks": ROOT / "notebooks", "elsewhere": tmp_path / "some folder"}[where]
    cwd.mkdir(exist_ok=True)
    source = os.path.relpath(ROOT / "notebooks/04_train.ipynb", cwd)
    out, before = tmp_path / "out.ipynb", tree_hash(ROOT / "notebooks")
    folders = {"data_dir": sim_dir, "outputs_dir": tmp_path / "outputs", "models_dir": tmp_path / "models"}
    done = call("papermill", source, out, *given(subject="sim", **folders, max_epochs=2), cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    left = {p.name for p in (tmp_path / "outputs/sim/sub-sim").iterdir()}
    assert {"best.ckpt", "mlp_history.tsv", "dt_sweep.tsv", "best_dt.txt", "provenance.json"} <= left
    history = pd.read_csv(tmp_path / "outputs/sim/sub-sim/mlp_history.tsv", sep="\t")
    assert history["epoch"].max() == 1
    assert tree_hash(ROOT / "notebooks") == before
    assert list(cwd.glob("outputs/sim/sub-sim/provenance.json")) == [] or where == "root"


# --- annotations and sound never meet -----------------------------------------------------


@pytest.mark.thorough
def test_annotations_and_sound_of_a_subject_share_no_folder_and_no_name(shared, tmp_path):
    settings = {
        "data_dir": shared / "realdata/alice",
        "outputs_dir": tmp_path / "out",
        "models_dir": tmp_path / "models",
    }
    who = ["--dataset", "alice", "--subject", "18"]
    heard = call("bold-audio", "run", *who, "--steps", "05", *given(**settings, max_epochs=2))
    assert heard.returncode == 0, heard.stderr
    before = tree_hash(tmp_path / "out/alice"), tree_hash(tmp_path / "models")
    files = [*(f"1/{name}" for name in ("best_dt.txt", "bundle.json", "bundle.npz", "model.onnx")), "config.pbtxt"]
    names = ("alice_sub-18", "alice_sub-18_history_sound")
    assert [name for name in before[1] if not name.endswith("lock")] == [f"{n}/{f}" for n in names for f in files]

    read = call("bold-audio", "run", *who, *given(**settings, max_epochs=2, feature_source="annotations"))
    assert read.returncode == 0, read.stderr
    folder = tmp_path / "out/alice-annotations/sub-18"
    assert tree_hash(tmp_path / "out/alice") == before[0]
    kinds = [f"{label}_sub-18{kind}" for label in ("alice", "alice-annotations") for kind in ("", "_history_sound")]
    assert {p.name for p in (tmp_path / "models").iterdir()} == set(kinds)
    assert before[1].items() <= tree_hash(tmp_path / "models").items()

    summary = json.loads((folder / "summary.json").read_text())
    assert "features from ANNOTATIONS, not from the sound" in summary["about"] and "MFCC" not in summary["about"]
    assert "what was ANNOTATED of the sound (no sound was heard)" in summary["sentences"][0]  # the headline
    assert "bold_audio replaces" not in " ".join(summary["sentences"])  # its expectations were of another dataset
    index = (folder / "report/index.html").read_text(encoding="utf-8")
    assert "features from ANNOTATIONS" in index and summary["sentences"][0].replace("`", "") in index
    for page in (folder / "report").glob("0*.html"):
        assert "features from ANNOTATIONS, not from the sound" in page.read_text(encoding="utf-8"), page.name
    assert set(json.loads((folder / "provenance.json").read_text())["mlp"]["input_md5"]) == {
        "sub-18_task-alice_bold.json",
        "sub-18_task-alice_bold.nii.gz",
        "sub-18_task-alice_events.tsv",
        "words.tsv",
    }
    table = pd.read_csv(folder / "scores.tsv", sep="\t", na_values=["n/a"])
    no_blocks = [name for name in LINEAR_NAMES if "blocks" not in name]
    for _, rows in table.groupby(["prediction", "region"]):
        assert list(rows["model"]) == [*no_blocks, "mlp"]
    assert table["region"].iloc[0] == "volume"
    assert np.load(folder / "y_test_full.npy").shape[1] == 6


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [("session", "01", "01"), ("session", "011", "011"), ("task", "on", "on"), ("run", "010", "010"),
     ("run", "[1, 2]", [1, 2]), ("session", "'01'", "01"), ("space", "MNI152", "MNI152")],
)  # fmt: skip
def test_labels_are_taken_as_they_stand(name, value, kept):
    assert parse_given([(name, value)]) == {name: kept}


@pytest.mark.parametrize("value", ["null", "~", ""])
def test_null_on_the_command_line_is_refused_because_it_would_change_nothing(value):
    with pytest.raises(ParameterError, match=f"-p session '{value}': null leaves what the files say - write null into"):
        parse_given([("session", value)])


@pytest.mark.parametrize(("error", "what"), [(MemoryError(), "MemoryError"), (OSError(5, "Input/output error"), "")])
def test_an_error_without_words_is_told_by_its_name(error, what):
    line, status = ending.told(error, outputs="outputs", command="run")
    assert line == f"{what or error} - check disk, memory and permissions" and status == 5
