"""The gain of a region with all its choices, against a plain loop, something planted, blocks alone, and nothing."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from test_voxel_inference import slow

from bold_audio import evidence, region_inference, significance
from bold_audio.region_inference import ALPHAS, PSEUDO_VOXELS, Fold, apart, infer_regions
from bold_audio.voxel_inference import DelayGrid

GRID = DelayGrid(2.0, 1.0, 1, 5, 5)


def folds_of(y, X, free=None, n_folds=3, gap=8):
    """Contiguous outer blocks of regions ``y``, with a gap on both sides."""
    n = X.shape[1]
    free = np.zeros((n, 0)) if free is None else free
    made = []
    for held in np.array_split(np.arange(n), n_folds):
        fit = np.flatnonzero((np.arange(n) < held[0] - gap) | (np.arange(n) > held[-1] + gap))
        made.append(Fold(fit, held, y, X, free))
    return made


def infer(y, X, free=None, shifts=None, **options):
    shifts = np.arange(30, X.shape[1] - 30) if shifts is None else shifts
    return infer_regions(folds_of(y, X, free), GRID, shifts=shifts, **options)


def scored_by_a_plain_loop(y, X, free, played):
    """Error, error of the past alone, delays, and what was left and added, of one region; ``played`` is heard."""
    n, n_voxels = y.shape
    error = null = 0.0
    delays, r = [], []
    for fold in folds_of({"a": y}, X, free):
        past = np.column_stack([np.ones(n), free])
        left = y - past @ np.linalg.lstsq(past[fold.fit], y[fold.fit], rcond=None)[0]
        heard = []
        within = played(X[0] - past @ np.linalg.lstsq(past[fold.fit], X[0][fold.fit], rcond=None)[0])
        for lag in range(GRID.n_volumes):
            x = np.roll(within, lag, axis=0)
            heard.append(x - past @ np.linalg.lstsq(past[fold.fit], x[fold.fit], rcond=None)[0])
        support = [
            evidence.mixture(
                evidence.log_evidence(left[fold.fit].astype(np.float32), evidence.make_basis(x[None, fold.fit], ALPHAS))
            ).sum()
            for x in heard
        ]
        x = heard[int(np.argmax(support))]
        delays.append(2.0 + np.argmax(support))
        log_b, predicted = [np.zeros(n_voxels)], [np.zeros((len(fold.held), n_voxels))]
        for alpha in ALPHAS:
            C = np.eye(len(fold.fit)) + x[fold.fit] @ x[fold.fit].T / alpha
            r2 = np.einsum("kv,kv->v", left[fold.fit], np.linalg.solve(C, left[fold.fit]))
            r2 /= np.sum(left[fold.fit] ** 2, axis=0)
            log_b.append(-np.linalg.slogdet(C)[1] / 2 - (len(fold.fit) - 1) / 2 * np.log(r2))
            model = Ridge(alpha=alpha, fit_intercept=False).fit(x[fold.fit], left[fold.fit])
            predicted.append(model.predict(x[fold.held]))
        share = evidence.learn_prior(np.array(log_b), pseudo_voxels=PSEUDO_VOXELS)[1]
        added = np.einsum("av,akv->kv", share, np.array(predicted))
        error += np.sum((left[fold.held] - added) ** 2)
        null += np.sum(left[fold.held] ** 2)
        r.append((left[fold.held], added))
    return error, null, delays, r


def test_gain_by_a_plain_loop():
    rng = np.random.default_rng(0)
    n = 240
    X, free = slow(rng, n, 3)[None], slow(rng, n, 1)
    y = rng.standard_normal((n, 6)) + 0.6 * free
    y[:, :3] += 0.7 * np.roll(X[0], 2, axis=0)[:, :1]
    found = infer({"a": y}, X, free, n_randomised=3)["a"]
    error, null, delays, r = scored_by_a_plain_loop(y, X, free, lambda within: within)
    assert found.gain == pytest.approx(1 - error / null, rel=1e-6)
    assert list(found.delays) == delays
    sums = 0
    for one, other in r:
        one, other = one - one.mean(axis=0), other - other.mean(axis=0)
        sums = sums + np.array([np.sum(one * other, axis=0), np.sum(one**2, axis=0), np.sum(other**2, axis=0)])
    assert found.partial_r == pytest.approx(np.median(sums[0] / np.sqrt(sums[1] * sums[2])), rel=1e-6)

    # Surrogates are what is heard within the blocks, shifted, or with other phases that are the same in every fold.
    shifts = apart(np.arange(30, n - 30), GRID.alike)
    assert found.n_surrogates == len(found.surrogates) == len(shifts) + 3
    seed = np.random.SeedSequence(0).spawn(3)[0]
    for at, played in (
        (0, lambda within: np.roll(within, shifts[0], axis=0)),
        (-3, lambda within: significance.phase_randomised(within, np.random.default_rng(seed))),
    ):
        error, null, *_ = scored_by_a_plain_loop(y, X, free, played)
        assert found.surrogates[at] == pytest.approx(1 - error / null, rel=1e-4, abs=1e-8)


def test_delays_between_volumes_come_in_their_order():
    """Two designs per repetition time: voxels that lag two volumes and a half get their half second in every fold."""
    rng = np.random.default_rng(1)
    fine, grid = slow(rng, 480, 2), DelayGrid(2.0, 0.5, 2, 5, 5)
    X = np.stack([fine[1::2], fine[0::2]])  # heard 0 and half a repetition time of 1 s later
    y = rng.standard_normal((240, 5)) + 3 * np.roll(X[1], 2, axis=0)[:, :1]
    found = infer_regions(folds_of({"a": y}, X), grid, shifts=np.arange(30, 210), n_randomised=1)["a"]
    assert list(found.delays) == [4.5] * 3


def test_planted_sound_is_found_and_silence_is_not():
    rng = np.random.default_rng(1)
    n = 400
    X = slow(rng, n, 3)[None]
    loud, silent = rng.standard_normal((2, n, 20))
    loud += 0.4 * np.roll(X[0], 3, axis=0)[:, :1]
    found = infer({"loud": loud, "silent": silent}, X, n_randomised=39)
    assert found["loud"].p == 1 / (1 + found["loud"].n_surrogates) and found["loud"].gain > 0.02
    assert set(found["loud"].delays) <= {4.0, 5.0, 6.0} and found["loud"].partial_r > 0.1
    assert found["silent"].p > 0.05 and abs(found["silent"].gain) < 0.01


def test_blocks_alone_are_not_the_sound_within_them():
    rng = np.random.default_rng(2)
    n = 480
    blocks = stats.zscore(np.repeat(np.tile([0.0, 1.0], 8), 30))[:, None]
    X = slow(rng, n, 2)
    X[:, :1] += 2 * blocks  # speech sounds unlike music: the sound tells the blocks
    follows_blocks = rng.standard_normal((n, 15)) + 0.7 * np.roll(blocks, 3, axis=0)
    free = np.column_stack([np.roll(blocks, lag, axis=0) for lag in (0, 2, 4)])
    shifts = [s for s in range(30, 451) if 5 < s % 30 < 25]
    over_past = infer({"a": follows_blocks}, X[None], shifts=np.array(shifts), n_randomised=39)["a"]
    over_blocks = infer({"a": follows_blocks}, X[None], free, shifts=np.array(shifts), n_randomised=39)["a"]
    assert over_past.p <= 0.05 and over_past.gain > 0.05
    assert over_blocks.p > 0.05 and over_blocks.gain < 0.01


@pytest.mark.slow
def test_p_is_uniform_on_autocorrelated_noise():
    """Canary (vii): p of the whole procedure where nothing is there; one region per seed."""
    p = []
    for seed in range(40):
        rng = np.random.default_rng([seed, 1])
        n = 260
        X, common = slow(rng, n, 2)[None], slow(rng, n, 4)
        y = rng.standard_normal((n, 12)) + common @ rng.normal(size=(4, 12))  # voxels that go along with each other
        p.append(infer({"a": y}, X, n_randomised=19, seed=seed)["a"].p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)


def test_held_out_volumes_choose_nothing():
    rng = np.random.default_rng(3)
    X, y = slow(rng, 200, 2)[None], rng.standard_normal((200, 8)) + slow(rng, 200, 1)
    fold = folds_of({"a": y}, X)[1]
    other = y.copy()
    other[fold.held] = 100 * rng.standard_normal((len(fold.held), 8))
    chosen = []
    for volumes in (y, other):
        one = Fold(fold.fit, fold.held, {"a": volumes}, X, fold.free)
        _, _, left = region_inference._past(one)
        designs = np.stack([np.roll(X[0], lag, axis=0) for lag in range(5)])
        scored = region_inference._score_version(one, region_inference._past(one), designs, ALPHAS, keep=True)["a"]
        weights = region_inference._weights(left["a"][fold.fit], designs[2, fold.fit], ALPHAS)
        chosen.append((scored.delay, weights, scored.error))
    assert chosen[0][0] == chosen[1][0] and np.array_equal(chosen[0][1], chosen[1][1])
    assert chosen[0][2] != chosen[1][2]


def test_shifts_are_a_window_apart():
    kept = apart(np.arange(30, 200), 5)
    assert np.all(np.diff(kept) >= 5) and kept[0] == 30 and len(kept) == 34


def test_without_surrogates_there_is_no_p():
    rng = np.random.default_rng(4)
    with pytest.raises(ValueError, match="nothing to compare with"):
        infer({"a": rng.standard_normal((90, 2))}, slow(rng, 90, 1)[None], shifts=np.array([], int), n_randomised=0)


@pytest.mark.slow
def test_a_region_of_one_voxel_is_not_sure_of_itself(monkeypatch):
    """Alice's regions are single series: what noise seems to show is shrunk away, not kept whole."""
    gains = []
    for believed in (0.0, PSEUDO_VOXELS):
        monkeypatch.setattr(region_inference, "PSEUDO_VOXELS", believed)
        rng = np.random.default_rng(5)
        noise = [np.random.default_rng([s, 2]).standard_normal((240, 1)) for s in range(12)]
        gains.append([infer({"a": y}, slow(rng, 240, 4)[None], n_randomised=1)["a"].gain for y in noise])
    assert min(gains[1]) > -0.03
    assert np.mean(gains[1]) > np.mean(gains[0]) / 2, "without voxels that follow nothing it loses more than twice that"


def test_a_region_that_never_varies_has_no_gain():
    rng = np.random.default_rng(20)
    y = {"dead": np.zeros((150, 4)), "live": rng.standard_normal((150, 4))}
    found = infer(y, slow(rng, 150, 2)[None], n_randomised=9)
    assert np.isnan([found["dead"].gain, found["dead"].p, found["dead"].partial_r]).all()
    assert np.isfinite([found["live"].gain, found["live"].p]).all()
