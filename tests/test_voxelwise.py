"""Each voxel's own delay and strength, against scikit-learn one voxel, block, delay and strength at a time."""

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import Ridge

from bold_audio import gram, voxelwise
from bold_audio.splits import blocked_folds

ROWS, VOLUMES = np.arange(12, 162), np.arange(10, 162)
FOLDS = blocked_folds(np.arange(len(ROWS)), n_folds=4, gap_volumes=6)
ALPHAS = [1.0, 30.0, 1000.0, np.inf]
TAPS = np.array([1.0, -0.4, -0.1])
CONSTANT, N_VOXELS = 7, 90


@pytest.fixture(scope="module")
def case():
    """90 voxels near 1,000: every third follows one of five delays, one is constant."""
    rng = np.random.default_rng(1)
    X = lfilter([1], [1, -0.6], rng.normal(size=(5, 170, 4)), axis=1)
    Y = 1000 + lfilter([1], [1, -0.5], rng.normal(0, 5, (170, N_VOXELS)), axis=0)
    for v in range(0, N_VOXELS, 3):
        Y[:, v] += X[v // 3 % 5] @ rng.normal(0, 3, 4)
    Y[:, CONSTANT] = 555.0
    return Y.astype(np.float32), X[:, ROWS]


@pytest.fixture(scope="module")
def known(case):
    """Held-out error of the mean, (n_voxels,), and of everything tried, (n_designs, n_alphas, n_voxels), in float64."""
    Y, X = case[0].astype(float), case[1]
    t = sum(weight * Y[ROWS - lag] for lag, weight in enumerate(TAPS))
    errors = np.zeros((len(X), len(ALPHAS), N_VOXELS))
    for fit, held in FOLDS:
        null = np.sum((t[held] - t[fit].mean(axis=0)) ** 2, axis=0)
        for d, x in enumerate(X):
            for a, alpha in enumerate(ALPHAS[:-1]):
                predicted = Ridge(alpha=alpha).fit(x[fit], t[fit]).predict(x[held])
                errors[d, a] += np.sum((t[held] - predicted) ** 2, axis=0)
            errors[d, -1] += null
    return errors[0, -1], errors


def slabs_of(Y, chunk_voxels=32):
    return gram.Slabs(Y, VOLUMES, ROWS, TAPS, chunk_voxels)


def test_choice_equals_scikit_learn(case, known):
    found = voxelwise.best_per_voxel(slabs_of(case[0]), case[1], FOLDS, ALPHAS)
    null, errors = known
    flat = np.delete(errors.reshape(-1, N_VOXELS), CONSTANT, axis=1)
    null, best = np.delete(null, CONSTANT), flat.argmin(axis=0)
    helped = flat.min(axis=0) < null
    alpha, design, skill = (np.delete(values, CONSTANT) for values in (found.alpha, found.design, found.skill))
    np.testing.assert_array_equal(alpha, np.array(ALPHAS)[best % len(ALPHAS)])
    np.testing.assert_array_equal(design[helped], best[helped] // len(ALPHAS))
    np.testing.assert_allclose(skill, 1 - flat.min(axis=0) / null, atol=1e-5)
    assert 35 < helped.sum() < 89, "voxels that are helped and voxels that are not, or this test says less"
    planted = np.arange(0, N_VOXELS, 3)
    assert np.mean(found.design[planted] == planted // 3 % 5) > 0.9


def test_every_error_is_exact_to_1e_5_of_the_means(case, known):
    X = np.asarray(case[1], float)
    y = slabs_of(case[0], N_VOXELS).read(slice(0, N_VOXELS))
    folds = [voxelwise._prepare_fold(X, *fold, np.array(ALPHAS)) for fold in FOLDS]
    changes = sum(np.stack(list(voxelwise.error_changes(y, fold))) for fold in folds)
    null, errors = known
    assert changes.dtype == np.float32
    assert np.all(np.abs(changes - (errors - null)) <= 1e-5 * np.maximum(null, 1e-3))


@pytest.mark.parametrize("width", [1, 7, 90, 1000])
def test_slabs_do_not_matter(case, width):
    wide, other = (voxelwise.best_per_voxel(slabs_of(case[0], w), case[1], FOLDS, ALPHAS) for w in (45, width))
    np.testing.assert_array_equal(wide.design, other.design)
    np.testing.assert_array_equal(wide.alpha, other.alpha)
    np.testing.assert_allclose(wide.skill, other.skill, atol=1e-5)


def test_a_voxel_that_no_delay_helps_is_left_alone(case, known):
    """Also where leaving the sound out is not among the strengths tried."""
    found = voxelwise.best_per_voxel(slabs_of(case[0]), case[1], FOLDS, ALPHAS[:1])
    worse = known[1][:, 0].min(axis=0) > 1.001 * known[0]
    assert worse.sum() > 10
    assert np.isinf(found.alpha[worse]).all() and not found.skill[worse].any()
    assert np.isfinite(found.alpha[::3]).sum() > 25


def test_a_constant_voxel_follows_nothing(case):
    found = voxelwise.best_per_voxel(slabs_of(case[0]), case[1], FOLDS, ALPHAS)
    assert np.isinf(found.alpha[CONSTANT]) and found.skill[CONSTANT] == 0
    assert all(len(values) == N_VOXELS for values in (found.design, found.alpha, found.skill))
