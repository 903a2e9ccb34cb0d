"""The linear rows against NumPy, SciPy and scikit-learn, on voxels with strong own history."""

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import LinearRegression, Ridge

from bold_audio import choices, encoding, models, ridge
from bold_audio.pairing import scale_on
from bold_audio.splits import blocked_folds


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
    error = ridge.fold_errors(Y, fit=fit, held=held, alphas=[alpha], **given)[0, 0]
    model = encoding.fit_linear(Y, rows=fit, alphas=[alpha], **given)
    X = np.hstack([np.zeros((len(Y), 0)), *(given[name] for name in ("free", "ridge") if name in given)])
    # float64 by hand: the package's own predictions are float32
    predicted = model.intercept + X[held] @ model.weights
    for lag, phi in enumerate(model.phi, start=1):
        predicted = predicted + phi * Y[held - lag].astype(float)
    brute = np.sum((Y[held] - predicted) ** 2, axis=0)
    np.testing.assert_allclose(error, brute, rtol=1e-5, atol=1e-4)


def test_held_out_error_of_every_pair_of_strengths_equals_prediction(case):
    """(strengths of the past, strengths of the sound, voxels), with a penalty on both."""
    Y, X = case["Y"], case["X"]
    fit, held = np.arange(20, 130), np.r_[140:170, 175:210]
    gammas, alphas = [0.0, 30.0], [5.0, 500.0, np.inf]
    errors = ridge.fold_errors(
        Y, fit=fit, held=held, ridge=X, order=2, history_alphas=gammas, alphas=alphas, chunk_voxels=33
    )
    assert errors.shape == (2, 3, 100)
    for g, gamma in enumerate(gammas):
        for a, alpha in enumerate(alphas):
            model = encoding.fit_linear(Y, rows=fit, ridge=X, order=2, history_alpha=gamma, alphas=[alpha])
            predicted = model.intercept + X[held] @ model.weights
            predicted += sum(phi * Y[held - lag].astype(float) for lag, phi in enumerate(model.phi, start=1))
            brute = np.sum((Y[held] - predicted) ** 2, axis=0)
            np.testing.assert_allclose(errors[g, a], brute, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("gamma", [3.0, 100.0])
def test_penalised_history_equals_ridge_of_scikit_learn(case, gamma):
    """γ is for volumes of variance 1, so a voxel's loudness does not matter."""
    Y, rows = case["Y"].astype(float), case["rows"]
    model = encoding.fit_linear(case["Y"], rows=rows, order=2, history_alpha=gamma)
    for v in (0, 1, 50, 99):
        lags = np.column_stack([Y[rows - 1, v], Y[rows - 2, v]])
        scale = lags.std(axis=0)
        known = Ridge(alpha=gamma).fit(lags / scale, Y[rows, v])
        np.testing.assert_allclose(model.phi[:, v], known.coef_ / scale, atol=1e-6)
        np.testing.assert_allclose(model.intercept[v], known.intercept_, rtol=1e-6)
    loud = encoding.fit_linear(20 * (case["Y"] - 900), rows=rows, order=2, history_alpha=gamma)
    np.testing.assert_allclose(np.delete(loud.phi, 7, axis=1), np.delete(model.phi, 7, axis=1), atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 20.0])
def test_two_strengths_equal_a_generalised_ridge(case, gamma):
    """History, blocks and sound at once: a penalty of its own for each band, none for the blocks."""
    Y, rows, alpha = case["Y"].astype(float), case["rows"], 50.0
    given = {"free": case["blocks"], "ridge": case["X"], "order": 2, "history_alpha": gamma}
    model = encoding.fit_linear(case["Y"], rows=rows, alphas=[alpha], **given)
    for v in (0, 1, 50, 99):
        lags = np.column_stack([Y[rows - 1, v], Y[rows - 2, v]])
        A = np.column_stack([lags, case["blocks"][rows], case["X"][rows]])
        A = A - A.mean(axis=0)
        penalty = np.diag([*(gamma * lags.var(axis=0)), 0, *[alpha] * 6])
        w = np.linalg.solve(A.T @ A + penalty, A.T @ (Y[rows, v] - Y[rows, v].mean()))
        np.testing.assert_allclose(model.phi[:, v], w[:2], atol=1e-6)
        np.testing.assert_allclose(model.weights[:, v], w[2:], atol=1e-6)


# --- which voxels get the sound -----------------------------------------------------------


@pytest.fixture(scope="module")
def sparse():
    """Function: 600 voxels with a past, 10 features with memory; the first ``n_hearing`` voxels follow them."""

    def make(n_hearing, seed=0):
        rng = np.random.default_rng(seed)
        X = lfilter([1], [1, -0.7], rng.normal(size=(420, 10)), axis=0)
        rows = np.arange(10, 250)
        X = scale_on(X, rows)[0]
        noise = rng.normal(size=(420, 600))
        noise[:, :n_hearing] += X @ rng.normal(0, 0.35, (10, n_hearing))
        Y = (1000 + 10 * lfilter([1], [1, -0.5], noise, axis=0)).astype(np.float32)
        return {
            "Y": Y, "rows": rows, "folds": blocked_folds(rows, n_folds=4, gap_volumes=8), "sound": X,
            "alphas": np.r_[np.logspace(0, 5, 12), np.inf],
        }  # fmt: skip

    return make


def summed_errors(case, **given):
    folds = [ridge.fold_errors(case["Y"], fit=fit, held=held, ridge=case["sound"], alphas=case["alphas"], **given)
             for fit, held in case["folds"]]  # fmt: skip
    return sum(folds)[0]


def n_held_of(case):
    return sum(len(held) for _, held in case["folds"])


def test_the_few_voxels_with_sound_keep_it_and_the_others_lose_it(sparse):
    """5 % of the voxels were planted; where nothing was, the smallest error would keep the sound in half of them."""
    case = sparse(30)
    errors, n_held = summed_errors(case, order=1), n_held_of(case)
    share = n_held / (n_held + case["alphas"])  # of a feature's weight that a strength keeps
    chosen = share[choices.choose_strengths(errors, case["alphas"], n_held=n_held)]
    smallest = share[errors.argmin(axis=0)]
    assert chosen[:30].min() > 0.8
    assert np.median(chosen[30:]) < 0.01 and chosen[30:].mean() < 0.06
    assert np.mean(smallest[30:] > 0.1) > 0.35 and smallest[30:].mean() > 0.12


def test_fit_uses_the_strengths_that_all_voxels_agree_on(sparse):
    case = sparse(30)
    known = choices.choose_strengths(summed_errors(case, order=1), case["alphas"], n_held=n_held_of(case))
    given = {"rows": case["rows"], "folds": case["folds"], "alphas": case["alphas"], "order": 1}
    model = encoding.fit_linear(case["Y"], ridge=case["sound"], chunk_voxels=64, **given)
    np.testing.assert_array_equal(model.alpha, case["alphas"][known])
    off = np.isinf(model.alpha)
    assert not model.weights[:, off].any() and model.weights[:, ~off].any(axis=0).all()


def test_without_an_infinite_strength_the_smallest_error_decides(case):
    alphas = [1.0, 100.0, 1e4]
    given = {"ridge": case["X"], "alphas": alphas}
    model = encoding.fit_linear(case["Y"], rows=case["rows"], folds=case["folds"], **given)
    errors = sum(ridge.fold_errors(case["Y"], fit=fit, held=held, **given)[0] for fit, held in case["folds"])
    np.testing.assert_array_equal(model.alpha, np.array(alphas)[np.argmin(errors, axis=0)])
    assert len(set(model.alpha)) > 1


def test_strengths_need_no_more_than_one_voxel_and_bear_constant_ones():
    """A voxel that the sound explains wholly keeps it even if all others are constant."""
    alphas = np.array([1.0, 1000.0, np.inf])
    errors = np.array([[1.0, 0, 0], [50, 0, 0], [100, 0, 0]])
    assert choices.choose_strengths(errors[:, :1], alphas, n_held=200).tolist() == [0]
    assert choices.choose_strengths(errors, alphas, n_held=200)[0] == 0
    assert choices.choose_strengths(errors[2:], alphas[2:], n_held=200).tolist() == [0, 0, 0]


def test_features_of_noise_do_no_harm(sparse, monkeypatch):
    """On volumes never fitted, sound that carries nothing costs less than 0.1 %; chosen by smallest error, four times
    as much. Mean of four runs, of a length and number of features where overfitting is easy."""
    cases, test = [sparse(0, seed=seed) for seed in range(1, 5)], np.arange(260, 420)

    def excess(case):
        fitted = models.fit_rows(
            case["Y"], rows=case["rows"], folds=case["folds"], sound=case["sound"], sound_at_zero=case["sound"],
            blocks=None, alphas=case["alphas"], max_order=1, names=("history", "history_sound"),
        )  # fmt: skip
        error = {}
        for name, (model, X) in fitted.items():
            predicted = encoding.predict(model.phi, encoding.drive_of(model, X[test]), case["Y"], test)
            error[name] = np.mean((case["Y"][test] - predicted) ** 2, dtype=float)
        return error["history_sound"] / error["history"] - 1

    assert np.mean([excess(case) for case in cases]) < 0.001
    monkeypatch.setattr(encoding, "choose_strengths", lambda errors, alphas, n_held: errors.argmin(axis=0))
    assert np.mean([excess(case) for case in cases]) > 0.003


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


def test_slabs_are_narrower_in_runs_of_very_many_volumes():
    assert ridge.slabs(641, 10_000, 8192) == [slice(0, 8192), slice(8192, 10_000)]
    assert ridge.slabs(5000, 3000, 8192) == [slice(0, 1677), slice(1677, 3000)]
    assert ridge.slabs(10**9, 2, 8192) == [slice(0, 1), slice(1, 2)]


def choose_history(Y, rows, **given):
    return choices.choose_history(Y, rows=rows, folds=blocked_folds(rows, n_folds=4, gap_volumes=10), **given)


def test_order_is_found():
    """Noise made with two lags needs two, and with 550 volumes next to no penalty."""
    rng = np.random.default_rng(3)
    Y = lfilter([1], [1, -0.2, -0.6], rng.normal(size=(600, 80)), axis=0).astype(np.float32) + 900
    found = choose_history(Y, np.arange(10, 560), max_order=5)
    assert found.order == 2 and found.alpha <= 10
    assert found.errors.shape == (5, len(choices.HISTORY_ALPHAS))
    assert found.errors[0].min() > 1.1 * found.errors[1].min()
    variance = 1 / (1 - 0.2 * 0.5 - 0.6 * (0.2 * 0.5 + 0.6))  # ρ1 = .2/(1 − .6)
    assert found.errors[1].min() == pytest.approx(1 / variance, rel=0.05)


def test_a_short_run_of_nearly_white_noise_needs_a_strong_penalty():
    rng = np.random.default_rng(4)
    Y = lfilter([1], [1, -0.1], rng.normal(size=(90, 200)), axis=0).astype(np.float32) + 900
    found = choose_history(Y, np.arange(10, 90), max_order=3)
    assert found.alpha >= 30
    at = choices.HISTORY_ALPHAS.index(found.alpha)
    assert found.errors[found.order - 1, at] == found.errors.min()


def test_loud_and_constant_voxels_do_not_choose_the_history():
    """One voxel a thousand times as loud, made with one lag, does not outvote 60 made with two."""
    rng = np.random.default_rng(5)
    Y = lfilter([1], [1, -0.1, -0.6], rng.normal(size=(500, 60)), axis=0)
    loud = 1000 * lfilter([1], [1, -0.8], rng.normal(size=(500, 1)), axis=0)
    rows = np.arange(10, 500)
    found = choose_history(np.c_[Y, loud, np.full((500, 1), 7.0)].astype(np.float32), rows, max_order=3)
    assert found.order == 2 and np.isfinite(found.errors).all()


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


def test_rows_with_a_past_use_the_order_and_strength_found():
    rng = np.random.default_rng(4)
    Y = lfilter([1], [1, -0.1], rng.normal(size=(90, 200)), axis=0).astype(np.float32) + 900
    X, rows = rng.normal(size=(90, 2)), np.arange(10, 90)
    given = {"rows": rows, "folds": blocked_folds(rows, n_folds=4, gap_volumes=10)}
    found = choices.choose_history(Y, max_order=3, **given)
    assert found.alpha > 0
    fitted = models.fit_rows(
        Y, sound=X, sound_at_zero=X, blocks=X[:, :1], alphas=[10.0, np.inf], max_order=3, **given
    )  # fmt: skip
    past = {"order": found.order, "history_alpha": found.alpha}
    bands = {"history": {}, "history_blocks": {"free": X[:, :1]}, "history_sound": {"ridge": X}}
    for name, band in bands.items():
        alphas = {"alphas": [10.0, np.inf]} if "ridge" in band else {}
        known = encoding.fit_linear(Y, **given, **past, **band, **alphas)
        np.testing.assert_array_equal(fitted[name][0].phi, known.phi)
        np.testing.assert_array_equal(fitted[name][0].weights, known.weights)


def test_rows_without_blocks_leave_the_block_rows_out(case):
    rows = models.fit_rows(
        case["Y"], rows=case["rows"], folds=case["folds"], sound=case["X"], sound_at_zero=case["X"], blocks=None,
        alphas=[10.0, np.inf], max_order=2,
    )  # fmt: skip
    assert list(rows) == [name for name in models.LINEAR_NAMES if "blocks" not in name]
