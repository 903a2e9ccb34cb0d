"""Statistics over people against SciPy and brute force, planted answers, and how often they are wrong on nothing."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bold_audio import group_stats


def table_of(values, regions=None):
    regions = regions or [f"r{k}" for k in range(values.shape[1])]
    labels = [f"sub-{k:02}" for k in range(len(values))]
    rows = [
        (who, region, v)
        for who, row in zip(labels, values, strict=True)
        for region, v in zip(regions, row, strict=True)
    ]
    return pd.DataFrame(rows, columns=["subject", "region", "gain"])


def test_p_of_all_flips_is_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, (7, 4))
    found = group_stats.flip_test(values)
    for k in range(4):
        how = {"permutation_type": "samples", "alternative": "greater", "n_resamples": np.inf}
        assert found.loc[k, "p"] == stats.permutation_test((values[:, k],), np.mean, **how).pvalue
    np.testing.assert_allclose(found["t"], stats.ttest_1samp(values, 0).statistic)


def test_family_wise_p_is_that_of_brute_force():
    values = np.random.default_rng(1).normal(0.5, 1, (6, 3))
    observed = stats.ttest_1samp(values, 0).statistic
    flipped = [stats.ttest_1samp(values * np.array(s)[:, None], 0).statistic for s in product([1, -1], repeat=6)]
    known = [(np.max(flipped, axis=1) >= t - 1e-9).mean() for t in observed]
    np.testing.assert_allclose(group_stats.flip_test(values)["p_fwe"], known)


def test_random_flips_come_near_all_of_them_and_are_seeded(monkeypatch):
    values = np.random.default_rng(2).normal(0.4, 1, (12, 5))
    every = group_stats.flip_test(values)
    monkeypatch.setattr(group_stats, "ALL_FLIPS", 11)
    some = [group_stats.flip_test(values, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(some[0], some[1])
    assert not some[0].equals(some[2])
    np.testing.assert_allclose(some[0][["p", "p_fwe"]], every[["p", "p_fwe"]], atol=0.02)
    assert (some[0]["smallest_p"] == 0.5**12).all()


def test_columns_in_chunks_and_in_a_file_are_as_all_at_once(monkeypatch, tmp_path):
    values = np.random.default_rng(9).normal(0.3, 1, (13, 11))
    whole = group_stats.flip_test(values)
    np.save(tmp_path / "values.npy", values)
    monkeypatch.setattr(group_stats, "CHUNK", 3)
    pd.testing.assert_frame_equal(group_stats.flip_test(np.load(tmp_path / "values.npy", mmap_mode="r")), whole)


def test_a_person_without_a_region_is_as_if_not_asked_about_it():
    values = np.random.default_rng(3).normal(0.5, 1, (8, 2))
    values[[1, 4], 1] = np.nan
    found, alone = group_stats.flip_test(values), group_stats.flip_test(values[np.isfinite(values[:, 1]), 1:])
    assert list(found["n_people"]) == [8, 6]
    for name in ("mean", "t", "p", "smallest_p"):
        assert found.loc[1, name] == pytest.approx(alone.loc[0, name])


def test_values_that_do_not_vary_and_lone_people_get_an_honest_p():
    found = group_stats.flip_test(np.array([[0.0, 0.1, 5.0], [0.0, 0.1, np.nan], [0.0, 0.1, np.nan]]))
    assert found["p"].tolist()[:2] == [1.0, 1 / 8]
    assert found.loc[2, ["t", "p", "p_fwe", "smallest_p"]].isna().all() and found.loc[2, "mean"] == 5


@pytest.mark.parametrize("n", [12, 30, 3000])
def test_people_who_agree_to_the_last_digit_are_counted_as_they_are(n):
    """The sums of flips of more than 12 people are of float32, in which 6.1 has no mean of 6.1."""
    values = np.c_[np.full(n, 6.1), np.full(n, 1 / 3), np.random.default_rng(4).standard_normal(n)]
    found = group_stats.flip_test(values, n_flips=200)
    least = max(1 / 200, 0.5**n) if n > group_stats.ALL_FLIPS else 0.5**n
    np.testing.assert_array_equal(found["t"][:2], group_stats.HUGE)
    np.testing.assert_allclose(found["p"][:2], least)
    assert (found["p_fwe"][:2] >= least).all() and found["p"][2] > 0.01


def test_a_flip_that_is_as_good_counts_however_it_is_rounded():
    values = np.random.default_rng(5).choice([-1.0, 1.0, 3.0], size=(14, 50))  # sums of tenths are not exact
    tenths, whole = group_stats.flip_test(values / 10), group_stats.flip_test(values)
    np.testing.assert_array_equal(tenths["p"], whole["p"])
    np.testing.assert_array_equal(tenths["p_fwe"], whole["p_fwe"])


def test_two_people_can_never_be_sure():
    found = group_stats.flip_test(np.array([[0.3], [0.4]]))
    assert found.loc[0, "p"] == found.loc[0, "smallest_p"] == 0.25


@pytest.mark.slow
def test_nothing_planted_is_found_as_seldom_as_asked():
    """200 studies of 10 people and 6 regions that share noise: any region at family-wise p ≤ .05 in about 5 %."""
    rng, wrong, alone = np.random.default_rng(4), 0, []
    for _ in range(200):
        values = rng.standard_normal((10, 6)) + rng.standard_normal((10, 1))
        found = group_stats.flip_test(values)
        wrong += (found["p_fwe"] <= 0.05).any()
        alone.append(found.loc[0, "p"] <= 0.05)
    assert wrong <= stats.binom.ppf(0.999, 200, 0.05) and 1 <= np.sum(alone) <= stats.binom.ppf(0.999, 200, 0.05)


def test_planted_region_is_found_and_no_other():
    rng = np.random.default_rng(5)
    values = rng.normal(0, 0.01, (12, 6))
    values[:, 2] += 0.03
    found = group_stats.region_table(table_of(values), "gain")
    assert list(found.loc[found["p_fwe"] <= 0.05, "region"]) == ["r2"]
    assert found.loc[2, "low"] < 0.03 < found.loc[2, "high"] and found.loc[2, "n_above"] == 12
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(found[["low", "high"]], np.transpose(known))


def test_interval_is_scipys_and_holds_the_mean_as_often_as_it_says():
    values = np.random.default_rng(6).normal(2, 3, (5, 4000))
    mean, low, high = group_stats.t_interval(values)
    known = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (low[0], high[0]) == pytest.approx(tuple(known))
    assert ((low <= 2) & (high >= 2)).mean() == pytest.approx(0.95, abs=0.015)
    np.testing.assert_allclose(mean, values.mean(axis=0))


def test_thousands_of_people_fit():
    values = np.random.default_rng(7).normal(0.02, 1, (5000, 3)) + np.array([0, 0.2, 0])
    found = group_stats.flip_test(values, n_flips=512)
    assert found.loc[1, "p_fwe"] == 1 / 512 and found.loc[0, "n_people"] == 5000


def test_delay_is_that_of_people_in_whom_it_is_identifiable():
    table = pd.DataFrame({"subject": ["a", "b", "c"], "region": "x", "delay": [4.0, 6.0, 30.0]})
    found = group_stats.delay_table(table.assign(identifiable=[True, True, False]))
    assert found.loc[0, ["n_people", "n_identifiable", "delay"]].tolist() == [3, 2, 5.0]
    known = stats.ttest_1samp([4.0, 6.0], 0).confidence_interval(0.95)
    assert found.loc[0, ["low", "high"]].tolist() == pytest.approx(tuple(known))


def test_who_moved_much_is_left_out_and_who_is_not_known_is_kept():
    people = pd.DataFrame({"mean_fd": [0.1, 0.9, np.nan]})
    assert group_stats.still_people(people).tolist() == [True, False, True]
    assert group_stats.still_people(people, limit=0.05).tolist() == [False, False, True]


def test_age_is_correlated_as_scipy_does_and_only_where_it_is_known():
    rng = np.random.default_rng(8)
    values, age = rng.normal(0, 1, (9, 2)), np.append(rng.uniform(10, 60, 8), np.nan)
    values[:, 1] = 0.3
    people = pd.DataFrame({"subject": [f"sub-{k:02}" for k in range(9)], "age": age})
    found = group_stats.age_table(table_of(values), "gain", people)
    known = stats.pearsonr(values[:8, 0], age[:8])
    assert found["region"].tolist() == ["r0"] and found.loc[0, "n_people"] == 8
    assert found.loc[0, ["r", "p"]].tolist() == pytest.approx([known.statistic, known.pvalue])
    assert found.loc[0, ["low", "high"]].tolist() == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert group_stats.age_table(table_of(values[:3]), "gain", people[:3]).empty


def test_left_minus_right_by_the_side_of_language():
    values = np.array([[0.5, 0.1], [0.7, 0.1], [0.1, 0.4], [0.2, 0.2]])
    people = pd.DataFrame(
        {
            "subject": [f"sub-{k:02}" for k in range(4)],
            "language_side": ["left", "left", "right", "n/a"],
            "language_certain": [True, False, True, False],
        }
    )
    found = group_stats.dominance_table(table_of(values, ["a_left", "a_right"]), "gain", people).set_index(
        "language_side"
    )
    assert found.loc["left", ["region", "n_people", "n_certain"]].tolist() == ["a", 2, 1]
    assert found.loc["left", "mean"] == pytest.approx(0.5) and found.loc["right", "mean"] == pytest.approx(-0.3)
    known = stats.ttest_1samp([0.4, 0.6], 0).confidence_interval(0.95)
    assert found.loc["left", ["low", "high"]].tolist() == pytest.approx(tuple(known))
    assert group_stats.dominance_table(table_of(values, ["a_left", "b"]), "gain", people).empty
