"""Coordinates equal the voxels: losses, gradients and predictions, and what each voxel keeps of them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn

from bold_audio import coordinates
from bold_audio.coordinates import kept_shares, make_targets
from bold_audio.mlp import AudioFmriMLP, fold_basis, mlp_output
from bold_audio.space import principal_space
from bold_audio.training import AudioFmriDataModule

N_FEATURES, N_VOXELS = 5, 30
FIT, VAL = np.arange(4, 40), np.arange(46, 64)
RANGE = (200.0, 1700.0)
WHITENING = np.array([1.0, -0.4, -0.2])
TARGETS = ("volume", "difference", "whitened")


@pytest.fixture
def pairs():
    """Features, and raw-looking volumes that they partly explain."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, N_FEATURES)).astype(np.float32)
    signal = X @ rng.normal(size=(N_FEATURES, N_VOXELS))
    Y = 100 + 10 * rng.normal(size=N_VOXELS) + 4 * signal + 8 * rng.normal(size=(64, N_VOXELS))
    return X, Y.astype(np.float32)


def target_of(Y, target, rows):
    """The target in float64, straight from its definition."""
    Y = Y.astype(float)
    return {
        "volume": lambda k: Y[k],
        "difference": lambda k: Y[k] - Y[k - 1],
        "whitened": lambda k: Y[k] - 0.4 * Y[k - 1] - 0.2 * Y[k - 2],
    }[target](rows)


def trained(pairs, target, n_components=None, **more):
    """Targets, their data and a network with some weights on them."""
    X, Y = pairs
    targets = make_targets(
        Y, target=target, fit=FIT, val=VAL, whitening=WHITENING, n_components=n_components, value_range=RANGE, **more
    )
    torch.manual_seed(1)
    net = AudioFmriMLP(N_FEATURES, targets.basis.n_components, hidden_dims=[8, 6]).eval()
    nn.init.normal_(net.net[-1].weight, std=0.3)
    nn.init.normal_(net.net[-1].bias, std=0.3)
    return targets, AudioFmriDataModule(X, targets), net


def dense_prediction(folded, targets, X, rows):
    """What the folded network says of the target, each tap of its output in turn."""
    X = torch.from_numpy(X)
    parts = [float(tap) * (folded(X[rows - lag]) - level_of(targets)) for lag, tap in enumerate(targets.output_taps)]
    return sum(parts) + torch.from_numpy(targets.basis.mean)


def level_of(targets):
    return torch.from_numpy(targets.level.astype(np.float32))


@pytest.mark.parametrize("n_components", [None, 4])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("part", ["fit", "val"])
def test_loss_in_coordinates_is_the_error_of_all_voxels(pairs, target, n_components, part):
    targets, data, net = trained(pairs, target, n_components)
    folded = fold_basis(net, targets)
    rows = FIT if part == "fit" else VAL
    with torch.no_grad():
        predicted = dense_prediction(folded, targets, pairs[0], rows).numpy()
        loss = net.loss((data.fit_set if part == "fit" else data.val_set)[:], targets)
    expected = np.mean((target_of(pairs[1], target, rows) - predicted) ** 2) / (RANGE[1] - RANGE[0]) ** 2
    assert float(loss) * targets.mse_unit == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_components", [None, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_hidden_layers_get_the_gradients_of_a_dense_network(pairs, target, n_components):
    targets, data, net = trained(pairs, target, n_components)
    dense = fold_basis(net, targets)
    T = torch.from_numpy(target_of(pairs[1], target, FIT).astype(np.float32))
    net.loss(data.fit_set[:], targets).backward()
    error = dense_prediction(dense, targets, pairs[0], FIT) - T
    (error**2).sum(dim=1).mean().backward()
    for name, parameter in list(net.named_parameters())[:-2]:
        expected = dense.get_parameter(name).grad
        assert torch.linalg.norm(expected) > 0
        assert torch.linalg.norm(parameter.grad - expected) <= 1e-5 * torch.linalg.norm(expected), name


@pytest.mark.parametrize("target", TARGETS)
def test_basis_and_coordinates_come_from_the_volumes_fitted_on_alone(pairs, target):
    other = pairs[1].copy()
    other[40:] = 7
    one, two = (trained((pairs[0], Y), target)[0] for Y in (pairs[1], other))
    for name in ("mean", "components", "scale"):
        assert np.array_equal(getattr(one.basis, name), getattr(two.basis, name))
    assert np.array_equal(one.level, two.level)
    assert all(np.array_equal(a, b) for a, b in zip(one.fit_part, two.fit_part, strict=True))


def test_folded_network_of_whitened_volumes_starts_from_the_mean_volume(pairs):
    targets, _, net = trained(pairs, "whitened")
    nn.init.zeros_(net.net[-1].weight)
    nn.init.zeros_(net.net[-1].bias)
    made = mlp_output(fold_basis(net, targets), pairs[0])
    np.testing.assert_allclose(made, np.tile(pairs[1][FIT].mean(axis=0, dtype=float), (64, 1)), rtol=1e-6)


def test_shares_scale_what_each_voxel_is_told(pairs):
    targets, _, net = trained(pairs, "volume")
    shares = np.linspace(0, 1, N_VOXELS)
    full, kept = (mlp_output(fold_basis(net, targets, shares=s), pairs[0]) for s in (None, shares))
    np.testing.assert_allclose(kept - targets.level, shares * (full - targets.level), atol=2e-3)
    assert np.abs(full - targets.level).max() > 10


def test_previous_volumes_are_folded_into_the_first_layer(pairs):
    X, Y = pairs
    targets = make_targets(Y, target="difference", fit=FIT, val=VAL)
    space = principal_space(Y, rows=FIT, n_components=3)
    scores = space.scores(Y)
    rows = np.arange(5, 64)
    inputs = np.hstack([X[rows], scores[rows - 1], scores[rows - 2]]).astype(np.float32)
    torch.manual_seed(1)
    net = AudioFmriMLP(N_FEATURES, targets.basis.n_components, n_past=6, hidden_dims=[8, 6]).eval()
    nn.init.normal_(net.net[-1].weight, std=0.3)
    folded = fold_basis(net, targets, space=space, n_previous=2)
    with torch.no_grad():
        coordinates_ = net.net(torch.from_numpy(inputs)).numpy()
    expected = targets.level + (coordinates_ * targets.basis.scale) @ targets.basis.components.T
    made = mlp_output(folded, X[rows], np.stack([Y[rows - 1], Y[rows - 2]], axis=1))
    np.testing.assert_allclose(made, expected, atol=1e-4 * np.abs(expected).max())
    swapped = mlp_output(folded, X[rows], np.stack([Y[rows - 2], Y[rows - 1]], axis=1))
    assert np.abs(swapped - expected).max() > 0.1


# --- what a voxel keeps -------------------------------------------------------------------


def heard(rng, n_hearing, n=80, n_voxels=2000, strength=0.5, learnt=0.15):
    """A prediction of all voxels that is right, but for noise, in the first few."""
    signal = rng.normal(size=(n, 1)) * strength
    true = rng.normal(size=(n, n_voxels))
    true[:, :n_hearing] += signal
    predicted = learnt * rng.normal(size=(n, n_voxels))
    predicted[:, :n_hearing] += signal
    return [torch.from_numpy(a.astype(np.float32)) for a in (predicted, true)]


def test_voxels_that_hear_keep_the_prediction_and_the_others_lose_it():
    predicted, true = heard(np.random.default_rng(0), 100)
    shares, log_evidence = kept_shares(predicted, true, n_independent=80)
    assert np.median(shares[:100]) > 0.6 and np.mean(shares[100:]) < 0.2
    assert log_evidence > 100


def test_kept_prediction_does_no_harm_on_other_volumes():
    rng = np.random.default_rng(1)
    for n_hearing in (0, 60):
        (p, t), (p2, t2) = (half for half in [heard(rng, n_hearing), heard(rng, n_hearing)])
        shares, _ = kept_shares(p, t, n_independent=80)
        share = torch.from_numpy(shares.astype(np.float32))
        skill = 1 - float(((t2 - share * p2) ** 2).sum() / (t2**2).sum())
        raw = 1 - float(((t2 - p2) ** 2).sum() / (t2**2).sum())
        assert skill > max(raw, -0.0005)
        if n_hearing:
            assert skill > 0.001


def test_a_network_worth_nothing_is_kept_nowhere():
    predicted, true = heard(np.random.default_rng(2), 100)
    predicted = -predicted
    shares, log_evidence = kept_shares(predicted, true, n_independent=80)
    assert log_evidence <= 0 and not shares.any()


def test_constant_voxels_keep_nothing_that_could_hurt():
    predicted, true = heard(np.random.default_rng(3), 50)
    true[:, 60] = 0
    shares, log_evidence = kept_shares(predicted, true, n_independent=80)
    assert np.isfinite(shares).all() and np.isfinite(log_evidence)


def test_slow_targets_are_worth_fewer_independent_volumes():
    rng = np.random.default_rng(4)
    white = rng.normal(size=(300, 50)).astype(np.float32)
    slow = gaussian_filter1d(white, 4, axis=0)
    rows = {"fit": np.arange(2, 200), "val": np.arange(220, 300), "target": "volume"}
    assert make_targets(white, **rows).n_independent > 60
    assert make_targets(slow, **rows).n_independent < 12


def test_neighbours_are_averaged_where_shares_are_decided(pairs):
    def smooth(rows):
        return gaussian_filter1d(np.asarray(rows, dtype=np.float32), 1, axis=1)

    targets, _, _ = trained(pairs, "difference", smooth=smooth)
    np.testing.assert_allclose(targets.smooth_val, smooth(targets.val_voxels), rtol=1e-5)
    np.testing.assert_allclose(targets.smooth_components.T, smooth(targets.basis.components.T), rtol=1e-5)
    plain, _, _ = trained(pairs, "difference")
    assert plain.smooth_val is not None and np.array_equal(plain.smooth_val, plain.val_voxels)
    assert coordinates.SHARES[0] == 0 and coordinates.SHARES[-1] == 1
