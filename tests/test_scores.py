"""Scores against SciPy, scikit-learn and hand-made numbers."""

import numpy as np
import pytest
from processes import peak
from scipy import stats
from sklearn.metrics import r2_score

from bold_audio import scores


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    Y = (1000 + 10 * rng.normal(size=(80, 30))).astype(np.float32)
    predicted = (1000 + 0.5 * (Y - 1000) + 4 * rng.normal(size=Y.shape)).astype(np.float32)
    return Y, predicted


def test_scores_go_over_voxels_in_slabs(pair, monkeypatch):
    """The same numbers for slabs of any width, and no float64 copy of everything."""
    Y, predicted = (np.tile(array, (1, 400)) for array in pair)
    made = {}
    for width in (10**6, 1000):
        monkeypatch.setattr(scores, "CHUNK", width)
        with peak() as most:
            made[width] = [
                scores.pearson_r(Y, predicted),
                scores.voxel_mse(Y, predicted, value_range=(0, 2000)),
                scores.voxel_r2(Y, predicted),
                scores.partial_r(Y, predicted, 1.1 * predicted),
            ]
    assert most() < 2 * Y.nbytes
    for first, second in zip(*made.values(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_r_equals_scipy(pair):
    Y, predicted = pair
    known = [stats.pearsonr(Y[:, v].astype(float), predicted[:, v].astype(float)).statistic for v in range(30)]
    np.testing.assert_allclose(scores.pearson_r(Y, predicted), known, atol=1e-10)


def test_r_of_a_constant_is_not_a_number(pair):
    Y, predicted = (a.copy() for a in pair)
    Y[:, 0] = 1234.5
    predicted[:, 1] = 1234.5
    r = scores.pearson_r(Y, predicted)
    assert np.isnan(r[:2]).all() and np.isfinite(r[2:]).all()


def test_rounding_of_a_constant_is_not_variation():
    """Float32 rounding around 1,000 must not be correlated with anything."""
    Y = np.random.default_rng(1).normal(size=(50, 1))
    steady = (1000 + 1e-5 * Y).astype(np.float32)
    assert np.isnan(scores.pearson_r(Y, steady)).all()
    assert np.isnan(scores.voxel_r2(np.full((7, 1), 0.1), np.zeros((7, 1)))).all()  # their mean is not 0.1 to the bit


def test_r2_equals_scikit_learn(pair):
    Y, predicted = pair
    known = r2_score(Y.astype(float), predicted.astype(float), multioutput="raw_values")
    np.testing.assert_allclose(scores.voxel_r2(Y, predicted), known, atol=1e-10)


def test_mse_is_of_scaled_bold(pair):
    Y, predicted = pair
    low, high = 200.0, 1800.0
    known = np.mean((((Y - low) / (high - low)).astype(float) - (predicted - low) / (high - low)) ** 2, axis=0)
    np.testing.assert_allclose(scores.voxel_mse(Y, predicted, value_range=(low, high)), known, rtol=1e-5)


def test_skill_sums_before_it_divides():
    """A loud voxel weighs more: 1 − Σ mse / Σ reference, not the mean of ratios."""
    assert scores.skill(np.array([1.0, 0.0]), np.array([1.0, 9.0])) == pytest.approx(0.9)
    assert np.isnan(scores.skill(np.zeros(2), np.zeros(2)))


def test_partial_r_is_the_textbook_one_for_known_parts():
    """What the past leaves over against what the sound adds, nothing else."""
    rng = np.random.default_rng(2)
    past, sound, noise = rng.normal(size=(3, 4000, 1))
    Y = 1000 + 5 * past + 2 * sound + 2 * noise
    r = scores.partial_r(Y, 1000 + 5 * past, 1000 + 5 * past + 0.3 * sound)
    assert r[0] == pytest.approx(np.sqrt(0.5), abs=0.02)
    assert np.isnan(scores.partial_r(Y, 1000 + 5 * past, 1000 + 5 * past)[0]), "a sound that adds nothing has no r"


def row_of(Y, predicted, reference, roi):
    found = scores.voxel_mse(Y, predicted, value_range=(0, 1)), scores.pearson_r(Y, predicted)
    return scores.score_row(*found, scores.voxel_r2(Y, predicted), reference, roi)


def test_row_leaves_out_other_voxels(pair):
    Y, predicted = pair
    roi = np.arange(30) < 10
    reference = scores.voxel_mse(Y, np.full_like(Y, 1000), value_range=(0, 1))
    row = row_of(Y, predicted, reference, roi)
    spoilt = predicted.copy()
    spoilt[:, ~roi] = 0
    assert row == row_of(Y, spoilt, reference, roi)
    assert row["n_voxels"] == 10 and row["r_median"] == np.median(scores.pearson_r(Y, predicted)[:10])
    assert row["skill"] == pytest.approx(1 - row["mse"] / reference[roi].mean())


def test_voxels_whose_prediction_does_not_vary_are_not_counted_among_those_with_an_r():
    Y = np.random.default_rng(3).normal(size=(50, 6))
    predicted = np.where(np.arange(6) < 2, 0.0, Y)
    row = row_of(Y, predicted, np.ones(6), np.arange(6) > 0)
    assert (row["n_with_r"], row["n_voxels"], round(row["r_median"], 6)) == (4, 5, 1.0)
