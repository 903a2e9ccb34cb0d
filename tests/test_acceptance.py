"""The full-size simulated subject: what was planted is found, and the simplest rows equal ten lines of NumPy."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bold_audio import models, workflow
from bold_audio.params import load_params
from bold_audio.server import TritonServer, install
from bold_audio.simulate import simulate_subject
from bold_audio.truth import planted_delay

T_R = 0.608
GRID = [round(0.3 * i, 1) for i in range(41)]  # 0 to 12 s

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Function: parameters of the default, full-size subject whose planted response is of a kind."""
    made = {}
    planted = {kind: {"response": kind} for kind in ("hrf", "delay")}
    planted["nonlinear"] = {"response": "delay", "nonlinear": True}

    def make(kind, **given):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("full") / "sim"
            simulate_subject(made[kind], **planted[kind])
        folders = {"data_dir": str(made[kind]), "outputs_dir": str(made[kind].parent / "outputs")}
        return load_params("sim", **folders, **given)

    return make


@pytest.mark.parametrize("response", ["hrf", "delay"])
def test_chosen_delay_is_the_planted_one(full, response):
    """Within half a repetition time of the single Δt that fits the noiseless responses best, from 41 candidates."""
    params = full(response, response=response, delays=GRID, mlp_delays=[])
    found = workflow.ensure_sweep(workflow.open_subject(params))
    assert found.region == "responsive"
    assert abs(found.delay - planted_delay(params)) <= T_R / 2


def test_hearing_voxels_are_told_from_silent_ones(full):
    """Area under the ROC curve of the sound's test r, voxels planted with r2 ≥ 0.2 against silent brain voxels."""
    params = full("hrf")
    subject = workflow.open_subject(params)
    found = workflow.ensure_sweep(subject)
    rows = workflow.fit_linear_rows(subject, found.delay, names=("constant", "sound"))
    _, voxels = workflow.score_rows(
        subject, rows, subject.split.test, subject.run.regions, fitted_on=subject.split.train
    )
    hearing, silent = (subject.run.regions[name] for name in ("planted_r2_over_0.2", "silent"))
    kept = hearing | silent
    r = np.nan_to_num(voxels["sound", "one_step"]["r"], nan=-2)  # no r counts lowest
    assert roc_auc_score(hearing[kept], r[kept]) >= 0.9


def test_constant_and_copy_previous_equal_ten_lines_of_numpy(full):
    """From the raw NIfTI, without the package's reading, masking or scoring."""
    params = full("hrf", delays=[5.0], mlp_delays=[])
    subject = workflow.open_subject(params)
    rows = workflow.fit_linear_rows(subject, 5.0, names=("constant", "copy_previous"))
    regions, test = subject.run.regions, subject.split.test
    table, _ = workflow.score_rows(subject, rows, test, regions, fitted_on=subject.split.train)

    raw = np.asanyarray(nib.load(subject.run.files.bold).dataobj)[subject.run.mask].astype(float)
    whole = np.asanyarray(nib.load(subject.run.files.bold).dataobj)[..., subject.split.train]
    scale = (float(whole.max()) - float(whole.min())) ** 2
    mean = raw[:, subject.split.train].mean(axis=1, keepdims=True)
    truth = raw[:, test]
    known = {
        ("constant", "one_step"): np.mean((truth - mean) ** 2) / scale,
        ("copy_previous", "one_step"): np.mean((truth - raw[:, test - 1]) ** 2) / scale,
        ("copy_previous", "open_loop"): np.mean((truth - raw[:, [subject.split.train[-1]]]) ** 2) / scale,
    }
    whole_brain = table[table["region"] == "brain"].set_index(["model", "prediction"])["mse"]
    for key, mse in known.items():
        assert whole_brain[key] == pytest.approx(mse, rel=1e-5)


@pytest.mark.parametrize("kind, response", [("hrf", "hrf"), ("nonlinear", "delay")])
def test_mlp_keeps_up_with_ridge_and_beats_it_where_the_response_is_not_linear(full, kind, response):
    """One-step on the test part, in voxels planted with r2 ≥ 0.2: MSE beside that of ridge given the same past."""
    subject = workflow.open_subject(full(kind, response=response))
    found = workflow.ensure_sweep(subject)
    rows = workflow.fit_linear_rows(
        subject, found.delay, follows=found.follows, names=("constant", "history", "history_sound")
    )
    model, facts, _, _ = workflow.ensure_mlp(subject)
    rows["mlp"] = workflow.trained_row(subject, model, facts, history=rows["history"])
    regions = {"planted": subject.run.regions["planted_r2_over_0.2"]}
    table, _ = workflow.score_rows(
        subject, rows, subject.split.test, regions, fitted_on=subject.split.train, predictions=("one_step",)
    )
    mse = table.set_index("model")["mse"]
    if kind == "nonlinear":
        assert mse["mlp"] < mse["history_sound"] < mse["history"]
    else:
        assert mse["mlp"] <= 1.02 * mse["history_sound"]


def predict_as(subject, kind, version, **way):
    """Predict the test part in the runtime asked for: in scaled BOLD, and what ``mse_test.txt`` then says."""
    asked = replace(subject, params=subject.params.model_copy(update=way))
    predictor = workflow.open_exported(asked, kind, version=version)
    row, test = workflow.served_row(asked, predictor), asked.split.test
    made = models.predict_row(asked, row, test, "one_step", fitted_on=asked.split.train)
    workflow.write_predictions(asked, made, facts=predictor.facts)
    return made / np.ptp(asked.run.value_range), float(asked.path("mse_test.txt").read_text())


def test_three_runtimes_and_both_protocols_agree_on_the_full_test_part(full, tmp_path):
    """Two models in two versions, served at once: within 1e-5 of scaled BOLD, and the same MSE in six digits."""
    repository, kinds = tmp_path / "models", ("mlp", "history_sound")
    common = {"delays": [4.8, 5.0, 5.2], "mlp_delays": [5.0], "max_epochs": 20, "models_dir": str(repository)}
    versions = {}
    for version, given in {1: {}, 2: {"seed": 1, "alphas": [1.0, 1e3, 1e6]}}.items():
        given = common | given | {"model_version": version, "checkpoint_dir": str(tmp_path / f"checkpoints{version}")}
        versions[version] = workflow.open_subject(full("hrf", **given))
        for kind in kinds:
            workflow.ensure_export(versions[version], kind)
    with TritonServer(repository, folder=install()).start() as server:
        ways = [{"runtime": "onnxruntime"}] + [
            {"runtime": "triton", "triton_protocol": name, "triton_url": server.url(name)} for name in ("grpc", "http")
        ]
        known = {}
        for version, subject in versions.items():
            for kind in kinds:
                known[version, kind], mse = predict_as(subject, kind, version, runtime="torch")
                for way in ways:
                    made, its_mse = predict_as(subject, kind, version, **way)
                    assert np.abs(made - known[version, kind]).max() <= 1e-5, (kind, version, way)
                    assert f"{its_mse:.6g}" == f"{mse:.6g}", (kind, version, way)
    for kind in kinds:
        assert np.abs(known[1, kind] - known[2, kind]).max() > 1e-4, "two versions that say the same prove nothing"
