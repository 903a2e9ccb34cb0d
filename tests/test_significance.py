"""Surrogates: which shifts are allowed, that they compose with the delay, what a change of phases keeps, p-values."""

import numpy as np
import pytest

from bold_audio import significance


@pytest.mark.parametrize(("n_rows", "t_r", "longest", "block"), [(431, 0.608, 12.0, 30.0), (90, 2.0, 8.0, 24.0)])
def test_shifts_stay_away_from_no_shift_and_from_whole_blocks(n_rows, t_r, longest, block):
    """Second by second on the circle, whichever way round."""
    shifts = significance.admissible_shifts(n_rows, t_r, longest_delay=longest, block_length=block)
    length = n_rows * t_r

    def allowed(shift):
        ways = (shift * t_r, length - shift * t_r)
        turns = [abs(way - k * block) for way in ways for k in range(int(length / block) + 2)]
        return min(ways) >= longest + significance.AWAY and min(turns) > significance.BLOCK_GUARD

    assert shifts.tolist() == [s for s in range(n_rows) if allowed(s)]
    assert len(shifts) > 10
    assert set(shifts) == {n_rows - s for s in shifts}, "forwards and backwards alike"


def test_without_blocks_only_no_shift_is_avoided():
    shifts = significance.admissible_shifts(60, 1.0, longest_delay=10)
    np.testing.assert_array_equal(shifts, np.arange(20, 41))
    assert len(significance.admissible_shifts(30, 1.0, longest_delay=10)) == 0


def test_a_design_is_shifted_within_itself():
    X = np.random.default_rng(0).normal(size=(7, 3))
    made = significance.circular_designs(X)
    assert made.shape == (7, 7, 3)
    for j in range(7):
        np.testing.assert_array_equal(made[j], np.roll(X, j, axis=0))


def test_shift_and_delay_compose():
    """Of a periodic sound, row j is what the volumes hear one repetition time later than in row j − 1."""

    def heard(delay):  # t_r 1 s, period 16 s
        return np.cos(2 * np.pi * (np.arange(16) - delay)[:, None] / 16 * [1, 2])

    for j, design in enumerate(significance.circular_designs(heard(3.0))):
        np.testing.assert_allclose(design, heard(3.0 + j), atol=1e-12)


@pytest.mark.parametrize("n_rows", [120, 121])
def test_other_phases_keep_spectra_and_how_features_go_together(n_rows):
    rng = np.random.default_rng(0)
    X = np.cumsum(rng.normal(size=(n_rows, 3)), axis=0) @ rng.normal(size=(3, 3))
    made = significance.phase_randomised(X, np.random.default_rng(1))

    def circular_covariance(A):
        return [A.T @ np.roll(A, lag, axis=0) for lag in range(n_rows)]

    assert made.shape == X.shape and np.isrealobj(made)
    np.testing.assert_allclose(made.mean(axis=0), X.mean(axis=0), atol=1e-10)
    np.testing.assert_allclose(circular_covariance(made), circular_covariance(X), rtol=1e-8, atol=1e-8)
    assert abs(np.corrcoef(made[:, 0], X[:, 0])[0, 1]) < 0.9
    again = significance.phase_randomised(X, np.random.default_rng(1))
    np.testing.assert_array_equal(made, again)
    assert not np.allclose(made, significance.phase_randomised(X, np.random.default_rng(2)))


@pytest.mark.parametrize("n_window", [1, 2, 5, 6])
def test_best_in_window_equals_a_loop(n_window):
    values = np.random.default_rng(n_window).normal(size=(20, 4)).astype(np.float32)
    best = significance.best_in_window(values, n_window)
    known = [[max(values[(s + j) % 20, v] for j in range(n_window)) for v in range(4)] for s in range(20)]
    np.testing.assert_array_equal(best, np.array(known, np.float32))
    np.testing.assert_array_equal(significance.best_in_window(values[:, 0], n_window), best[:, 0])


def test_p_counts_the_surrogates_that_do_as_well():
    observed, surrogates = np.array([3.0, 0.0]), np.array([[1, 1], [3, 3], [4, 4], [2.0, 2.0]])
    np.testing.assert_allclose(significance.p_value(observed, surrogates), [3 / 5, 1.0])
    assert significance.p_value(3.0, surrogates[[0, 3], 0]) == pytest.approx(1 / 3)


def test_p_is_1_without_surrogates():
    np.testing.assert_array_equal(significance.p_value(np.ones(3), np.ones((0, 3))), np.ones(3))


def test_randomised_sound_calls_the_nominal_share_of_noise_significant():
    """Few shifts of slow features really differ: alone they call too much significant, with other phases 5 %."""
    rng = np.random.default_rng(5)
    X = np.cumsum(rng.normal(size=(90, 2)), axis=0)
    X -= np.linspace(X[0], X[-1], 90)
    noise = rng.normal(size=(90, 4000))

    def score(A):
        A = (A - A.mean(axis=0)) / A.std(axis=0)
        return significance.best_in_window(
            np.square(significance.circular_designs(A).transpose(0, 2, 1) @ noise).sum(1), 8
        )

    played = [score(X)] + [score(significance.phase_randomised(X, rng)) for _ in range(3)]
    shifts = significance.admissible_shifts(90, 1.0, longest_delay=8)
    alone = significance.p_value(played[0][0], played[0][shifts])
    together = significance.p_value(played[0][0], np.concatenate([played[0][shifts], *played[1:]]))
    assert np.mean(alone <= 0.05) > 0.07
    assert np.mean(together <= 0.05) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("window", [1, 2, 5, 14])
def test_mean_in_window_by_a_loop(window):
    values = 5 * np.random.default_rng(window).normal(size=(30, 3))
    made = significance.mean_in_window(values, window)
    for j in range(30):
        at = np.arange(j, j + window) % 30
        np.testing.assert_allclose(made[j], np.log(np.mean(np.exp(values[at]), axis=0)))


def test_mean_in_window_keeps_small_values_beside_a_large_one():
    values = np.zeros((40, 1), np.float32)
    values[3] = 600
    made = significance.mean_in_window(values, 4)
    np.testing.assert_allclose(made[10:30], 0, atol=1e-5)
    np.testing.assert_allclose(made[:4], 600 - np.log(4), rtol=1e-5)


def test_nothing_observed_has_no_p():
    assert np.isnan(significance.p_value(np.nan, np.zeros(99)))
    assert np.isnan(significance.p_value(np.array([np.nan, 1]), np.zeros((99, 1)))).tolist() == [True, False]


@pytest.mark.parametrize("alike", [1, 4, 14, 40])
@pytest.mark.parametrize("n", [9, 60, 1277])
def test_threshold_is_where_p_passes_the_level(n, alike):
    surrogates = np.random.default_rng(n).normal(size=n)
    threshold = significance.threshold_of(surrogates, alike=alike)
    seen = np.sort(np.r_[surrogates, surrogates + 1e-6, 9.0])
    p = significance.p_value(seen, surrogates[:, None], alike=alike)
    assert np.array_equal(seen > threshold, p <= 0.05)


@pytest.mark.parametrize("n_rows", [30, 80, 431, 5000])
def test_as_many_versions_as_the_smallest_p_needs(n_rows):
    n = significance.versions_needed(n_rows, 14, p=0.01)
    assert 14 / (14 + n * n_rows) <= 0.01
    assert n == 1 or 14 / (14 + (n - 1) * n_rows) > 0.01
