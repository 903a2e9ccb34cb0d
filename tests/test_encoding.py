"""The linear rows against NumPy, SciPy and scikit-learn, on voxels with strong own history."""

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import LinearRegression, Ridge

from bold_audio import encoding
from bold_audio.pairing import blocked_folds, scale_on


@pytest.fixture(scope="module")
def case():
    """A raw-looking run: intensities near 1,000 with 1 % signal, one constant voxel, features with memory."""
    rng = np.random.default_rng(0)
    n_volumes, n_voxels = 300, 100
    X = lfilter([1], [1, -0.7], rng.normal(size=(n_volumes, 6)), axis=0)
    noise = lfilter([1], [1, -0.8], rng.normal(0, 5, (n_volumes, n_voxels)), axis=0)
    Y = (1000 + noise + X @ rng.normal(0, 2, (6, n_voxels))).astype(np.float32)
    Y[:, 7] = 555.0
    rows = np.arange(20, 210)
    blocks = scale_on((np.arange(n_volumes) // 25 % 2)[:, None].astype(float), rows)[0]
    folds = blocked_folds(rows, n_folds=4, gap_volumes=8)
    return {
        "Y": Y,
        "X": scale_on(X, rows)[0],
        "blocks": blocks,
        "rows": rows,
        "folds": folds,
        "test": np.arange(230, 300),
    }


def test_sound_equals_ridge_of_scikit_learn(case):
    Y, X, rows = case["Y"], case["X"], case["rows"]
    model = encoding.fit_linear(Y, rows=rows, ridge=X, alphas=[37.0])
    known = Ridge(alpha=37.0).fit(X[rows], Y[rows].astype(float))
    np.testing.assert_allclose(model.weights, known.coef_.T, atol=1e-9)
    np.testing.assert_allclose(model.intercept, known.intercept_, rtol=1e-12)


def test_linear_equals_regression_of_scikit_learn(case):
    Y, X, rows, test = case["Y"], case["X"], case["rows"], case["test"]
    model = encoding.fit_linear(Y, rows=rows, free=X, target="difference")
    known = LinearRegression().fit(X[rows], Y[rows].astype(float) - Y[rows - 1])
    predicted = encoding.predict(model.phi, encoding.drive_of(model, X[test]), Y, test)
    np.testing.assert_allclose(predicted, Y[test - 1] + known.predict(X[test]), rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_history_equals_least_squares_per_voxel(case, order):
    Y, rows, test = case["Y"].astype(float), case["rows"], case["test"]

    def lagged(k, v):
        return np.column_stack([np.ones(len(k)), *(Y[k - lag, v] for lag in range(1, order + 1))])

    model = encoding.fit_linear(case["Y"], rows=rows, order=order)
    predicted = encoding.predict(model.phi, encoding.drive_of(model, np.zeros((len(test), 0))), case["Y"], test)
    for v in range(Y.shape[1]):
        known = lagged(test, v) @ np.linalg.lstsq(lagged(rows, v), Y[rows, v], rcond=None)[0]
        np.testing.assert_allclose(predicted[:, v], known, rtol=2e-6)


def test_constant_and_copy_previous(case):
    Y, rows, test = case["Y"], case["rows"], case["test"]
    constant = encoding.fit_constant(Y, rows)
    drive = encoding.drive_of(constant, np.zeros((len(test), 0)))
    np.testing.assert_allclose(
        encoding.predict(constant.phi, drive, Y, test)[3], Y[rows].mean(axis=0, dtype=float), rtol=1e-6
    )
    copy = encoding.fit_copy_previous(Y)
    drive = encoding.drive_of(copy, np.zeros((len(test), 0)))
    assert np.array_equal(encoding.predict(copy.phi, drive, Y, test), Y[test - 1])
    assert np.array_equal(encoding.rollout(copy.phi, drive, Y, test), np.tile(Y[test[0] - 1], (len(test), 1)))


@pytest.mark.parametrize("target", ["volume", "difference"])
def test_banded_model_equals_brute_force(case, target):
    """History and blocks without, sound with a penalty, each voxel by itself."""
    Y, rows, order, alpha = case["Y"].astype(float), case["rows"], 2, 50.0
    model = encoding.fit_linear(
        case["Y"], rows=rows, order=order, free=case["blocks"], ridge=case["X"], alphas=[alpha], target=target
    )
    for v in (0, 1, 50, 99):
        t = Y[rows, v] - (Y[rows - 1, v] if target == "difference" else 0)
        A = np.column_stack([*(Y[rows - lag, v] for lag in (1, 2)), case["blocks"][rows], case["X"][rows]])
        A = A - A.mean(axis=0)
        w = np.linalg.solve(A.T @ A + np.diag([0] * 3 + [alpha] * 6), A.T @ (t - t.mean()))
        expected = w[:2] + ([1, 0] if target == "difference" else [0, 0])
        np.testing.assert_allclose(model.phi[:, v], expected, atol=1e-7)
        np.testing.assert_allclose(model.weights[:, v], w[2:], atol=1e-6)


@pytest.mark.parametrize(
    "parts", [("ridge",), ("ridge", "order"), ("ridge", "order", "free"), ("free", "order"), ("ridge", "target")]
)
@pytest.mark.parametrize("alpha", [10.0, np.inf])
def test_held_out_error_equals_prediction(case, parts, alpha):
    """The error from cross-products is that of a prediction that is really formed."""
    Y = case["Y"]
    choice = {"ridge": case["X"], "free": case["blocks"], "order": 3, "target": "difference"}
    given = {name: choice[name] for name in parts}
    fit, held = case["folds"][1]
    error = encoding.fold_errors(Y, fit=fit, helds=[held], alphas=[alpha], **given)[0, 0]
    model = encoding.fit_linear(Y, rows=fit, alphas=[alpha], **given)
    X = np.hstack([np.zeros((len(Y), 0)), *(given[name] for name in ("free", "ridge") if name in given)])
    # float64 by hand: the package's own predictions are float32
    predicted = model.intercept + X[held] @ model.weights
    for lag, phi in enumerate(model.phi, start=1):
        predicted = predicted + phi * Y[held - lag].astype(float)
    brute = np.sum((Y[held] - predicted) ** 2, axis=0)
    np.testing.assert_allclose(error, brute, rtol=1e-5, atol=1e-4)


def test_each_voxel_gets_the_strength_with_the_smallest_error(case):
    alphas = [1.0, 100.0, 1e4, np.inf]
    model = encoding.fit_linear(case["Y"], rows=case["rows"], folds=case["folds"], ridge=case["X"], alphas=alphas)
    errors = sum(
        encoding.fold_errors(case["Y"], fit=fit, helds=[held], ridge=case["X"], alphas=alphas)[0]
        for fit, held in case["folds"]
    )
    np.testing.assert_array_equal(model.alpha, np.array(alphas)[np.argmin(errors, axis=0)])
    assert len(set(model.alpha)) > 1


def test_infinite_strength_is_the_model_without_sound(case):
    with_sound = encoding.fit_linear(case["Y"], rows=case["rows"], order=2, ridge=case["X"], alphas=[np.inf])
    without = encoding.fit_linear(case["Y"], rows=case["rows"], order=2)
    np.testing.assert_allclose(with_sound.phi, without.phi, rtol=1e-10)
    np.testing.assert_allclose(with_sound.intercept, without.intercept, rtol=1e-10)
    assert not with_sound.weights.any()


def test_slabs_do_not_matter(case):
    options = {"rows": case["rows"], "folds": case["folds"], "ridge": case["X"], "order": 1, "alphas": [10.0, 1e3]}
    whole = encoding.fit_linear(case["Y"], **options)
    parts = encoding.fit_linear(case["Y"], chunk_voxels=16, **options)
    np.testing.assert_allclose(whole.weights, parts.weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(whole.alpha, parts.alpha)


def test_order_is_found():
    """Noise made with two lags needs two."""
    rng = np.random.default_rng(3)
    Y = lfilter([1], [1, -0.2, -0.6], rng.normal(size=(600, 80)), axis=0).astype(np.float32) + 900
    rows = np.arange(10, 560)
    order, errors = encoding.choose_order(
        Y, rows=rows, folds=blocked_folds(rows, n_folds=4, gap_volumes=10), max_order=5
    )
    assert order == 2 and errors.argmin() == 1 and errors[0] > 1.1 * errors[1]


def test_rollout_reads_nothing_measured_after_its_start(case):
    Y, rows, test = case["Y"], case["rows"], case["test"]
    model = encoding.fit_linear(Y, rows=rows, order=2, ridge=case["X"], alphas=[10.0])
    drive = encoding.drive_of(model, case["X"][test])
    open_loop = encoding.rollout(model.phi, drive, Y, test)
    spoilt = Y.copy()
    spoilt[test] = -1e6
    assert np.array_equal(open_loop, encoding.rollout(model.phi, drive, spoilt, test))
    one_step = encoding.predict(model.phi, drive, Y, test)
    np.testing.assert_allclose(open_loop[0], one_step[0], rtol=1e-6)
    by_hand = drive[1] + model.phi[0] * open_loop[0] + model.phi[1] * Y[test[0] - 1]
    np.testing.assert_allclose(open_loop[1], by_hand, rtol=1e-5)


def test_a_difference_model_rolls_out_as_a_running_sum(case):
    Y, rows, test = case["Y"], case["rows"], case["test"]
    model = encoding.fit_linear(Y, rows=rows, free=case["X"], target="difference")
    drive = encoding.drive_of(model, case["X"][test])
    summed = Y[test[0] - 1].astype(float) + np.cumsum(drive.astype(float), axis=0)
    np.testing.assert_allclose(encoding.rollout(model.phi, drive, Y, test), summed, rtol=1e-5)


def test_whitening_undoes_an_autoregression():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(3000, 40))
    Y = (1000 + 10 * lfilter([1], [1, -0.5, -0.3], noise, axis=0)).astype(np.float32)
    phi = encoding.shared_history(Y, rows=np.arange(10, 3000), order=2)
    np.testing.assert_allclose(phi, [0.5, 0.3], atol=0.01)
    white = encoding.whiten(Y, phi)[10:]
    white = white - white.mean(axis=0)
    assert abs(np.mean(white[1:] * white[:-1]) / np.mean(white**2)) < 0.01
    X = rng.normal(size=(3000, 2))
    np.testing.assert_allclose(
        encoding.whiten(X @ np.ones((2, 3)), phi)[2:], (encoding.whiten(X, phi) @ np.ones((2, 3)))[2:]
    )


def test_rows_without_blocks_leave_the_block_rows_out(case):
    rows = encoding.fit_rows(
        case["Y"], rows=case["rows"], folds=case["folds"], sound=case["X"], sound_at_zero=case["X"], blocks=None,
        alphas=[10.0, np.inf], max_order=2,
    )  # fmt: skip
    assert list(rows) == [name for name in encoding.LINEAR_NAMES if "blocks" not in name]
