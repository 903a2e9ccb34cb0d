"""The MLP: its coordinates equal the voxels, its best epoch is what comes back, its files run nothing."""

import os
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import nn

from bold_audio import mlp, workflow
from bold_audio.files import ModelError
from bold_audio.mlp import AudioFmriDataModule, AudioFmriMLP, fold_basis, load_checkpoint, save_checkpoint, train_mlp
from bold_audio.params import load_params

N_FEATURES, N_VOXELS = 5, 30
FIT, VAL = np.arange(40), np.arange(46, 64)
RANGE = (200.0, 1700.0)
RUNS_SEEN = ("train_MSE", "val_MSE", "val_Pearson")
FACTS = {"delay": 4.5, "target": "difference", "feature_mean": [0.0, 1.5], "subject": "09", "input_md5": {"a.wav": "0"}}


@pytest.fixture
def pairs():
    """Features, and raw-looking volumes that they partly explain."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, N_FEATURES))
    signal = X @ rng.normal(size=(N_FEATURES, N_VOXELS))
    T = 1000 + 100 * rng.normal(size=N_VOXELS) + 4 * signal + 8 * rng.normal(size=(64, N_VOXELS))
    return X, T.astype(np.float32)


def settings(**given):
    return load_params("sim", **({"hidden_dims": [8, 6], "max_epochs": 4, "lr": 0.01, "dropout": 0.1} | given))


@pytest.fixture
def train(pairs, tmp_path):
    """Function: train on the pairs with these parameters."""

    def run(*, loggers=(), data=pairs, **given):
        what = {"fit": FIT, "val": VAL, "delay": 4.5, "value_range": RANGE, "folder": tmp_path / "training"}
        return train_mlp(*data, **what, settings=settings(**given), loggers=loggers)

    return run


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AudioFmriMLP(N_FEATURES, N_VOXELS, hidden_dims=[8, 6], dropout=0.3).eval()


def weights_of(net):
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


def same_weights(a, b):
    return all(np.array_equal(value, b[name]) for name, value in a.items())


def by_numpy(net, X):
    """Output of the network in float64, from its weights alone."""
    linear = [layer for layer in net.net if isinstance(layer, nn.Linear)]
    h = np.asarray(X, dtype=np.float32).astype(np.float64)
    for layer in linear:
        h = h @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        if layer is not linear[-1]:
            h = np.maximum(h, 0)
    return h


def in_coordinates(pairs, n_components):
    """The data in coordinates, and a network with some weights on them."""
    data = AudioFmriDataModule(*pairs, fit=FIT, val=VAL, n_components=n_components)
    torch.manual_seed(1)
    n_outputs, unit = data.basis.n_components, data.basis.scale**2 / (RANGE[1] - RANGE[0]) ** 2
    sizes = {"hidden_dims": [8, 6], "n_voxels": N_VOXELS, "mse_unit": unit}
    return data, AudioFmriMLP(N_FEATURES, n_outputs, **sizes).eval()


# --- the network --------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_dims", [[7], [8, 4, 3]])
def test_each_hidden_size_is_one_linear_relu_dropout(hidden_dims):
    net = AudioFmriMLP(5, 11, hidden_dims=hidden_dims, dropout=0.25).net
    assert [type(layer) for layer in net] == [nn.Linear, nn.ReLU, nn.Dropout] * len(hidden_dims) + [nn.Linear]
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(
        zip([5, *hidden_dims], [*hidden_dims, 11], strict=True)
    )
    assert {layer.p for layer in net if isinstance(layer, nn.Dropout)} == {0.25}


def test_optimiser_is_adamw_with_the_parameters_given():
    optimiser = AudioFmriMLP(5, 3, hidden_dims=[4], lr=0.0125, weight_decay=0.075).configure_optimizers()
    assert type(optimiser) is torch.optim.AdamW
    assert (optimiser.defaults["lr"], optimiser.defaults["weight_decay"]) == (0.0125, 0.075)
    (group,) = optimiser.param_groups
    assert len(group["params"]) == 4


def test_training_uses_the_parameters_given(train, monkeypatch):
    made = []
    monkeypatch.setattr(mlp, "AudioFmriMLP", type("Seen", (AudioFmriMLP,), {"__init__": _remember(made)}))
    with pytest.raises(StopIteration):
        train(hidden_dims=[9, 3], dropout=0.15, lr=0.02, weight_decay=0.3)
    (given,) = made
    assert {k: given[k] for k in ("hidden_dims", "dropout", "lr", "weight_decay", "n_voxels")} == {
        "hidden_dims": [9, 3],
        "dropout": 0.15,
        "lr": 0.02,
        "weight_decay": 0.3,
        "n_voxels": N_VOXELS,
    }


def _remember(made):
    def init(self, *sizes, **given):
        made.append(given)
        raise StopIteration

    return init


# --- coordinates against voxels -----------------------------------------------------------


@pytest.mark.parametrize("n_components", [None, 4, 1])
@pytest.mark.parametrize("part", ["fit", "val"])
def test_loss_in_coordinates_is_the_error_of_all_voxels(pairs, n_components, part):
    data, net = in_coordinates(pairs, n_components)
    assert data.basis.n_components == (n_components or N_VOXELS)
    X, T = (array[FIT if part == "fit" else VAL] for array in pairs)
    predicted = by_numpy(net, X) * data.basis.scale @ data.basis.components.T.astype(float) + data.basis.mean
    expected = np.mean((T.astype(float) - predicted) ** 2) / (RANGE[1] - RANGE[0]) ** 2
    with torch.no_grad():
        loss = net.loss((data.fit_set if part == "fit" else data.val_set)[:])
    assert float(loss) * net.hparams.mse_unit / net.hparams.n_voxels == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_components", [None, 4])
def test_hidden_layers_get_the_gradients_of_a_dense_network(pairs, n_components):
    data, net = in_coordinates(pairs, n_components)
    dense = fold_basis(net, data.basis)
    X, T = (torch.from_numpy(np.asarray(array[FIT], dtype=np.float32)) for array in pairs)
    net.loss(data.fit_set[:]).backward()
    (((dense(X) - T) / data.basis.scale) ** 2).sum(dim=1).mean().backward()
    for name, parameter in list(net.named_parameters())[:-2]:
        expected = dense.get_parameter(name).grad
        assert torch.linalg.norm(parameter.grad - expected) <= 1e-5 * torch.linalg.norm(expected), name
        assert torch.linalg.norm(expected) > 0


@pytest.mark.parametrize("n_components", [None, 4])
def test_folded_network_predicts_components_times_coordinates_plus_mean(pairs, n_components):
    data, net = in_coordinates(pairs, n_components)
    folded = fold_basis(net.train(), data.basis)
    expected = by_numpy(net, pairs[0]) * data.basis.scale @ data.basis.components.T.astype(float) + data.basis.mean
    np.testing.assert_allclose(mlp.mlp_drive(folded, pairs[0]), expected, rtol=1e-5)
    assert folded.hparams.n_outputs == N_VOXELS
    assert not folded.training


def test_basis_is_fitted_on_the_volumes_fitted_on_alone(pairs):
    X, T = pairs
    other = T.copy()
    other[40:] = 7
    bases = [AudioFmriDataModule(X, one, fit=FIT, val=VAL).basis for one in (T, other)]
    assert np.array_equal(bases[0].mean, bases[1].mean)
    assert np.array_equal(bases[0].components, bases[1].components)
    assert bases[0].scale == bases[1].scale


def test_pearson_is_per_voxel_over_time_then_the_mean_over_voxels_that_vary():
    rng = np.random.default_rng(2)
    true = rng.normal(size=(20, 6)).astype(np.float32) * [1, 2, 3, 4, 5, 1] + 10
    predicted = (true + rng.normal(size=(20, 6)) * np.arange(6)).astype(np.float32)
    true[:, 1], predicted[:, 3] = 1000, 12
    expected = [pearsonr(true[:, v], predicted[:, v])[0] for v in (0, 2, 4, 5)]
    got = mlp.mean_pearson(torch.from_numpy(predicted), torch.from_numpy(true.astype(np.float32)))
    assert float(got) == pytest.approx(np.mean(expected), abs=1e-5)


def test_pearson_leaves_out_a_constant_that_float32_cannot_average_exactly():
    true = torch.from_numpy(np.random.default_rng(0).normal(size=(150, 2)).astype(np.float32))
    predicted = true.clone()
    true[:, 1] = 1234.567
    assert float(mlp.mean_pearson(predicted, true)) == pytest.approx(1, abs=1e-5)


# --- training -----------------------------------------------------------------------------


def test_history_holds_three_losses_of_every_epoch_and_they_are_those_of_the_folded_network(train, pairs):
    trained = train(max_epochs=5)
    assert [row["epoch"] for row in trained.history] == list(range(5))
    assert all(set(row) == {"epoch", *RUNS_SEEN} for row in trained.history)
    X, T = pairs
    predicted = mlp.mlp_drive(trained.model, X[VAL]).astype(float)
    mse = np.mean((T[VAL] - predicted) ** 2) / (RANGE[1] - RANGE[0]) ** 2
    best = trained.history[trained.best_epoch]
    assert best["val_MSE"] == trained.val_mse == pytest.approx(mse, rel=1e-5)
    r = np.mean([pearsonr(T[VAL, v], predicted[:, v])[0] for v in range(N_VOXELS)])
    assert best["val_Pearson"] == trained.val_pearson == pytest.approx(r, abs=1e-4)


def test_train_mse_is_in_the_same_unit_as_val_mse(train, pairs):
    X, T = pairs
    row = train(max_epochs=1, lr=1e-9, dropout=0).history[0]
    # With weights that hardly move, the first epoch's loss is that of the fresh network.
    fresh = mlp.mlp_drive(train(max_epochs=1, lr=1e-9, dropout=0).model, X[FIT])
    expected = np.mean((T[FIT] - fresh.astype(float)) ** 2) / (RANGE[1] - RANGE[0]) ** 2
    assert row["train_MSE"] == pytest.approx(expected, rel=1e-4)


def test_best_epoch_is_the_smallest_val_mse_and_its_weights_come_back(train):
    overfit = {"lr": 0.05, "dropout": 0, "weight_decay": 0, "hidden_dims": [64]}
    trained = train(max_epochs=40, **overfit)
    val = [row["val_MSE"] for row in trained.history]
    assert trained.best_epoch == int(np.argmin(val)) < len(val) - 1
    assert trained.val_mse == min(val) < 0.9 * val[-1]
    stopped_there = train(max_epochs=trained.best_epoch + 1, **overfit)
    assert same_weights(weights_of(trained.model), weights_of(stopped_there.model))
    assert len(val) <= trained.best_epoch + 1 + mlp.PATIENCE < 40


def test_same_seed_gives_the_same_weights_whatever_ran_before(train, pairs):
    first = weights_of(train(seed=3).model)
    torch.manual_seed(99)
    torch.rand(17), np.random.default_rng().normal(size=3)
    train(seed=4, hidden_dims=[3])
    assert same_weights(first, weights_of(train(seed=3).model))


def test_another_seed_draws_other_weights(train):
    # Hardly trained, so that it is the first weights that differ.
    first, other = (weights_of(train(seed=seed, max_epochs=1, lr=1e-9).model) for seed in (3, 5))
    assert all(np.abs(value - other[name]).max() > 1e-3 for name, value in first.items() if name.endswith("weight"))


def test_training_leaves_the_random_numbers_of_the_caller_alone(train):
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    train(max_epochs=1)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "batch_size",
    [
        pytest.param(16, id="several batches an epoch"),
        pytest.param(
            64,
            id="one batch an epoch",
        ),
    ],
)
def test_a_loss_that_is_not_a_number_names_the_learning_rate(train, batch_size):
    with pytest.raises(ModelError, match="not a number at epoch .* lower lr 1e\\+30") as error:
        train(lr=1e30, batch_size=batch_size)
    assert "\n" not in str(error.value)


# --- the checkpoint -----------------------------------------------------------------------


def test_checkpoint_opens_safely_in_torch_and_in_lightning(train, pairs, tmp_path):
    trained, path = train(max_epochs=1), tmp_path / "best.ckpt"
    save_checkpoint(path, trained.model, FACTS)
    content = torch.load(path, weights_only=True)
    assert content["bold_audio"] == FACTS
    expected = mlp.mlp_drive(trained.model, pairs[0])
    lightning = AudioFmriMLP.load_from_checkpoint(path, weights_only=True).eval()
    ours, facts = load_checkpoint(path)
    assert facts == FACTS
    assert np.array_equal(mlp.mlp_drive(lightning, pairs[0]), expected)
    assert np.array_equal(mlp.mlp_drive(ours, pairs[0]), expected)
    assert list(tmp_path.glob(".best*")) == []


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_checkpoint_that_would_run_code_is_refused(model, tmp_path):
    path, canary = tmp_path / "best.ckpt", tmp_path / "canary"
    save_checkpoint(path, model, {**FACTS, "more": Bomb(canary)})
    with pytest.raises(ModelError, match="not a safe checkpoint") as error:
        load_checkpoint(path)
    assert not canary.exists()
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    torch.load(path, weights_only=False)  # it is a real bomb
    assert canary.exists()


def test_damaged_or_missing_checkpoint_is_one_line(model, tmp_path):
    path = tmp_path / "best.ckpt"
    with pytest.raises(ModelError, match="missing - run notebook 04"):
        load_checkpoint(path)
    save_checkpoint(path, model, FACTS)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-8], b"", b"<html>not found</html>"):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged or not a safe checkpoint .*delete it and train again") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
        assert error.value.exit_code == 6


@pytest.mark.parametrize("missing", ["hyper_parameters", "state_dict", "bold_audio"])
def test_checkpoint_of_something_else_is_refused(model, tmp_path, missing):
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, model, FACTS)
    content = torch.load(path, weights_only=True)
    del content[missing]
    torch.save(content, path)
    with pytest.raises(ModelError, match="damaged or not a safe checkpoint"):
        load_checkpoint(path)


# --- MLflow -------------------------------------------------------------------------------


@pytest.fixture
def listener(pairs, tmp_path):
    """What ``train_candidates`` needs of a subject."""
    X, T = pairs
    params = load_params(9, outputs_dir=str(tmp_path), max_epochs=2, hidden_dims=[4], target="volume")
    return SimpleNamespace(
        params=params,
        Y=T,
        folds=[(FIT, VAL)],
        scaled=lambda kind, delay: (X + delay, None, None),
        run=SimpleNamespace(value_range=RANGE),
        input_md5={"sub-09_bold.nii.gz": "d41d8c"},
    )


@pytest.fixture
def closed_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def logged(folder, experiment):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    return client, {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def test_each_delay_is_one_mlflow_run_with_its_losses(listener, tmp_path):
    trained, notes = workflow.train_candidates(listener, [4.0, 5.5])
    client, runs = logged(tmp_path / "mlflow", "ds003688")
    assert notes == []
    assert set(runs) == {"sub09_dt4", "sub09_dt5.5"}
    for one in trained:
        run = runs[f"sub09_dt{one.delay:g}"]
        assert run.info.status == "FINISHED"
        assert run.data.params["delay"] == str(one.delay)
        assert run.data.params["sub-09_bold.nii.gz"] == "d41d8c"
        for name in RUNS_SEEN:
            steps = [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
            assert steps == pytest.approx([row[name] for row in one.history])


def test_dead_mlflow_server_is_said_at_once_and_runs_are_logged_locally(closed_port, train, tmp_path):
    # The local file is made beforehand, so that what is timed is the server.
    mlp.mlflow_logger(None, "ds003688", "first", local_folder=tmp_path / "mlflow")[0].log_hyperparams({})
    begun, uri = time.perf_counter(), f"http://127.0.0.1:{closed_port}"
    logger, warning = mlp.mlflow_logger(uri, "ds003688", "sub09_dt4", local_folder=tmp_path / "mlflow")
    assert time.perf_counter() - begun < 5
    assert uri in warning and str(tmp_path / "mlflow") in warning
    trained = train(max_epochs=1, loggers=[logger])
    _, runs = logged(tmp_path / "mlflow", "ds003688")
    assert runs["sub09_dt4"].data.metrics["val_MSE"] == pytest.approx(trained.val_mse)


def test_mlflow_server_that_never_answers_is_said_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        _, warning = mlp.mlflow_logger(uri, "ds003688", "sub09_dt4", local_folder=tmp_path)
    assert warning is not None and uri in warning


def test_dead_mlflow_server_is_named_to_the_notebook(closed_port, listener):
    listener.params = listener.params.model_copy(update={"mlflow_uri": f"http://127.0.0.1:{closed_port}"})
    _, notes = workflow.train_candidates(listener, [4.0, 5.0])
    assert len(notes) == 1
    assert f"does not answer at http://127.0.0.1:{closed_port}" in notes[0]
