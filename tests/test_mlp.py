"""The network, its score over all voxels, and its checkpoint, whose file runs nothing."""

import zipfile

import numpy as np
import pytest
import torch
from refusals import Bomb
from scipy.stats import pearsonr
from torch import nn

from bold_audio import mlp
from bold_audio.files import ModelError
from bold_audio.mlp import AudioFmriMLP, load_checkpoint, mlp_output, save_checkpoint

N_FEATURES, N_VOXELS = 5, 30
FACTS = {"delay": 4.5, "target": "difference", "feature_mean": [0.0, 1.5], "subject": "09", "input_md5": {"a.wav": "0"}}


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = AudioFmriMLP(N_FEATURES, N_VOXELS, hidden_dims=[8, 6], dropout=0.3).eval()
    nn.init.normal_(net.net[-1].weight)
    return net


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


def test_training_starts_from_the_mean():
    net = AudioFmriMLP(5, 11, hidden_dims=[7])
    with torch.no_grad():
        assert not net(torch.randn(3, 5)).any()


def test_pearson_is_per_voxel_over_time_then_the_mean_over_voxels_that_vary():
    rng = np.random.default_rng(2)
    true = rng.normal(size=(20, 6)).astype(np.float32) * [1, 2, 3, 4, 5, 1] + 10
    predicted = (true + rng.normal(size=(20, 6)) * np.arange(6)).astype(np.float32)
    true[:, 1], predicted[:, 3] = 1000, 12
    expected = [pearsonr(true[:, v], predicted[:, v])[0] for v in (0, 2, 4, 5)]
    got, n_constant = mlp.mean_pearson(torch.from_numpy(predicted), torch.from_numpy(true.astype(np.float32)))
    assert float(got) == pytest.approx(np.mean(expected), abs=1e-5)
    assert n_constant == 2


def test_pearson_leaves_out_a_constant_that_float32_cannot_average_exactly():
    true = torch.from_numpy(np.random.default_rng(0).normal(size=(150, 2)).astype(np.float32))
    predicted = true.clone()
    true[:, 1] = 1234.567
    assert float(mlp.mean_pearson(predicted, true)[0]) == pytest.approx(1, abs=1e-5)


# --- the checkpoint -----------------------------------------------------------------------


def test_checkpoint_opens_safely_in_torch_and_in_lightning(model, tmp_path):  # M07
    path, X = tmp_path / "best.ckpt", np.random.default_rng(0).normal(size=(9, N_FEATURES))
    save_checkpoint(path, model, FACTS)
    content = torch.load(path, weights_only=True)
    assert content["bold_audio"] == FACTS
    expected = mlp_output(model, X)
    lightning = AudioFmriMLP.load_from_checkpoint(path, weights_only=True).eval()
    ours, facts = load_checkpoint(path)
    assert facts == FACTS
    assert np.array_equal(mlp_output(lightning, X), expected)
    assert np.array_equal(mlp_output(ours, X), expected)
    assert list(tmp_path.glob(".best*")) == []


def test_checkpoint_that_would_run_code_is_refused(model, tmp_path):  # M05
    path, canary = tmp_path / "best.ckpt", tmp_path / "canary"
    save_checkpoint(path, model, {**FACTS, "more": Bomb(canary)})
    with pytest.raises(ModelError, match="not a safe checkpoint") as error:
        load_checkpoint(path)
    assert not canary.exists()
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    torch.load(path, weights_only=False)  # it is a real bomb
    assert canary.exists()


def test_damaged_or_missing_checkpoint_is_one_line(model, tmp_path):  # M06
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


def test_a_flipped_bit_of_a_weight_is_noticed(model, tmp_path):
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, model, FACTS)
    content, weight = bytearray(path.read_bytes()), model.net[0].weight.detach().numpy().tobytes()
    content[content.index(weight) + 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch says nothing
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused(model, tmp_path):
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, model, FACTS)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "sizes", [{"hidden_dims": [10**6, 10**6]}, {"n_outputs": 2**40}, {"n_past": 2**50}, {"n_features": 0}]
)
def test_sizes_that_the_weights_do_not_have_are_refused_without_memory_for_them(model, tmp_path, sizes, capfd):
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, model, FACTS)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= sizes
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"damaged or not a safe checkpoint \(RuntimeError\)") as error:
        load_checkpoint(path)
    assert "allocate" not in str(error.value.__cause__)
    assert capfd.readouterr() == ("", "")


def test_weights_that_share_one_place_are_refused(model, tmp_path):
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, model, FACTS)
    content = torch.load(path, weights_only=True)
    weight = content["state_dict"]["net.0.weight"]
    content["state_dict"]["net.0.weight"] = torch.zeros(1).expand(weight.shape)
    torch.save(content, path)
    with pytest.raises(ModelError, match="TypeError"):
        load_checkpoint(path)


@pytest.mark.parametrize("missing", ["hyper_parameters", "state_dict", "bold_audio"])
def test_checkpoint_of_something_else_is_refused(model, tmp_path, missing):
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, model, FACTS)
    content = torch.load(path, weights_only=True)
    del content[missing]
    torch.save(content, path)
    with pytest.raises(ModelError, match="damaged or not a safe checkpoint"):
        load_checkpoint(path)
