"""One MLP per candidate delay of a small simulated subject: chosen, kept, logged, and made once."""

import json
import multiprocessing

import numpy as np
import pandas as pd
import pytest
import torch

from bold_audio import candidates, mlp, models, serving, training, workflow
from bold_audio.files import AccessError, ParameterError
from bold_audio.mlp import MONITOR

pytestmark = pytest.mark.slow

QUICK = {"delays": [4.0, 5.0, 6.0], "max_epochs": 10, "history_order": 2, "sweep_fwhm": 0}


@pytest.fixture
def subject(small_params):
    """Function: the small simulated subject with these parameters."""
    return lambda **given: workflow.open_subject(small_params(**(QUICK | given)))


def weights_of(path):
    return {k: v.numpy() for k, v in torch.load(path, weights_only=True)["state_dict"].items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_delay_with_the_most_evidence_is_kept_and_said_why(subject):
    one = subject(mlp_delays=[2.0, 5.0, 9.0], max_epochs=30)
    model, facts, losses, notes = workflow.ensure_mlp(one)
    best = losses.groupby("delay")[MONITOR].max()
    assert facts["delay"] == best.idxmax() and notes == [candidates.LOGGED]
    said = json.loads(one.path("provenance.json").read_text())["mlp"]
    assert said["delay"] == facts["delay"] and said["candidates"] == [2.0, 5.0, 9.0]
    assert said["why"] == "largest val_evidence on the last block of train"
    assert not (one.params.subject_path / "training").exists()
    assert model.hparams.n_outputs == one.run.n_voxels


def test_made_once_and_made_again_when_a_parameter_changes(subject):
    one = subject(mlp_delays=[5.0])
    first = workflow.ensure_mlp(one)
    path = one.params.subject_path / "best.ckpt"
    made, left = path.stat().st_mtime_ns, path.with_name("training") / "dt5-abc"
    left.mkdir(parents=True)  # by a process that was killed when all was recorded
    again = workflow.ensure_mlp(one)
    assert not left.parent.exists()
    assert path.stat().st_mtime_ns == made and same(first[0].state_dict(), again[0].state_dict())
    pd.testing.assert_frame_equal(first[2], again[2])
    other = subject(mlp_delays=[5.0], lr=0.002)
    workflow.ensure_mlp(other)
    assert path.stat().st_mtime_ns != made


def test_without_candidates_the_engine_is_trusted(subject):
    one = subject(mlp_delays=[])
    found = workflow.ensure_sweep(one)
    _, facts, losses, _ = workflow.ensure_mlp(one)
    assert facts["delay"] == found.delay and losses["run"].nunique() == 1


@pytest.mark.parametrize("target", ["whitened", "difference", "volume"])
def test_a_network_is_a_row_of_the_table(subject, target):
    one = subject(mlp_delays=[5.0], target=target)
    model, facts, _, _ = workflow.ensure_mlp(one)
    rows = workflow.fit_linear_rows(one, 5.0, names=("constant", "copy_previous", "history"))
    row = workflow.trained_row(one, model, facts, history=rows["history"])
    test = one.split.test
    end = one.split.train[-1]
    made, loop = (
        models.predict_row(one, row, test, kind, fitted_on=one.split.train) for kind in ("one_step", "open_loop")
    )
    out = mlp.mlp_output(model, serving.network_inputs(one, facts))
    expected = {
        "volume": lambda: out[test],
        "difference": lambda: one.Y[test - 1] + out[test],
        "whitened": lambda: by_definition(one, rows["history"], out, test),
    }[target]()
    np.testing.assert_allclose(made, expected, rtol=2e-5)
    assert row.reference == ("history" if target == "whitened" else "constant")
    spoilt = one.Y.copy()
    spoilt[end + 1 :] = 0
    one.run.__dict__["volumes"] = spoilt
    assert np.array_equal(loop, models.predict_row(one, row, test, "open_loop", fitted_on=one.split.train))


def by_definition(one, history, out, test):
    """ŷ[k] = c + s[k] + Σ φ_l (y[k−l] − s[k−l]), in float64, with s the output less its mean over train."""
    s = out.astype(float) - out[one.split.train].mean(axis=0, dtype=float)
    made = history.drive(test).astype(float) + s[test]
    for lag, phi in enumerate(history.phi, start=1):
        made += phi * (one.Y[test - lag] - s[test - lag])
    return made


def test_previous_volumes_as_inputs(subject):
    one = subject(mlp_delays=[5.0], target="difference", mlp_history=2, mlp_history_components=3)
    model, facts, _, _ = workflow.ensure_mlp(one)
    assert model.hparams.n_past == 2 * one.run.n_voxels and facts["n_previous"] == 2
    torch.nn.init.normal_(model.net[-1].weight, std=0.05)  # a network that says nothing would prove nothing
    row = workflow.trained_row(one, model, facts)
    test, end = one.split.test, one.split.train[-1]
    X, previous = workflow.measured_inputs(one, facts, test)
    assert np.array_equal(previous, np.stack([one.Y[test - 1], one.Y[test - 2]], axis=1))
    assert np.abs(mlp.mlp_output(model, X, previous) - mlp.mlp_output(model, X, previous[:, ::-1])).max() > 0.1
    made = models.predict_row(one, row, test, "one_step", fitted_on=one.split.train)
    expected = one.Y[test - 1] + mlp.mlp_output(model, *workflow.measured_inputs(one, facts, test))
    np.testing.assert_allclose(made, expected, rtol=1e-5)
    loop = models.predict_row(one, row, test, "open_loop", fitted_on=one.split.train)
    X, series = serving.network_inputs(one, facts), one.Y[end - 1 : end + 1].astype(np.float32)
    for k in range(end + 1, test[-1] + 1):
        step = mlp.mlp_output(model, X[k : k + 1], np.stack([series[-1], series[-2]])[None])
        series = np.vstack([series, series[-1] + step])
    np.testing.assert_allclose(loop, series[-len(test) :], rtol=1e-4)


def test_previous_volumes_do_not_go_with_whitened(small_params):
    with pytest.raises(ParameterError, match="mlp_history needs target difference or volume"):
        small_params(mlp_history=1)


def test_targets_know_nothing_of_the_validation_block(subject):
    one = subject()
    fit, _ = candidates.inner_validation(one)
    before = candidates.subject_targets(one)
    spoilt = one.Y.copy()
    spoilt[fit[-1] + 1 :] = 5
    one.run.__dict__["volumes"] = spoilt
    after = candidates.subject_targets(one)
    assert np.array_equal(before.output_taps, after.output_taps) and len(before.output_taps) == 3
    assert np.array_equal(before.basis.components, after.basis.components)
    assert not np.array_equal(before.val_voxels, after.val_voxels)


def train_once(params):
    workflow.ensure_mlp(workflow.open_subject(params))


@pytest.mark.thorough
def test_two_at_once_make_one_model(small_params, mlflow_runs, tmp_path):
    alone = small_params(**QUICK, mlp_delays=[4.0, 5.0], outputs_dir=str(tmp_path / "alone"))
    both = small_params(**QUICK, mlp_delays=[4.0, 5.0])
    train_once(alone)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=train_once, args=(both,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert same(*(weights_of(params.subject_path / "best.ckpt") for params in (alone, both)))
    _, runs = mlflow_runs(f"sqlite:///{both.resolve(both.outputs_dir) / 'mlflow' / 'mlflow.db'}", "sim")
    assert sorted(run.info.run_name for run in runs) == ["subsim_dt4", "subsim_dt5"]


def test_killed_between_two_delays_trains_only_the_rest(subject, mlflow_runs, monkeypatch):
    one, seen = subject(mlp_delays=[4.0, 5.0]), []
    plain = training.train_mlp

    def once(*args, delay, **given):
        seen.append(delay)
        if delay == 5.0 and seen.count(5.0) == 1:
            raise KeyboardInterrupt
        return plain(*args, delay=delay, **given)

    monkeypatch.setattr(training, "train_mlp", once)
    with pytest.raises(KeyboardInterrupt):
        workflow.ensure_mlp(one)
    fits = []
    fit = training.pl.Trainer.fit
    monkeypatch.setattr(training.pl.Trainer, "fit", lambda *a, **k: (fits.append(1), fit(*a, **k)))
    workflow.ensure_mlp(one)
    assert seen == [4.0, 5.0, 4.0, 5.0] and len(fits) == 1
    _, runs = mlflow_runs(f"sqlite:///{one.params.resolve(one.params.outputs_dir) / 'mlflow' / 'mlflow.db'}", "sim")
    assert sorted(run.info.run_name for run in runs) == ["subsim_dt4", "subsim_dt5"]


@pytest.mark.thorough
def test_five_candidates_are_five_runs_on_a_server(subject, mlflow_server, mlflow_runs):
    one = subject(mlp_delays=[4, 5, 6, 7, 8], mlflow_uri=mlflow_server, mlflow_experiment="film", max_epochs=5)
    _, _, losses, notes = workflow.ensure_mlp(one)
    assert notes == [candidates.LOGGED]
    client, runs = mlflow_runs(mlflow_server, "film")
    assert sorted(run.info.run_name for run in runs) == [f"subsim_dt{k}" for k in range(4, 9)]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert sorted(a.path for a in client.list_artifacts(run.info.run_id)) == ["best.ckpt", "figures.html"]
        mine = losses[losses["run"] == run.info.run_name]
        for name in ("train_MSE", "val_MSE", "val_Pearson", MONITOR):
            seen = [m.value for m in client.get_metric_history(run.info.run_id, name)]
            assert seen == pytest.approx(list(mine[name].dropna()))
        assert run.data.params["film.wav"] == one.input_md5["film.wav"]
        assert run.data.tags["mlflow.source.git.commit"]


@pytest.mark.thorough
def test_training_that_is_there_is_sent_to_the_server_that_is_named_now(subject, mlflow_server, mlflow_runs):
    workflow.ensure_mlp(subject(mlp_delays=[4.0, 5.0], max_epochs=5))
    later = subject(mlp_delays=[4.0, 5.0], max_epochs=5, mlflow_uri=mlflow_server, mlflow_required=True)
    for sent, known in ((2, 0), (0, 2)):
        *_, notes = workflow.ensure_mlp(later)
        assert notes == [f"Trained earlier; {sent} of its runs were sent to MLflow now, {known} were there already."]
    _, runs = mlflow_runs(mlflow_server, "sim")
    assert sorted(run.info.run_name for run in runs) == ["subsim_dt4", "subsim_dt5"]


def test_training_that_is_there_is_not_called_logged(subject):
    given = {"mlp_delays": [5.0], "max_epochs": 5}
    assert workflow.ensure_mlp(subject(**given))[3] == [candidates.LOGGED]
    assert workflow.ensure_mlp(subject(**given))[3] == ["Trained earlier, nothing was logged now."]
    dead = given | {"mlflow_uri": "http://127.0.0.1:9"}
    (note,) = workflow.ensure_mlp(subject(**dead))[3]
    assert note.startswith("Trained earlier; its runs were not sent: MLflow does not answer at http://127.0.0.1:9")
    with pytest.raises(AccessError, match="MLflow does not answer"):
        workflow.ensure_mlp(subject(**dead, mlflow_required=True))


def test_a_dead_server_is_named_to_the_notebook(subject):
    one = subject(mlp_delays=[4.0, 5.0], mlflow_uri="http://127.0.0.1:9", max_epochs=5)
    _, _, _, notes = workflow.ensure_mlp(one)
    assert len(notes) == 1 and "does not answer at http://127.0.0.1:9" in notes[0]
