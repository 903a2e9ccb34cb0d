"""Voxels against surrogates: by hand, with something planted, and with nothing there."""

import numpy as np
import pytest
from scipy import special, stats

from bold_audio import evidence, gram, significance, voxel_inference
from bold_audio.voxel_inference import (
    BINS,
    DelayGrid,
    delay_grid,
    drift_of,
    infer_voxels,
    orthonormal,
    pooled_p,
)

GRID = DelayGrid(2.0, 1.0, 1, 5, 5)


def slow(rng, n, p):
    """Features that change slowly."""
    X = rng.standard_normal((n + 20, p))
    return stats.zscore(np.apply_along_axis(np.convolve, 0, X, np.hanning(9), mode="same")[10:-10])


def slabs_of(y, chunk=64):
    n = len(y)
    return gram.Slabs(y.astype(np.float32), np.arange(n), np.arange(n), np.array([1.0]), chunk)


def infer(y, X, *, grid=GRID, nuisance=None, shifts=None, **options):
    nuisance = np.zeros((len(y), 0)) if nuisance is None else nuisance
    shifts = np.arange(30, len(y) - 30) if shifts is None else shifts
    return infer_voxels(slabs_of(y), X, grid, nuisance=nuisance, shifts=shifts, **options)


@pytest.mark.slow
def test_every_number_by_hand():
    rng = np.random.default_rng(0)
    n, window = 80, GRID.n_volumes
    X, y = slow(rng, n, 2)[None], rng.standard_normal((n, 7))
    y[:, 0] += 2 * np.roll(X[0, :, 0], 3)
    wave = np.cos(2 * np.pi * np.arange(n) / n)[:, None]
    shifts = np.arange(25, 56)
    found = infer(y, X, nuisance=wave, shifts=shifts, n_randomised=1, seed=3)

    def log_b(x, v):
        """Evidence of one delayed design for one voxel, by matrices of the size of the run."""
        N = np.column_stack([np.ones(n), wave])
        off = np.eye(n) - N @ np.linalg.pinv(N)
        values = []
        for alpha in voxel_inference.ALPHAS:
            C = np.eye(n) + off @ x @ x.T @ off / alpha
            r = off @ v
            values.append(-np.linalg.slogdet(C)[1] / 2 - (n - 1) / 2 * np.log(r @ np.linalg.solve(C, r) / (r @ r)))
        return np.log(np.mean(np.exp(values)))

    other = significance.phase_randomised(X[0], np.random.default_rng(3))
    scores = np.array([[[log_b(np.roll(x, j, 0), v) for v in y.T] for j in range(n)] for x in (X[0], other)])
    windows = [np.arange(j, j + window) % n for j in range(n)]
    best = np.array([[special.logsumexp(scores[k][at], axis=0) - np.log(window) for at in windows] for k in (0, 1)])
    null = np.concatenate([best[0][shifts], best[1]])
    middle, high = np.percentile(best.reshape(-1, best.shape[2]), [50, 90], axis=0)
    z, z_null = (best[0][0] - middle) / (high - middle), (null - middle) / (high - middle)

    np.testing.assert_allclose(found.voxels["z"], z, rtol=5e-3, atol=5e-3)
    pooled = [(1 + np.sum(z_null >= one)) / (1 + z_null.size) for one in z]
    np.testing.assert_allclose(found.voxels["p"], pooled, atol=0.02)  # bins of 0.01 in z
    assert np.all(found.voxels["p"] >= np.array(pooled) - 0.001)
    fwe = [(window + np.sum(z_null.max(axis=1) >= one)) / (window + len(null)) for one in z]
    np.testing.assert_allclose(found.voxels["p_fwe"], fwe, atol=1.5 / len(null))
    assert found.voxels["delay"][0] == 2 + 3  # the window begins at 2 s, the voxel lags 3 volumes of 1 s
    low, high = evidence.cells(GRID.delays)
    density = np.exp(scores[0][:window])  # of the sound in its place
    mass = density * (high - low)[:, None] / ((high - low) @ density)
    for v in range(y.shape[1]):
        cells, held = [], 0.0
        for cell in np.argsort(-density[:, v]):
            if held < 0.95:
                cells, held = [*cells, cell], held + mass[cell, v]
        assert found.voxels.loc[v, ["low", "high"]].tolist() == [low[min(cells)], high[max(cells)]], v
    assert (found.n_shifts, found.n_randomised) == (len(shifts), n)


def test_delays_between_volumes():
    """Two designs per repetition time: the voxel that lags half a volume more gets its half second."""
    rng = np.random.default_rng(1)
    fine = slow(rng, 400, 2)
    X = np.stack([fine[1::2], fine[0::2]])  # heard 0 and half a repetition time of 1 s later
    y = rng.standard_normal((200, 40))
    grid = DelayGrid(2.0, 0.5, 2, 5, 5)
    assert np.array_equal(grid.delays, np.arange(2, 7, 0.5))
    y[:, 0] = rng.standard_normal(200) + 3 * np.roll(X[0], 2, axis=0)[:, 0]
    y[:, 1] = rng.standard_normal(200) + 3 * np.roll(X[1], 2, axis=0)[:, 0]
    found = infer(y, X, grid=grid)
    assert list(found.voxels["delay"][:2]) == [4.0, 4.5]


def test_planted_voxels_are_found_and_silent_ones_are_not():
    rng = np.random.default_rng(2)
    n = 400
    X, y = slow(rng, n, 3)[None], rng.standard_normal((n, 600))
    y[:, :20] += 0.5 * np.roll(X[0], 2, axis=0)[:, :1]
    found = infer(y, X).voxels
    assert (found["q"][:20] <= 0.05).mean() >= 0.9
    assert (found["q"][20:] <= 0.05).mean() <= 0.01
    assert (found["p_fwe"][20:] <= 0.05).sum() <= 1
    assert 0.02 <= (found["p"][20:] <= 0.05).mean() <= 0.09
    assert abs(found["delay"][:20].median() - 4) <= 1


def test_the_future_is_not_followed():
    """Canary (iii): sound that is heard after the volume explains it no better than surrogates do."""
    rng = np.random.default_rng(10)
    n = 400
    X, y = slow(rng, n, 3), rng.standard_normal((n, 60))
    y += 0.6 * np.roll(X, 3, axis=0)[:, :1]
    away = {"shifts": np.arange(60, 300), "n_randomised": 1}
    assert (infer(y, X[None], **away).voxels["q"] <= 0.05).mean() > 0.9
    assert (infer(y, np.roll(X, -30, axis=0)[None], **away).voxels["q"] <= 0.05).mean() < 0.1


def test_nuisance_is_taken_off_both():
    rng = np.random.default_rng(3)
    n = 300
    drift = drift_of(np.arange(n) * 1.0, [0], np.arange(n), [1.0])
    X = (slow(rng, n, 2) + 3 * drift[:, :1] / drift[:, :1].std())[None]
    y = rng.standard_normal((n, 50)) + 2 * drift[:, :1] / drift[:, :1].std()
    shifts = np.arange(40, 260)
    assert np.median(infer(y, X, shifts=shifts, n_randomised=0).voxels["z"]) > 1
    assert abs(np.median(infer(y, X, nuisance=drift, shifts=shifts, n_randomised=0).voxels["z"])) < 1


def test_drift_keeps_the_blocks():
    """A cycle of a minute is not drift: the film's blocks survive; three minutes are."""
    times = np.arange(641) * 0.608
    Q = orthonormal(drift_of(times, [0], np.arange(641), [1.0]), 641)
    for period, kept in ((60, 0.95), (180, 0.1)):
        wave = np.cos(2 * np.pi * times / period)[:, None]
        share = np.sum(evidence.without(wave, Q) ** 2) / np.sum((wave - wave.mean()) ** 2)
        assert (share > kept) if period == 60 else (share < kept)


def test_drift_of_several_runs_and_a_filter():
    times, rows = np.r_[np.arange(60) * 4.0, np.arange(70) * 4.0], np.r_[np.arange(5, 60), np.arange(65, 130)]
    made = drift_of(times, [0, 60], rows, [1.0, -0.5])
    plain = drift_of(times, [0, 60], np.arange(130), [1.0])
    np.testing.assert_allclose(made, plain[rows] - 0.5 * plain[rows - 1])
    n_first = 1 + int(np.floor(2 * 60 * 4.0 / 128))
    assert np.all(made[55:, :n_first] == 0) and np.all(made[:55, n_first:] == 0)


def test_pooled_p_counts_like_ranks():
    rng = np.random.default_rng(4)
    z, null = rng.normal(size=30), rng.normal(size=5000)
    made = pooled_p(z, np.histogram(null, BINS)[0])
    exact = [(1 + np.sum(null >= one)) / 5001 for one in z]
    np.testing.assert_allclose(made, exact, atol=0.01)
    assert np.all(made >= np.array(exact) - 1e-12)  # never smaller than the exact rank


def test_constant_voxels_follow_nothing():
    rng = np.random.default_rng(5)
    y = rng.standard_normal((120, 3))
    y[:, 1] = 0
    found = infer(y, slow(rng, 120, 2)[None]).voxels
    assert found["z"][1] == 0 and found["p"][1] > 0.05 and found["q"][1] > 0.05


def test_without_surrogates_there_is_no_p():
    rng = np.random.default_rng(6)
    with pytest.raises(ValueError, match="nothing to compare with"):
        infer(rng.standard_normal((60, 2)), slow(rng, 60, 1)[None], shifts=np.array([], int), n_randomised=0)


def test_slabs_do_not_matter():
    rng = np.random.default_rng(7)
    y, X = rng.standard_normal((150, 90)), slow(rng, 150, 2)[None]
    one, other = (
        infer_voxels(slabs_of(y, c), X, GRID, nuisance=np.zeros((150, 0)), shifts=np.arange(30, 120)) for c in (90, 17)
    )
    np.testing.assert_allclose(one.voxels, other.voxels, rtol=1e-3, atol=1e-3)


def test_one_delay_has_no_interval():
    rng = np.random.default_rng(8)
    grid = delay_grid([5.0], 1.0)
    assert (grid.n_steps, grid.n_volumes, list(grid.delays)) == (1, 1, [5.0])
    found = infer(rng.standard_normal((90, 4)), slow(rng, 90, 1)[None], grid=grid).voxels
    assert found["low"].isna().all() and (found["delay"] == 5).all()


@pytest.mark.parametrize("t_r", [0.608, 1.0, 1.44, 2.0, 3.0, 4.0, 4.05, 5.0, 6.0, 8.5, 10.0, 30.0])
def test_delays_cover_the_window_in_steps_of_a_second(t_r):
    grid = delay_grid([2.0, 5.0, 10.0], t_r)
    assert grid.delays[0] == 2 and 10 - max(t_r, 1) < grid.delays[-1] <= 10 + 1e-9
    assert grid.delays[-1] > 8.9 and np.diff(grid.delays).max() <= 1 + 1e-9
    assert len(grid.offsets) == grid.n_steps and np.allclose(grid.offsets, grid.delays[: grid.n_steps])
    if grid.n_volumes > 1:  # later delays are rolled by whole volumes
        assert grid.n_steps * grid.step == pytest.approx(t_r) and grid.alike == grid.n_volumes
    assert (grid.alike - 1) * t_r <= 8 + 1e-9 and grid.alike * t_r > 7.9 - t_r


def test_a_delay_between_two_long_repetition_times_is_found():
    """Volumes 6 s apart and a response after 5 s: 2 and 8 s alone would miss it."""
    rng = np.random.default_rng(12)
    fine = slow(rng, 6 * 240, 1)
    grid = delay_grid([2.0, 10.0], 6.0)
    heard = [np.roll(fine, int(delay), axis=0)[::6] for delay in grid.offsets]
    y = rng.standard_normal((240, 40))
    y[:, :10] += 1.5 * heard[3] / heard[3].std()
    found = infer(y, np.stack(heard), grid=grid, shifts=np.arange(6, 234)).voxels
    assert (found["q"][:10] <= 0.05).all() and (found["q"][10:] <= 0.05).sum() <= 1
    assert np.median(found["delay"][:10]) == 5


def test_a_short_run_has_as_many_versions_as_a_small_family_wise_p_needs():
    rng = np.random.default_rng(13)
    X = slow(rng, 80, 1)[None]
    y = rng.standard_normal((80, 5))
    y[:, 0] += 20 * np.roll(X[0], 2, axis=0)[:, 0]
    found = infer(y, X)
    assert found.n_randomised == 3 * 80 and found.voxels["p_fwe"].min() <= 0.025
