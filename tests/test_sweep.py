"""The delay sweep: against scikit-learn, on planted sounds, on none, and without peeking."""

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import Ridge

from bold_audio import evidence, gram, pairing, splits, sweep
from bold_audio.files import ParameterError

T_R, DELAYS = 1.0, np.arange(2.0, 8.1, 0.5)
ALPHAS = [10.0, 100.0, 1000.0, np.inf]
N_VOLUMES, N_VOXELS, ROWS = 320, 120, np.arange(10, 230)
AT = np.arange(N_VOXELS)
REGIONS = {"brain": AT >= 0, "planted": AT < 12, "late": (AT >= 12) & (AT < 24), "silent": AT >= 24}


def hear(frames, delays=DELAYS):
    """The sound's features at every delay; the run starts 20 s into the sound."""
    times = np.arange(len(frames)) * 0.1
    sound_times = 20 + np.arange(N_VOLUMES) * T_R
    at = [pairing.delay_features(frames, times, sound_times, delay=d, window=T_R) for d in delays]
    return sweep.DelayedSound(np.asarray(delays), np.stack(at))


@pytest.fixture(scope="module")
def case():
    """120 voxels in slow noise: 12 follow the sound after 4 s, 12 after 6 s; each has its own level and loudness."""
    rng = np.random.default_rng(0)
    frames = lfilter([1], [1, -0.93], rng.normal(size=(3600, 3)), axis=0)
    sound = hear(frames)
    scaled = {d: pairing.scale_on(x, ROWS)[0] for d, x in zip(DELAYS, sound.at, strict=True)}
    y = lfilter([1], [1, -0.5], rng.normal(size=(N_VOLUMES, N_VOXELS)), axis=0)
    y[:, :12] += 0.7 * scaled[4.0] @ rng.normal(size=(3, 12))
    y[:, 12:24] += 0.7 * scaled[6.0] @ rng.normal(size=(3, 12))
    Y = (700 + 200 * rng.random(N_VOXELS) + rng.uniform(2, 20, N_VOXELS) * y).astype(np.float32)
    folds = splits.blocked_folds(ROWS, n_folds=4, gap_volumes=10)
    options = {"t_r": T_R, "rows": ROWS, "folds": folds, "order": 2, "alphas": ALPHAS, "regions": REGIONS}
    return {"Y": Y, "sound": sound, **options}, frames


@pytest.fixture(scope="module")
def found(case):
    return sweep.sweep_delays(**case[0])


def curve_of(found, region):
    return found.table[found.table["region"] == region].set_index("delay")


def row_of(found, region):
    return found.regions.set_index("region").loc[region]


@pytest.mark.parametrize("target", ["volume", "difference", "whitened"])
def test_skill_and_strength_equal_scikit_learn(case, target):
    """Every delay's best strength, skill and spread in a region whose voxels count alike, formed voxel by voxel."""
    given, _ = case
    found = sweep.sweep_delays(**given, target=target)
    Y = given["Y"][:, REGIONS["planted"]].astype(float)
    z = Y / Y[ROWS].std(axis=0)
    taps = {"volume": [1.0], "difference": [1.0, -1.0], "whitened": found.whitening}[target]
    t = sum(weight * np.roll(z, lag, axis=0) for lag, weight in enumerate(taps))
    filtered = taps if target == "whitened" else [1.0]
    for d, delay in enumerate(DELAYS):
        x = sum(weight * np.roll(given["sound"].at[d], lag, axis=0) for lag, weight in enumerate(filtered))
        x = (x - x[ROWS].mean(axis=0)) / x[ROWS].std(axis=0)
        null = np.array([np.sum((t[held] - t[fit].mean(axis=0)) ** 2) for fit, held in given["folds"]])
        errors = {a: np.array([np.sum((t[held] - Ridge(alpha=a).fit(x[fit], t[fit]).predict(x[held])) ** 2)
                               for fit, held in given["folds"]]) for a in ALPHAS[:-1]}  # fmt: skip
        best = min(errors, key=lambda a: errors[a].sum())
        row = curve_of(found, "planted").loc[delay]
        assert row["alpha"] == best
        assert row["skill"] == pytest.approx(1 - errors[best].sum() / null.sum(), abs=1e-5)
        assert row["fold_spread"] == pytest.approx((1 - errors[best] / null).std(ddof=1) / 2, abs=1e-5)


def test_evidence_of_a_region_is_that_of_its_voxels(case, found):
    """Whitened volumes, the filter's weights shared by all voxels; summed voxel by voxel in float64."""
    given, _ = case
    z = given["Y"].astype(float) - given["Y"][ROWS].mean(axis=0, dtype=float)
    z /= z[ROWS].std(axis=0)
    lags = np.stack([z[ROWS - lag].ravel() for lag in (1, 2)], axis=1)
    phi = np.linalg.lstsq(lags, z[ROWS].ravel(), rcond=None)[0]
    np.testing.assert_allclose(found.whitening, [1, *-phi], atol=1e-5)
    y = z[ROWS] - phi[0] * z[ROWS - 1] - phi[1] * z[ROWS - 2]
    for d in (0, 4, 12):
        x = sum(w * np.roll(given["sound"].at[d], lag, axis=0) for lag, w in enumerate(found.whitening))[ROWS]
        basis = evidence.make_basis(((x - x.mean(axis=0)) / x.std(axis=0))[None], ALPHAS)
        T = evidence.mixture(evidence.log_evidence(y, basis)[0].astype(float))
        for name, roi in REGIONS.items():
            assert curve_of(found, name)["evidence"].iloc[d] == pytest.approx(T[roi].sum(), abs=0.02)


def test_planted_delays_and_voxels_are_found(found):
    assert found.delay in (4.0, 6.0) and found.region == "responsive" and not found.at_edge
    assert found.responsive.sum() == round(sweep.RESPONSIVE_SHARE * N_VOXELS)
    assert (AT < 24)[found.responsive].all()
    assert found.chosen.equals(row_of(found, "responsive")) and found.chosen["identifiable"]
    planted = row_of(found, "planted")
    assert planted["delay"] == 4.0 and planted["low"] <= 4.0 <= planted["high"] and planted["n_voxels"] == 12
    for name, roi, delay in (("planted", AT < 12, 4.0), ("late", REGIONS["late"], 6.0)):
        voxels = found.voxels[roi]
        assert np.mean(np.abs(voxels["delay"] - delay) <= 0.5) > 0.8, name
        assert np.mean((voxels["low"] <= delay) & (delay <= voxels["high"])) > 0.8
        assert voxels["p"].median() < 0.01 and voxels["skill"].median() > 0.05


def test_two_regions_with_delays_2_s_apart_are_told_apart(found):
    early, late = row_of(found, "planted"), row_of(found, "late")
    assert (early["delay"], late["delay"]) == (4.0, 6.0)
    assert early["high"] < late["low"]
    assert early["identifiable"] and late["identifiable"]


def test_voxels_that_repeat_one_another_make_no_interval_narrower(case):
    """Every voxel six times over is no more evidence than once; the sound is faint here, the intervals wide."""
    given, noise = case[0], np.random.default_rng(3).normal(size=(N_VOLUMES, N_VOXELS))
    Y = given["Y"] / given["Y"][ROWS].std(axis=0) + 4 * lfilter([1], [1, -0.5], noise, axis=0)
    regions = {name: np.repeat(roi, 6) for name, roi in REGIONS.items()}
    single = sweep.sweep_delays(**(given | {"Y": Y.astype(np.float32)}))
    copies = sweep.sweep_delays(**(given | {"Y": np.repeat(Y, 6, axis=1).astype(np.float32), "regions": regions}))
    for name in ("planted", "late"):
        once, six = row_of(single, name), row_of(copies, name)
        assert six["tau"] > 4 and six["high"] - six["low"] >= once["high"] - once["low"]
        low, high = evidence.interval(evidence.posterior(curve_of(copies, name)["evidence"].to_numpy(), DELAYS), DELAYS)
        assert six["high"] - six["low"] > high - low, "or this test says nothing"


def test_silent_voxels_have_no_delay(found):
    """They share brain and sound with those that hear: p at its nominal level, interval as wide as the range."""
    silent, voxels = row_of(found, "silent"), found.voxels[REGIONS["silent"]]
    assert not silent["identifiable"] and silent["p"] > 0.05
    assert curve_of(found, "silent")["skill"].max() < 0.01
    assert np.mean(voxels["p"] <= 0.05) < 0.12
    assert np.median(voxels["high"] - voxels["low"]) > 0.7 * (DELAYS[-1] - DELAYS[0])


@pytest.mark.slow
def test_noise_has_no_delay_and_no_skill(case):
    """At most the nominal share of 20 brains without sound is called identifiable."""
    coarse = sweep.DelayedSound(DELAYS[::2], case[0]["sound"].at[::2])
    given, p = case[0] | {"regions": {"brain": AT >= 0}, "sound": coarse}, []
    for seed in range(20):
        noise = lfilter([1], [1, -0.5], np.random.default_rng(seed).normal(size=given["Y"].shape), axis=0)
        found = sweep.sweep_delays(**(given | {"Y": (800 + noise).astype(np.float32)}))
        p.append(row_of(found, "brain")["p"])
        assert found.table["skill"].max() < 0.01
        assert found.chosen["identifiable"] == (found.chosen["p"] <= 0.05)
    assert np.sum(np.array(p) <= 0.05) <= 3 and 0.3 < np.mean(p) < 0.7


def test_a_sound_far_from_its_place_has_no_delay(case, found):
    """The same sound, 100 s late: the shifts must not call that a delay."""
    moved = sweep.sweep_delays(**(case[0] | {"sound": hear(np.roll(case[1], 1000, axis=0))}))
    assert not moved.regions["identifiable"].any()
    assert curve_of(moved, "planted")["evidence"].max() < 0.2 * curve_of(found, "planted")["evidence"].max()
    row = row_of(found, "planted")
    assert row["p"] == pytest.approx(row["alike"] / (row["alike"] + row["n_surrogates"]))
    assert found.voxels["p"].min() == pytest.approx(row["p"]) and row["p"] <= sweep.SMALLEST_P
    assert row["n_surrogates"] % len(ROWS) > 0  # versions at all shifts, and the sound's own


def test_shifts_that_turn_the_blocks_only_are_left_out(case, found):
    blocks = sweep.sweep_delays(**case[0], block_length=30.0)
    assert blocks.chosen["n_surrogates"] < found.chosen["n_surrogates"]
    assert blocks.table.equals(found.table)


def test_responsive_voxels_of_a_block_do_not_depend_on_that_block(case, found):
    """Nested: whatever happens in held-out block f, the voxels that score it stay the same."""
    given, _ = case
    inside = [(fit - ROWS[0], held - ROWS[0]) for fit, held in given["folds"]]
    X = np.stack([sweep.features_of(A, found.whitening, ROWS) for A in given["sound"].at])

    def choose(Y):
        slabs = gram.Slabs(Y, np.arange(ROWS[0] - 2, ROWS[-1] + 1), ROWS, found.whitening, 50)
        return sweep._nested_responsive(slabs, X, inside, ALPHAS)

    before = choose(given["Y"])
    assert all(one.sum() == round(sweep.RESPONSIVE_SHARE * N_VOXELS) for one in before)
    for f, (_, held) in enumerate(given["folds"]):
        spoilt = given["Y"].copy()
        spoilt[held] += np.random.default_rng(f).normal(0, 1000, spoilt[held].shape)
        after = choose(spoilt)
        assert np.array_equal(before[f], after[f])
        others = [not np.array_equal(a, b) for g, (a, b) in enumerate(zip(before, after, strict=True)) if g != f]
        assert any(others), "the other blocks' choice must have seen it, or this test says nothing"


def test_responsive_skill_is_scored_on_voxels_chosen_without_the_block(case, found):
    """Of noise, the best 3 % chosen with the block would seem to be predicted."""
    rng = np.random.default_rng(11)
    Y = (800 + rng.normal(size=(N_VOLUMES, 600))).astype(np.float32)
    regions = {"brain": np.ones(600, bool)}
    honest = sweep.sweep_delays(**(case[0] | {"Y": Y, "regions": regions}))
    peeking = sweep.sweep_delays(**(case[0] | {"Y": Y, "regions": regions | {"peeked": honest.responsive}}))
    assert curve_of(honest, "responsive")["skill"].max() < 0.003
    assert curve_of(peeking, "peeked")["skill"].max() > 0.01
    assert len(found.grams["responsive"]) == 4 and len(found.grams["brain"]) == 1


def test_volumes_and_sound_outside_train_change_nothing(case, found):
    """Bit for bit; the filter needs the two volumes before train."""
    given, _ = case
    Y, at = given["Y"].copy(), given["sound"].at.copy()
    for values in (Y, at[0], at[7]):
        values[230:], values[:8] = 1e6, -1e6
    spoilt = sweep.sweep_delays(**(given | {"Y": Y, "sound": sweep.DelayedSound(DELAYS, at)}))
    for name in ("table", "regions", "voxels"):
        assert getattr(spoilt, name).equals(getattr(found, name)), name
    assert np.array_equal(spoilt.responsive, found.responsive) and spoilt.delay == found.delay
    assert np.array_equal(spoilt.grams["brain"][0].K, found.grams["brain"][0].K)
    Y[9] = 0
    assert not sweep.sweep_delays(**(given | {"Y": Y})).table.equals(found.table), "or this test says nothing"


@pytest.mark.parametrize("chunk_voxels", [17, 100_000])
def test_slabs_do_not_matter_beyond_rounding(case, found, chunk_voxels):
    other = sweep.sweep_delays(**case[0], chunk_voxels=chunk_voxels)
    np.testing.assert_allclose(other.table["skill"], found.table["skill"], atol=1e-5)
    np.testing.assert_allclose(other.table["evidence"], found.table["evidence"], rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(other.table["alpha"], found.table["alpha"])
    np.testing.assert_allclose(other.regions[["delay", "low", "high"]], found.regions[["delay", "low", "high"]])
    np.testing.assert_array_equal(other.responsive, found.responsive)
    assert other.delay == found.delay


@pytest.mark.parametrize("region", ["LPTL", "none"])
def test_unknown_region_is_refused(case, region):
    known = "one of brain, planted, late, silent"
    with pytest.raises(ParameterError, match=f"delay_region must be responsive, brain or {known}, got '{region}'"):
        sweep.sweep_delays(**case[0], delay_region=region)


@pytest.mark.parametrize(("region", "delay"), [("planted", 4.0), ("late", 6.0)])
@pytest.mark.parametrize("choose_by", ["evidence", "skill"])
def test_a_named_region_chooses_its_delay_either_way(case, region, delay, choose_by):
    found = sweep.sweep_delays(**case[0], delay_region=region, choose_by=choose_by)
    assert found.region == region == found.chosen.name
    by = {"evidence": found.chosen["delay"], "skill": curve_of(found, region)["skill"].idxmax()}
    assert found.delay == by[choose_by]
    assert abs(found.delay - delay) <= 0.5


def test_skill_and_evidence_may_choose_differently(case):
    """Ten voxels follow a little after 4 s, one almost wholly after 6 s: more variance there, more evidence here."""
    given, rng = case[0], np.random.default_rng(2)
    scaled = [pairing.scale_on(given["sound"].at[d], ROWS)[0] for d in (4, 8)]
    Y = rng.normal(size=(N_VOLUMES, 11))
    Y[:, :10] += 0.33 * scaled[0] @ rng.choice([-0.7, 0.7], (3, 10))
    Y[:, 10] += 5 * scaled[1] @ [0.7, -0.7, 0.7]
    options = given | {"Y": Y.astype(np.float32), "regions": {"brain": np.ones(11, bool)}, "order": 0}
    chosen = {by: sweep.sweep_delays(**options, choose_by=by).delay for by in ("skill", "evidence")}
    assert chosen == {"skill": 4.0, "evidence": 6.0}


def test_edge_is_noticed(case):
    sound = case[0]["sound"]
    late = sweep.DelayedSound(DELAYS[4:], sound.at[4:])
    assert sweep.sweep_delays(**(case[0] | {"sound": late}), delay_region="planted").at_edge


def test_few_voxels_have_no_responsive_region(case):
    """Six regions in place of voxels: the whole decides."""
    regions = {"volume": np.ones(6, bool)}
    found = sweep.sweep_delays(**(case[0] | {"Y": case[0]["Y"][:, :6], "regions": regions}))
    assert found.region == "volume" and set(found.table["region"]) == {"volume"}
    assert set(found.grams) == {"volume"} and found.responsive.sum() == 1 and found.delay == 4.0


@pytest.mark.parametrize("n_delays", [1, 2])
def test_one_and_two_delays_have_no_interval(case, n_delays):
    """Too few to see a slope: a region says which, and not how surely."""
    sound = case[0]["sound"]
    few = sweep.DelayedSound(DELAYS[4 : 4 + n_delays], sound.at[4 : 4 + n_delays])
    found = sweep.sweep_delays(**(case[0] | {"sound": few}), delay_region="planted")
    assert found.delay == 4.0 and found.chosen["identifiable"]
    assert found.regions[["low", "high"]].isna().all(axis=None)
    assert len(found.table) == 5 * n_delays and found.at_edge == (n_delays > 1)
    assert np.isfinite(found.voxels["p"]).all() and np.isfinite(found.table["skill"]).all()


def test_a_train_part_too_short_for_shifts_has_randomised_sound_alone(case):
    given, rows = case[0], np.arange(10, 40)
    folds = splits.blocked_folds(rows, n_folds=3, gap_volumes=2)
    found = sweep.sweep_delays(**(given | {"rows": rows, "folds": folds}))
    assert found.chosen["n_surrogates"] % 30 == 0 and np.isfinite(found.chosen["threshold"])
    assert found.chosen["alike"] / (found.chosen["alike"] + found.chosen["n_surrogates"]) <= sweep.SMALLEST_P


def test_surrogates_depend_on_the_seed_and_nothing_else_does(case, found):
    other = sweep.sweep_delays(**case[0], seed=1)
    assert other.table.equals(found.table) and not other.voxels["p"].equals(found.voxels["p"])
    assert other.voxels.drop(columns="p").equals(found.voxels.drop(columns="p"))


def test_constant_voxels_change_nothing_and_follow_nothing(case, found):
    Y = np.c_[case[0]["Y"], np.full((N_VOLUMES, 3), 555.0, np.float32)]
    regions = {name: np.r_[roi, [name == "brain"] * 3].astype(bool) for name, roi in REGIONS.items()}
    more = sweep.sweep_delays(**(case[0] | {"Y": Y, "regions": regions}))
    constant = more.voxels[-3:]
    assert not constant["skill"].any() and (constant["p"] > 0.05).all() and not more.responsive[-3:].any()
    np.testing.assert_allclose(curve_of(more, "brain")["skill"], curve_of(found, "brain")["skill"], atol=1e-6)
