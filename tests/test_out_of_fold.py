"""Out-of-fold scores: against SciPy and scikit-learn, on planted voxels and on noise."""

import numpy as np
import pytest
from planted import ALPHAS, DELAYS, make_sound, make_subject, noise, planted_subject, raw
from scipy.signal import lfilter
from scipy.stats import pearsonr
from sklearn.linear_model import LinearRegression, Ridge

from bold_audio import delays, encoding, models, nested, out_of_fold, scores


@pytest.fixture(scope="module")
def subject():
    return planted_subject()


@pytest.fixture(scope="module")
def chosen(subject):
    return nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))


@pytest.fixture(scope="module")
def tallies(subject, chosen):
    return out_of_fold.tally_folds(subject, chosen)


@pytest.fixture(scope="module")
def table(subject, chosen, tallies):
    masks = subject.run.regions | {"responsive": nested.region_masks(subject, chosen, "responsive")}
    return out_of_fold.score_table(tallies, masks, value_range=subject.run.value_range)


def line(table, model, region):
    return table.set_index(["model", "region"]).loc[(model, region)]


def by_hand(subject, chosen, kind):
    """Every fold's predictions by scikit-learn, one strength for all: list of arrays (n_held, n_voxels)."""
    made, Y = [], subject.Y.astype(float)
    for one in chosen:
        X = nested.scaled(subject.designs["sound"], one.delay, one.fit)
        if kind == "sound":
            made.append(Ridge(alpha=30.0).fit(X[one.fit], Y[one.fit]).predict(X[one.held]))
        else:
            columns = []
            for v in range(Y.shape[1]):
                lags = np.stack([np.roll(Y[:, v], lag) for lag in range(1, 3)], axis=1)
                columns.append(LinearRegression().fit(lags[one.fit], Y[one.fit, v]).predict(lags[one.held]))
            made.append(np.stack(columns, axis=1))
    return made


def test_sound_and_history_equal_scikit_learn_fold_by_fold():
    subject = planted_subject(seed=1, n_voxels=40, alphas=(30.0,))
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    tallies = out_of_fold.tally_folds(subject, chosen, names=("constant", "sound", "history"))
    table = out_of_fold.score_table(tallies, {"planted": subject.run.regions["planted"]}, value_range=(0.0, 1000.0))
    roi, Y = subject.run.regions["planted"], subject.Y.astype(float)
    null = [np.sum((Y[one.held] - Y[one.fit].mean(axis=0))[:, roi] ** 2) for one in chosen]
    for kind in ("sound", "history"):
        made = by_hand(subject, chosen, kind)
        errors = [np.sum((Y[one.held] - p)[:, roi] ** 2) for one, p in zip(chosen, made, strict=True)]
        row = line(table, kind, "planted")
        # The history's strength and order are chosen; with this much of the past they hardly differ from two lags.
        close = 1e-5 if kind == "sound" else 0.01
        assert row["skill"] == pytest.approx(1 - sum(errors) / sum(null), abs=close)
        assert row["mse"] == pytest.approx(sum(errors) / (len(subject.whole_run) * roi.sum()) / 1e6, rel=20 * close)
    per_fold = 1 - np.array([np.sum((Y[one.held] - p)[:, roi] ** 2) for one, p in
                             zip(chosen, by_hand(subject, chosen, "sound"), strict=True)]) / null  # fmt: skip
    assert line(table, "sound", "planted")["fold_spread"] == pytest.approx(per_fold.std(ddof=1) / 2, abs=1e-5)


def test_correlations_equal_scipy_with_each_blocks_mean_taken_off():
    rng = np.random.default_rng(3)
    Y = rng.normal(size=(60, 4)) + 500
    past, both = Y + rng.normal(size=Y.shape), Y + 0.5 * rng.normal(size=Y.shape)
    blocks = np.array_split(np.arange(60), 3)
    found = [out_of_fold.moments(Y[b], both[b]) | out_of_fold.partial_moments(Y[b], past[b], both[b]) for b in blocks]
    sums = {name: sum(one[name] for one in found) for name in found[0]}

    def centred(values):
        return np.concatenate([values[b] - values[b].mean(axis=0) for b in blocks])

    r = out_of_fold.correlation(sums["yp"], sums["yy"], sums["pp"])
    partial = out_of_fold.correlation(sums["ea"], sums["ee"], sums["aa"])
    for v in range(4):
        assert r[v] == pytest.approx(pearsonr(centred(Y)[:, v], centred(both)[:, v])[0])
        assert partial[v] == pytest.approx(pearsonr(centred(Y - past)[:, v], centred(both - past)[:, v])[0])
    np.testing.assert_allclose(sums["sse"], np.sum((Y - both) ** 2, axis=0))


def test_one_block_agrees_with_the_scores_of_the_test_part():
    rng = np.random.default_rng(4)
    Y = (rng.normal(size=(50, 6)) + 800).astype(np.float32)
    past = (Y + rng.normal(size=Y.shape)).astype(np.float32)
    both = past.copy()
    both[:, :3] += rng.normal(size=(50, 3)).astype(np.float32)
    Y[:, 5], both[:, 4] = 700, 700
    m, p = out_of_fold.moments(Y, both), out_of_fold.partial_moments(Y, past, both)
    r, partial = out_of_fold.correlation(m["yp"], m["yy"], m["pp"]), out_of_fold.correlation(p["ea"], p["ee"], p["aa"])
    np.testing.assert_allclose(r, scores.pearson_r(Y, both), atol=1e-7)
    np.testing.assert_allclose(partial, scores.partial_r(Y, past, both), atol=1e-5)
    assert np.isnan(r[[4, 5]]).all() and np.isnan(partial[3])


def test_the_planted_sound_adds_to_the_past_and_nothing_elsewhere(table):
    planted, silent = (line(table, "history_sound", region) for region in ("planted", "silent"))
    assert planted["skill"] > 0.15 and planted["skill"] > 5 * planted["fold_spread"]
    assert planted["partial_r_median"] > 0.4 and planted["reference"] == "history"
    assert abs(silent["skill"]) < 0.002
    assert line(table, "sound", "planted")["r_median"] > 0.4
    responsive = line(table, "history_sound", "responsive")
    assert responsive["skill"] > planted["skill"] and responsive["n_voxels"] <= 2 * 4
    assert line(table, "constant", "brain")["skill"] == 0 and np.isnan(line(table, "constant", "brain")["r_median"])
    assert (table["n_volumes"] == 410).all()


def test_a_region_of_each_fold_is_summed_over_its_own_voxels(chosen, tallies):
    masks = np.random.default_rng(9).random((4, 60)) < 0.3
    table = out_of_fold.score_table(tallies, {"own": masks}, value_range=(0.0, 1000.0))

    def summed(model, name):
        return sum(np.where(m, values, 0) for m, values in zip(masks, tallies[model].sums[name], strict=True))

    row, sse = line(table, "sound", "own"), summed("sound", "sse").sum()
    assert row["skill"] == pytest.approx(1 - sse / summed("constant", "sse").sum())
    n = sum(len(one.held) * m.sum() for one, m in zip(chosen, masks, strict=True))
    assert row["mse"] == pytest.approx(sse / n / 1e6)
    there = masks.any(axis=0)
    yp, yy, pp = (summed("sound", name) for name in ("yp", "yy", "pp"))
    r = [yp[v] / np.sqrt(yy[v] * pp[v]) for v in np.flatnonzero(pp)]  # the others' strength vanished
    assert row["r_median"] == pytest.approx(np.median(r)) and row["n_with_r"] == len(r)
    assert row["n_voxels"] == there.sum() > len(r) > 10


def test_the_voxels_that_are_asked_choose_the_order_of_the_history():
    rng = np.random.default_rng(8)
    twice = lfilter([1], [1, 0, -0.8], rng.normal(size=(420, 10)), axis=0)  # needs the volume before the last
    Y = raw(np.hstack([noise(rng, 10, rho=0.8), twice]), rng)
    subject = make_subject(Y, make_sound(rng))

    def order(voxels):
        fitted = models.fit_subject(subject, 5.0, names=("history",), history_voxels=voxels)
        return len(fitted["history"][0].phi)

    assert order(np.arange(10, 20)) == 2 and order(np.arange(10)) == 1


def test_voxels_that_may_have_the_sound_are_judged_by_themselves():
    """The last voxels follow the sound and may have it: their strengths are those of a fit of them alone."""
    subject = planted_subject(seed=7)
    Y, may = subject.Y[:, ::-1].copy(), subject.run.regions["planted"][::-1]
    X = nested.scaled(subject.designs["sound"], 5.0, subject.split.train)
    given = {"rows": subject.split.train, "folds": subject.folds, "ridge": X, "order": 1, "alphas": ALPHAS}
    both, alone = encoding.fit_linear(Y, follows=may, **given), encoding.fit_linear(Y[:, may], **given)
    np.testing.assert_array_equal(both.alpha[may], alone.alpha)
    assert np.isinf(both.alpha[~may]).all() and np.isfinite(alone.alpha).all()
    np.testing.assert_allclose(both.weights[:, may], alone.weights)


def test_voxel_scores_have_the_form_of_the_test_parts(subject, tallies, table):
    found = out_of_fold.voxel_scores(tallies, value_range=subject.run.value_range)
    both, past = (found[name, "one_step"] for name in ("history_sound", "history"))
    np.testing.assert_allclose(both["gain"], 1 - both["mse"] / past["mse"])
    assert set(past) == {"mse", "r"} and set(both) == {"mse", "r", "gain", "partial_r"}
    assert np.median(both["gain"][:12]) > 0.1 and abs(np.median(both["gain"][12:])) < 1e-6
    assert found["sound", "one_step"]["mse"][:12].mean() == pytest.approx(line(table, "sound", "planted")["mse"])


def test_noise_gains_nothing():
    rng = np.random.default_rng(6)
    subject = make_subject(raw(noise(rng, 50, rho=0.8), rng), make_sound(rng))
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    tallies = out_of_fold.tally_folds(subject, chosen, names=("constant", "sound", "history", "history_sound"))
    table = out_of_fold.score_table(tallies, subject.run.regions, value_range=(0.0, 1000.0))
    assert abs(line(table, "history_sound", "brain")["skill"]) < 0.002
    assert line(table, "sound", "brain")["skill"] < 0.01
    assert line(table, "history", "brain")["skill"] == pytest.approx(0.64, abs=0.05)  # rho²
