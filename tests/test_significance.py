"""Circular shifts: which are allowed, that they compose with the delay, and that noise gives uniform p-values."""

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
    even, odd = np.random.default_rng(0).normal(size=(2, 7, 3))
    whole, both = significance.circular_designs(even), significance.circular_designs(even, odd)
    assert whole.shape == (7, 7, 3) and both.shape == (14, 7, 3)
    for j in range(7):
        np.testing.assert_array_equal(whole[j], np.roll(even, j, axis=0))
        np.testing.assert_array_equal(both[2 * j], np.roll(even, j, axis=0))
        np.testing.assert_array_equal(both[2 * j + 1], np.roll(odd, j, axis=0))


def test_shift_and_delay_compose():
    """Of a periodic sound, row j is what the volumes hear half a repetition time later than in row j − 1."""

    def heard(delay):  # t_r 1 s, period 16 s
        return np.cos(2 * np.pi * (np.arange(16) - delay)[:, None] / 16 * [1, 2])

    designs = significance.circular_designs(heard(3.0), heard(3.5))
    for j in range(32):
        np.testing.assert_allclose(designs[j], heard(3.0 + j / 2), atol=1e-12)


@pytest.mark.parametrize("n_window", [1, 2, 5, 6])
@pytest.mark.parametrize("per_volume", [1, 2])
def test_best_in_window_equals_a_loop(n_window, per_volume):
    values = np.random.default_rng(n_window).normal(size=(20, 4)).astype(np.float32)
    best = significance.best_in_window(values, n_window, per_volume)
    known = [[max(values[(s * per_volume + j) % 20, v] for j in range(n_window)) for v in range(4)]
             for s in range(20 // per_volume)]  # fmt: skip
    np.testing.assert_array_equal(best, np.array(known, np.float32))
    np.testing.assert_array_equal(significance.best_in_window(values[:, 0], n_window, per_volume), best[:, 0])


def test_p_counts_the_shifts_that_do_as_well():
    best = np.array([[3.0, 0.0], [9, 9], [1, 1], [3, 3], [4, 4], [2, 2]])
    np.testing.assert_allclose(significance.shift_p_value(best, np.array([2, 3, 4, 5])), [3 / 5, 1.0])
    assert significance.shift_p_value(best[:, 0], np.array([2, 5])) == pytest.approx(1 / 3)


def test_p_is_1_without_shifts():
    np.testing.assert_array_equal(significance.shift_p_value(np.ones((4, 3)), np.array([], int)), np.ones(3))


def test_p_of_noise_is_uniform():
    """No more than the nominal share of noise below each level, and not much less."""
    values = np.random.default_rng(3).normal(size=(240, 4000))
    best = significance.best_in_window(values, 9, 2)
    shifts = significance.admissible_shifts(120, 1.0, longest_delay=4)
    p = significance.shift_p_value(best, shifts)
    assert p.min() == pytest.approx(1 / (1 + len(shifts)))
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.025)
