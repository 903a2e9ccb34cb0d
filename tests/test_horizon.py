"""Open loop by horizon against `encoding.rollout` and closed forms; how skill grows with data; effective samples."""

from dataclasses import replace

import numpy as np
import pytest
from planted import ALPHAS, DELAYS, make_sound, make_subject, noise, planted_subject, raw

from bold_audio import ablations, delays, effective, encoding, horizon, learning_curve, nested, splits, sweep
from bold_audio.feature_sets import FeatureSet
from bold_audio.files import DataError


def folds_of(subject, region="brain"):
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    return nested.region_folds(subject, chosen, region, subject.Y)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_many_starts_equal_one_rollout_each(order):
    rng = np.random.default_rng(0)
    Y, stretch = rng.normal(size=(80, 5)).astype(np.float32), np.arange(30, 70)
    phi, drive = 0.3 * rng.normal(size=(order, 5)), rng.normal(size=(40, 5)).astype(np.float32)
    found = horizon.rollout_many(phi, drive, Y, stretch, 12)
    assert found.shape == (29, 12, 5)
    for start in range(29):
        known = encoding.rollout(phi, drive[start : start + 12], Y, stretch[start : start + 12])
        np.testing.assert_allclose(found[start], known, rtol=1e-5, atol=1e-5)


def test_autoregression_and_copying_lose_their_skill_as_they_must():
    """ρ = .8: the autoregression keeps ρ^(2h), copying 2 ρ^h − 1. Many voxels in place of a long run."""
    rng, rho = np.random.default_rng(1), 0.8
    subject = make_subject(raw(noise(rng, 400, rho=rho), rng), make_sound(rng), n_folds=3)
    folds = nested.region_folds(subject, nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS)),
                                "brain", subject.Y, max_voxels=400)  # fmt: skip
    sound = subject.designs["sound"]
    table = horizon.skill_by_horizon(folds, sound, alphas=ALPHAS, max_order=1, value_range=(0.0, 1000.0))
    skill = table.pivot(index="horizon", columns="model", values="skill")
    assert list(skill.columns) == ["constant", "copy_previous", "history", "history_sound"]
    for h in (1, 2, 4, 8):
        assert skill.loc[h, "history"] == pytest.approx(rho ** (2 * h), abs=0.03)
        assert skill.loc[h, "copy_previous"] == pytest.approx(2 * rho**h - 1, abs=0.06)
    assert skill.loc[60, "history"] == pytest.approx(0, abs=0.02)
    held = len(folds[0].held)
    assert table["n_starts"].iloc[0] == sum(len(fold.held) - 59 for fold in folds) and held > 60


def test_the_sound_keeps_its_skill_far_ahead():
    """What the sound tells does not fade with the horizon, what the past tells does."""
    subject = planted_subject(seed=2)
    table = horizon.skill_by_horizon(
        folds_of(subject, "planted"), subject.designs["sound"], alphas=ALPHAS, max_order=2, value_range=(0.0, 1000.0)
    )
    skill = table.pivot(index="horizon", columns="model", values="skill")
    assert skill.loc[40, "history_sound"] > 0.2 > 0.05 > abs(skill.loc[40, "history"])


def test_one_step_ahead_is_the_one_step_prediction():
    subject = planted_subject(seed=3)
    folds = folds_of(subject, "planted")
    table = horizon.skill_by_horizon(
        folds, subject.designs["sound"], alphas=ALPHAS, max_order=2, value_range=(0.0, 1000.0)
    )
    n, errors = table["horizon"].max(), 0.0
    for fold in folds:
        model = encoding.fit_linear(fold.Y, rows=fold.fit, **nested.choose_past(fold, 2))
        drive = encoding.drive_of(model, np.zeros((len(fold.held), 0)))
        made = encoding.predict(model.phi, drive, fold.Y, fold.held)
        errors += np.sum((fold.Y[fold.held].astype(float) - made)[: len(fold.held) - n + 1] ** 2)
    first = table[(table["model"] == "history") & (table["horizon"] == 1)].iloc[0]
    assert first["mse"] * first["n_starts"] * 12 * 1e6 == pytest.approx(errors, rel=1e-4)


def test_held_out_blocks_that_are_too_short_are_refused():
    fold = folds_of(planted_subject(seed=3))[0]
    with pytest.raises(DataError, match="held-out blocks of 9 volumes are too short for 10 starts - use fewer n_folds"):
        horizon.horizon_length([replace(fold, held=fold.held[:9])])
    assert horizon.horizon_length([replace(fold, held=fold.held[:30])]) == 21


@pytest.mark.slow
def test_skill_grows_with_data_and_the_last_point_is_the_whole():
    subject = planted_subject(seed=4, strength=0.5)
    folds = folds_of(subject, "planted")
    settings = {"alphas": ALPHAS, "max_order": 2, "n_folds": 4, "gap_volumes": 12}
    table = learning_curve.learning_curve(folds, subject.designs["sound"], DELAYS, **settings)
    assert list(table["share"]) == [0.25, 0.5, 0.75, 1.0] and (table["note"] == "").all()
    assert table["skill"].iloc[-1] > table["skill"].iloc[0] and table["gain"].iloc[-1] > 0.05
    assert np.isnan(table["rise_spread"].iloc[0]) and (table["n_folds"] == len(folds)).all()
    assert table["n_fit"].iloc[-1] == np.mean([len(fold.fit) for fold in folds])
    one = FeatureSet("all", subject.designs["sound"], DELAYS)
    whole = ablations.compare_sets(folds, [one], alphas=ALPHAS, max_order=2).iloc[0]
    assert table["skill"].iloc[-1] == pytest.approx(whole["skill"], abs=1e-6)
    assert table["gain"].iloc[-1] == pytest.approx(whole["gain"], abs=1e-6)
    # The spread of the rise is that of the folds' own rises: their skills go up and down together.
    heard = sweep.DelayedSound(np.array(DELAYS), np.stack([subject.designs["sound"].at(d) for d in DELAYS]))
    skills = []
    for share in (0.75, 1.0):
        used = [learning_curve.nearest_volumes(f.fit, f.held, round(share * len(f.fit))) for f in folds]
        inner = [splits.blocked_folds(rows, n_folds=4, gap_volumes=12) for rows in used]
        made = [
            learning_curve._one_fold(replace(f, fit=rows, inner=i), subject.designs["sound"], heard, ALPHAS, 2)
            for f, rows, i in zip(folds, used, inner, strict=True)
        ]
        skills.append([1 - one["sound"] / one["constant"] for one in made])
    rise = np.subtract(*skills[::-1])
    assert table["rise_spread"].iloc[-1] == pytest.approx(rise.std(ddof=1) / np.sqrt(len(folds)))


def test_what_is_fitted_on_is_next_to_the_gap_and_knows_no_more(monkeypatch):
    subject = planted_subject(seed=4)
    fold = folds_of(subject)[1]
    rows = learning_curve.nearest_volumes(fold.fit, fold.held, 60)
    assert len(rows) == 60 and np.isin(rows, fold.fit).all()
    assert (
        rows[rows < fold.held[0]].max() == fold.held[0] - 13 and rows[rows > fold.held[0]].min() == fold.held[-1] + 13
    )
    assert all(len(np.unique(np.diff(part))) == 1 for part in np.split(rows, [np.searchsorted(rows, fold.held[0])]))
    # Volumes that are not used change nothing.
    spoilt = fold.Y.copy()
    unused = np.setdiff1d(np.arange(420), np.r_[rows, rows - 1, rows - 2, fold.held, fold.held - 1, fold.held - 2])
    spoilt[unused] = 0
    monkeypatch.setattr(learning_curve, "SHARES", (60 / len(fold.fit),))
    settings = {"alphas": ALPHAS, "max_order": 2, "n_folds": 4, "gap_volumes": 12}
    first, second = (
        learning_curve.learning_curve([replace(fold, Y=Y, smooth=Y)] * 2, subject.designs["sound"], DELAYS, **settings)
        for Y in (fold.Y, spoilt)
    )
    assert first.equals(second)


def test_a_share_that_is_too_small_says_so(monkeypatch):
    monkeypatch.setattr(learning_curve, "SHARES", (0.1, 1.0))
    subject = planted_subject(seed=4)
    settings = {"alphas": ALPHAS, "max_order": 2, "n_folds": 4, "gap_volumes": 12}
    table = learning_curve.learning_curve(folds_of(subject), subject.designs["sound"], DELAYS, **settings)
    assert table["note"].iloc[0].startswith("not done: ") and np.isnan(table["skill"].iloc[0])
    assert table["note"].iloc[1] == ""


@pytest.mark.parametrize(("a", "b"), [(0.9, 0.85), (0.5, 0.95), (0.0, 0.9), (-0.5, 0.5)])
def test_effective_samples_of_two_autoregressions(a, b):
    """The closed form (1 − ab) / (1 + ab); a negative product is worth more than n, and is not given more."""
    n = 20000
    lags = np.arange(n)
    found = effective.effective_samples(float(a) ** lags, float(b) ** lags, n)
    assert found == pytest.approx(min(n, n * (1 - a * b) / (1 + a * b)), rel=1e-3)


def test_autocorrelation_by_hand_and_across_a_break():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(30, 2))
    z = x - x.mean(axis=0)
    found = effective.autocorrelation(x)
    for lag in (0, 1, 7, 29):
        np.testing.assert_allclose(found[lag], np.sum(z[: 30 - lag] * z[lag:], axis=0) / np.sum(z**2, axis=0))
    volumes = np.r_[5:17, 40:58]
    broken = effective.autocorrelation(x, volumes)
    inside = sum(np.sum(z[p][:-3] * z[p][3:], axis=0) for p in (slice(0, 12), slice(12, 30)))
    np.testing.assert_allclose(broken[3], inside / np.sum(z**2, axis=0))
    assert np.isnan(effective.autocorrelation(np.ones((30, 1)))).all()


def test_effective_samples_say_how_widely_unrelated_series_correlate():
    """The limit 1.96/√N_eff holds for some 5 % of pairs of slow series, where 1.96/√n is exceeded by half of them."""
    rng, n = np.random.default_rng(6), 400
    x, y = noise(rng, 400, rho=0.9, n=n), noise(rng, 400, rho=0.9, n=n)
    table = effective.effective_table(y, x[:, :3], ["one", "two", "three"], np.arange(n))
    r = np.array([np.corrcoef(x[:, k], y[:, k])[0, 1] for k in range(400)])
    assert np.mean(np.abs(r) > 1.96 / np.sqrt(n)) > 0.4
    assert 0.02 < np.mean(np.abs(r) > table["r_limit"].median()) < 0.12
    assert table["n_eff"].median() == pytest.approx(n * (1 - 0.81) / 1.81, rel=0.35)
    assert (table["n_eff_low"] <= table["n_eff"]).all() and (table["n_eff"] <= table["n_eff_high"]).all()
