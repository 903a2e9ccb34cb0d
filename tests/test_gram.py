"""The sum over voxels without the voxels: against scikit-learn and himalaya, voxel by voxel, in float64."""

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import Ridge

from bold_audio import gram
from bold_audio.splits import blocked_folds

ROWS = np.arange(12, 152)
VOLUMES = np.arange(10, 152)  # two volumes before train, for the taps
RUN = {"volumes": VOLUMES, "train": ROWS}
FOLDS = blocked_folds(np.arange(len(ROWS)), n_folds=4, gap_volumes=6)
ALPHAS = [0.1, 10.0, 1e3, 1e5, np.inf]
TAPS = {"volume": [1.0], "difference": [1.0, -1.0], "whitened": [1.0, -0.5, -0.2]}


@pytest.fixture(scope="module")
def case():
    """Raw intensities near 1,000 with 1 % signal, 400 voxels; four designs of five features that are not centred."""
    rng = np.random.default_rng(0)
    X = 3 + lfilter([1], [1, -0.6], rng.normal(size=(4, 160, 5)), axis=1)
    noise = lfilter([1], [1, -0.7], rng.normal(0, 2, (160, 400)), axis=0)
    Y = 1000 + 100 * rng.random(400) + noise + X[2] @ rng.normal(0, 0.4, (5, 400))
    return Y.astype(np.float32), X


def target_of(Y, taps, *, scaled):
    Y = Y.astype(float)
    Y = Y / Y[ROWS].std(axis=0) if scaled else Y
    return sum(weight * Y[ROWS - lag] for lag, weight in enumerate(taps))


def losses_of(t, x, alpha, fit, held):
    """Squared error of each held-out volume, formed by scikit-learn voxel by voxel."""
    mean = np.tile(t[fit].mean(axis=0), (len(held), 1))
    predicted = mean if np.isinf(alpha) else Ridge(alpha=alpha, solver="svd").fit(x[fit], t[fit]).predict(x[held])
    return np.sum((t[held] - predicted) ** 2, axis=1)


def gram_of(Y, *, scaled=True, **given):
    return gram.gram_matrices(Y, **RUN, regions={"all": np.ones(Y.shape[1], bool)}, scaled=scaled, **given)["all"]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("target", TAPS)
def test_every_summed_error_equals_scikit_learn(case, target, scaled):
    """Each design, block and strength; the level of 1,000 must not cancel in float32."""
    Y, X = case
    X = X[:, ROWS]
    K = gram_of(Y, scaled=scaled, chunk_voxels=150).target(TAPS[target], ROWS)
    errors = gram.ridge_errors(gram.fold_products(K, X, FOLDS), ALPHAS)
    t = target_of(Y, TAPS[target], scaled=scaled)
    known = np.array([[[losses_of(t, x, a, *fold).sum() for a in ALPHAS] for fold in FOLDS] for x in X])
    np.testing.assert_allclose(errors, known, rtol=1e-5)
    assert errors.sum(axis=1).argmin() == known.sum(axis=1).argmin()
    assert errors.sum(axis=1).argmin() // len(ALPHAS) == 2, "the planted design"


def test_one_strength_without_eigenvectors_equals_all_of_them(case):
    products = gram.fold_products(gram_of(case[0]).target([1.0], ROWS), case[1][:, ROWS], FOLDS)
    every = gram.ridge_errors(products, ALPHAS)
    for a, alpha in enumerate(ALPHAS):
        np.testing.assert_allclose(gram.ridge_errors_at(products, alpha), every[..., a], rtol=1e-9)


def test_infinite_strength_is_the_mean_of_the_volumes_fitted_on(case):
    Y, X = case
    K = gram_of(Y).target([1.0], ROWS)
    errors = gram.ridge_errors(gram.fold_products(K, X[:, ROWS], FOLDS), [np.inf])[..., 0]
    for f, (fit, held) in enumerate(FOLDS):
        assert np.all(errors[:, f] == gram.null_error(K, fit, held)), "exactly"


@pytest.mark.parametrize("scaled", [True, False])
def test_a_regions_gram_matrix_is_that_of_its_voxels(case, scaled):
    Y = case[0]
    at = np.arange(400)
    regions = {"all": at >= 0, "low": at < 170, "odd": at % 2 == 1, "none": at < 0, "last": at == 399}
    made = gram.gram_matrices(Y, **RUN, regions=regions, scaled=scaled, chunk_voxels=64)
    z = Y[VOLUMES].astype(float) - Y[ROWS].mean(axis=0, dtype=float)
    z = z / Y[ROWS].std(axis=0, dtype=float) if scaled else z
    for name, roi in regions.items():
        known = z[:, roi] @ z[:, roi].T
        np.testing.assert_allclose(made[name].K, known, rtol=0, atol=1e-5 * max(np.diag(known).max(), 1e-9))
        assert (made[name].n_voxels, made[name].first) == (roi.sum(), 10)


def test_the_same_slabs_give_the_same_bits_and_others_nearly(case):
    Y = case[0]
    first, again, other = (gram_of(Y, chunk_voxels=width).K for width in (64, 64, 400))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() <= 1e-6 * np.diag(first).max()
    assert not np.array_equal(first, other), "another width must round otherwise, or this test says nothing"


def test_a_scan_on_disk_gives_the_same_bits(case, tmp_path):
    np.save(tmp_path / "volumes.npy", case[0])
    mapped = np.load(tmp_path / "volumes.npy", mmap_mode="r")
    np.testing.assert_array_equal(gram_of(mapped, chunk_voxels=100).K, gram_of(case[0], chunk_voxels=100).K)
    np.testing.assert_array_equal(mapped, case[0])  # and is left as it was


def test_some_columns_of_a_design_need_no_new_products(case):
    Y, X = case
    K = gram_of(Y).target([1.0], ROWS)
    whole = gram.fold_products(K, X[:, ROWS], FOLDS)
    for chosen in ([0], [3, 1], [4, 0, 2]):
        part = gram.fold_products(K, X[:, ROWS][..., chosen], FOLDS)
        cut = [fold.columns(np.array(chosen)) for fold in whole]
        np.testing.assert_allclose(gram.ridge_errors(cut, ALPHAS), gram.ridge_errors(part, ALPHAS), rtol=1e-10)


def test_each_block_may_be_scored_on_voxels_of_its_own(case):
    Y, X = case
    chosen = [np.arange(400) % 4 == f for f in range(4)]
    made = gram.gram_matrices(Y, **RUN, regions=dict(enumerate(chosen)), scaled=True)
    Ks = np.stack([one.target([1.0], ROWS) for one in made.values()])
    errors = gram.ridge_errors(gram.fold_products(Ks, X[:, ROWS], FOLDS), [10.0])[..., 0]
    for f, fold in enumerate(FOLDS):
        t = target_of(Y[:, chosen[f]], [1.0], scaled=True)
        known = [losses_of(t, x, 10.0, *fold).sum() for x in X[:, ROWS]]
        np.testing.assert_allclose(errors[:, f], known, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 10.0])
def test_a_column_given_twice_or_empty_is_no_trouble(case, alpha):
    Y, X = case
    x, t = X[0, ROWS], target_of(Y, [1.0], scaled=True)
    K = gram_of(Y).target([1.0], ROWS)
    spoilt = np.stack([np.c_[x, x[:, 0]], np.c_[x, np.zeros(len(x))], np.c_[x, np.ones(len(x))]])
    errors = gram.ridge_errors(gram.fold_products(K, spoilt, FOLDS), [alpha])[..., 0]
    for design, z in zip(errors, spoilt, strict=True):
        z = x if alpha == 0 else z  # the smallest of all least-squares solutions is that without the spare column
        np.testing.assert_allclose(design, [losses_of(t, z, alpha, *fold).sum() for fold in FOLDS], rtol=1e-5)


def test_constant_voxels_count_nothing(case):
    Y = case[0].copy()
    Y[:, 5], Y[:, 200] = 555.0, 0.1
    Y[ROWS, 9] = 7.0  # varies outside train only
    made, without = gram_of(Y), gram_of(np.delete(Y, [5, 9, 200], axis=1))
    assert made.n_voxels == without.n_voxels == 397
    np.testing.assert_allclose(made.K, without.K, atol=1e-6 * made.K.max())


@pytest.mark.parametrize(("rows", "taps"), [(ROWS, [1, 0, 0, 1]), (ROWS - 3, [1]), (ROWS + 1, [1])])
def test_rows_that_the_matrix_does_not_hold_are_refused(case, rows, taps):
    with pytest.raises(ValueError, match=f"rows must lie in .* got {rows[0]} … {rows[-1]}."):
        gram_of(case[0]).target(taps, rows)


def test_shared_history_equals_least_squares_over_all_voxels(case):
    z = case[0].astype(float) - case[0][ROWS].mean(axis=0, dtype=float)
    z /= z[ROWS].std(axis=0)
    stacked = np.stack([z[ROWS - lag].ravel() for lag in (1, 2)], axis=1)
    known = np.linalg.lstsq(stacked, z[ROWS].ravel(), rcond=None)[0]
    np.testing.assert_allclose(gram_of(case[0]).shared_history(ROWS, 2), known, atol=1e-6)


def test_shared_history_whitens_an_autoregression():
    noise = np.random.default_rng(5).normal(size=(1500, 60))
    Y = (1000 + 10 * lfilter([1], [1, -0.5, -0.3], noise, axis=0)).astype(np.float32)
    rows, regions = np.arange(10, 1500), {"all": np.ones(60, bool)}
    volumes = np.arange(8, 1500)
    phi = gram.gram_matrices(Y, volumes=volumes, train=rows, regions=regions, scaled=True)["all"].shared_history(
        rows, 2
    )
    np.testing.assert_allclose(phi, [0.5, 0.3], atol=0.01)
    white = gram.Slabs(Y, volumes, rows, np.r_[1, -phi], 60).read(slice(0, 60))
    assert abs(np.mean(white[1:] * white[:-1]) / np.mean(white**2)) < 0.01


def test_slabs_hold_the_target_of_every_voxel_in_order(case):
    taps = TAPS["whitened"]
    slabs = gram.Slabs(case[0], VOLUMES, ROWS, taps, 33)
    made = slabs.map(lambda slab, y: (slab, y))
    assert [slab.start for slab, _ in made] == list(range(0, 400, 33)) and made[-1][0].stop == 400
    known = target_of(case[0] - case[0][ROWS].mean(axis=0, dtype=float), taps, scaled=False)
    np.testing.assert_allclose(np.concatenate([y for _, y in made], axis=1), known, atol=2e-4)


def test_himalaya_chooses_the_same_strength_with_the_same_error(case):
    """Mean squared error of every delay, one strength for all voxels, blocks of equal length."""
    from himalaya import ridge, scoring

    Y, X = case
    alphas = np.array(ALPHAS[:-1])
    errors = gram.ridge_errors(
        gram.fold_products(gram_of(Y, scaled=False).target([1.0], ROWS), X[:, ROWS], FOLDS), alphas
    )
    for x, mine in zip(X[:, ROWS], errors.sum(axis=1) / (len(ROWS) * 400), strict=True):
        best, _, score = ridge.solve_ridge_cv_svd(
            x, Y[ROWS].astype(float), alphas=alphas, fit_intercept=True, score_func=scoring.l2_neg_loss, cv=FOLDS,
            local_alpha=False,
        )[:3]  # fmt: skip
        np.testing.assert_allclose(best, alphas[mine.argmin()], rtol=1e-9)
        assert -np.mean(score) == pytest.approx(mine.min(), rel=1e-5)
