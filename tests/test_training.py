"""A training gives its best epoch, the same from the same seed, also when it was killed on the way."""

import multiprocessing
import os
import random
import resource
import signal
import sys

import numpy as np
import pytest
import torch

from bold_audio import renderer, training
from bold_audio.coordinates import make_targets
from bold_audio.files import MachineError, ModelError
from bold_audio.mlp import MONITOR, mlp_output
from bold_audio.params import load_params
from bold_audio.training import train_mlp

pytestmark = pytest.mark.slow

FIT, VAL = np.arange(4, 140), np.arange(150, 210)
RANGE = (200.0, 1700.0)


def make_pairs(n_voxels=40):
    """Features, and raw-looking volumes of which the first half follows them."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(210, 5))
    weights = rng.normal(size=(5, n_voxels)) * (np.arange(n_voxels) < n_voxels // 2)
    Y = 1000 + 100 * rng.normal(size=n_voxels) + 4 * X @ weights + 8 * rng.normal(size=(210, n_voxels))
    return X, Y.astype(np.float32)


def run_training(folder, *, delay=4.5, target="volume", **given):
    """Train on these pairs with these parameters."""
    X, Y = make_pairs()
    targets = make_targets(Y, target=target, fit=FIT, val=VAL, whitening=np.array([1, -0.3]), value_range=RANGE)
    options = {"hidden_dims": [8, 6], "max_epochs": 20, "lr": 0.01, "dropout": 0.1} | given
    return train_mlp(X, targets, delay=delay, settings=load_params("sim", **options), folder=folder)


@pytest.fixture
def train(tmp_path):
    """Function: train in a folder of its own."""
    count = iter(range(100))
    return lambda **given: run_training(tmp_path / f"training{next(count)}", **given)


def weights_of(net):
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


def same_weights(a, b):
    return all(np.array_equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("target", ["volume", "difference", "whitened"])
def test_what_the_sound_explains_is_learnt_and_kept(train, target):
    trained = train(target=target, max_epochs=60)
    made, Y = mlp_output(trained.model, make_pairs()[0]), make_pairs()[1]
    assert trained.best[MONITOR] > 10
    moved = made[VAL].std(axis=0)
    assert np.median(moved[:20]) > 3 * np.median(moved[20:])
    if target != "difference":
        r = [np.corrcoef(made[VAL, v], Y[VAL, v])[0, 1] for v in range(20)]
        assert np.median(r) > 0.5


def test_losses_of_every_epoch_and_of_all_voxels_at_every_look(train):
    trained = train(max_epochs=12)
    assert [row["epoch"] for row in trained.losses] == list(range(12))
    looked = [row["epoch"] for row in trained.losses if MONITOR in row]
    assert looked == [4, 9]
    for row in trained.losses:
        assert "train_MSE" in row and ("val_MSE" in row) == ("val_Pearson" in row) == (row["epoch"] in looked)


def test_val_mse_is_that_of_the_network_before_shares(train, monkeypatch):
    whole = np.ones(40)
    monkeypatch.setattr("bold_audio.mlp.kept_shares", lambda *a, **k: (whole, 1.0))
    trained = train(max_epochs=5)
    X, Y = make_pairs()
    made = mlp_output(trained.model, X[VAL]).astype(float)
    mse = np.mean((Y[VAL] - made) ** 2) / (RANGE[1] - RANGE[0]) ** 2
    assert trained.best["val_MSE"] == pytest.approx(mse, rel=1e-4)
    r = np.mean([np.corrcoef(Y[VAL, v], made[:, v])[0, 1] for v in range(40)])
    assert trained.best["val_Pearson"] == pytest.approx(r, abs=1e-4)


def test_train_mse_is_in_the_same_unit_as_val_mse(train):
    # With weights that hardly move, the first epoch's loss is that of the mean.
    Y = make_pairs()[1]
    row = train(max_epochs=1, lr=1e-9, dropout=0).losses[0]
    expected = np.mean((Y[FIT] - Y[FIT].mean(axis=0, dtype=float)) ** 2) / (RANGE[1] - RANGE[0]) ** 2
    assert row["train_MSE"] == pytest.approx(expected, rel=1e-4)


def test_best_epoch_has_the_most_evidence_and_its_weights_come_back(train):
    overfit = {"lr": 0.03, "dropout": 0, "weight_decay": 0, "hidden_dims": [64]}
    trained = train(max_epochs=80, **overfit)
    looks = [row for row in trained.losses if MONITOR in row]
    assert trained.best == max(looks, key=lambda row: row[MONITOR])
    assert trained.best["epoch"] < looks[-1]["epoch"] < 79, "training stops when nothing gets better"
    assert len(looks) <= looks.index(trained.best) + 1 + training.PATIENCE
    stopped_there = train(max_epochs=trained.best["epoch"] + 1, **overfit)
    assert same_weights(weights_of(trained.model), weights_of(stopped_there.model))


def test_same_seed_gives_the_same_weights_whatever_ran_before(train):
    first = weights_of(train(seed=3).model)
    torch.manual_seed(99)
    torch.rand(17), np.random.default_rng().normal(size=3)
    train(seed=4, hidden_dims=[3])
    assert same_weights(first, weights_of(train(seed=3).model))
    assert not same_weights(first, weights_of(train(seed=4).model))


def test_training_leaves_the_random_numbers_of_the_caller_alone(train):
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    train(max_epochs=1)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("batch_size", [16, 256])
def test_a_loss_that_is_not_a_number_names_the_learning_rate(train, batch_size):
    with pytest.raises(ModelError, match="not a number at epoch .* lower lr 1e\\+30") as error:
        train(lr=1e30, batch_size=batch_size)
    assert "\n" not in str(error.value)


def test_two_trainings_in_one_process_share_nothing(train):
    alone = weights_of(train(seed=3, delay=5).model)
    train(seed=3, delay=6, dropout=0.5, batch_size=16)
    assert same_weights(alone, weights_of(train(seed=3, delay=5).model))


@pytest.mark.parametrize(
    "n, size, sizes", [(280, 64, [70] * 4), (315, 64, [63] * 5), (7, 64, [7]), (9, 2, [3, 2, 2, 2])]
)
def test_batches_of_an_epoch_are_alike_and_hold_every_volume_once(n, size, sizes):
    order = training.EpochOrder(n, 0, size)
    first = list(order)
    assert [len(batch) for batch in first] == sizes and len(order) == len(sizes)
    assert sorted(np.concatenate(first)) == list(range(n))
    order.set_epoch(1)
    assert not np.array_equal(np.concatenate(first), np.concatenate(list(order)))


# --- killed on the way --------------------------------------------------------------------


def killed_after(folder, n_batches, options):
    """Train in a process that shoots itself after some batches, wherever it is then."""
    seen = 0

    def count(self, batch, batch_idx):
        nonlocal seen
        seen += 1
        if seen > n_batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch, batch_idx)

    plain = training.AudioFmriMLP.training_step
    training.AudioFmriMLP.training_step = count
    run_training(folder, **options)


@pytest.mark.thorough
def test_killed_trainings_end_as_if_they_had_not_been(train, tmp_path):
    options = {"max_epochs": 40, "hidden_dims": [16], "dropout": 0.3, "lr": 0.003, "batch_size": 16}
    whole = train(**options)
    spawn, rng = multiprocessing.get_context("spawn"), random.Random(5)
    for _ in range(3):  # the same folder each time: every process goes on from what the last one left
        one = spawn.Process(target=killed_after, args=(tmp_path / "killed", rng.randrange(45, 60), options))
        one.start()
        one.join(300)
        assert one.exitcode == -signal.SIGKILL
        assert (tmp_path / "killed" / "last.ckpt").is_file(), (
            "killed before its first look, there is nothing to go on from"
        )
    finished = run_training(tmp_path / "killed", **options)
    assert len(finished.losses) == len(whole.losses) > 15
    assert finished.losses == whole.losses and finished.best == whole.best
    assert same_weights(weights_of(finished.model), weights_of(whole.model))


def test_a_finished_training_is_not_trained_again(tmp_path, monkeypatch):
    stops = {"max_epochs": 200, "lr": 0.05, "dropout": 0.0, "hidden_dims": [64]}
    first = run_training(tmp_path, **stops)
    assert len(first.losses) < 200
    monkeypatch.setattr(training.pl.Trainer, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = run_training(tmp_path, **stops)
    assert again.losses == first.losses and same_weights(weights_of(first.model), weights_of(again.model))


@pytest.mark.parametrize("damage", [b"", b"<html>", "torn", "one bit"])
def test_a_damaged_checkpoint_is_made_again(tmp_path, damage):
    first, last = run_training(tmp_path / "straight", max_epochs=10), tmp_path / "halted" / "last.ckpt"
    run_training(tmp_path / "halted", max_epochs=5)
    whole = last.read_bytes()
    weight = whole.index(torch.load(last, weights_only=True)["state_dict"]["net.0.weight"].numpy().tobytes())
    flipped = whole[: weight + 3] + bytes([whole[weight + 3] ^ 1]) + whole[weight + 4 :]
    last.write_bytes({"torn": whole[:-100], "one bit": flipped}.get(damage, damage))
    again = run_training(tmp_path / "halted", max_epochs=10)
    assert same_weights(weights_of(first.model), weights_of(again.model))


def test_a_full_disk_leaves_the_checkpoint_before_and_training_goes_on_from_it(train, tmp_path, monkeypatch):  # R07
    whole, folder, limits = train(max_epochs=20), tmp_path / "full", resource.getrlimit(resource.RLIMIT_FSIZE)

    def write(path, content):
        if (folder / "last.ckpt").is_file():  # of the first look
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        plain(path, content)

    plain = training.write_torch
    with monkeypatch.context() as patch, pytest.raises(MachineError, match="a checkpoint cannot be written .* - free"):
        patch.setattr(training, "write_torch", write)
        try:
            run_training(folder, max_epochs=20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == training.LOOK_EVERY - 1
    again = run_training(folder, max_epochs=20)
    assert again.losses == whole.losses and same_weights(weights_of(whole.model), weights_of(again.model))


def test_lightning_checkpoint_opens_with_weights_only(tmp_path):
    run_training(tmp_path, max_epochs=5)
    for name in ("best", "last"):
        assert "state_dict" in torch.load(tmp_path / f"{name}.ckpt", weights_only=True)


# --- who watches, and on what -------------------------------------------------------------


def test_progress_is_drawn_only_where_somebody_watches(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not renderer.somebody_watches()
    monkeypatch.setenv("JPY_SESSION_NAME", "/notebooks/04_train.ipynb")
    assert renderer.somebody_watches()
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert renderer.somebody_watches()


def test_headless_training_says_nothing(train, capfd):
    train(max_epochs=5)
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_cuda_is_used_and_gives_much_the_same(train):
    trained = train(max_epochs=20)
    assert trained.best[MONITOR] > 10
    assert all(value.device.type == "cpu" for value in trained.model.state_dict().values())
