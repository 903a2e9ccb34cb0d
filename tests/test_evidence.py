"""The evidence against dense matrices and integrals, its intervals against planted delays."""

from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit, logsumexp
from scipy.stats import multivariate_normal

from bold_audio import evidence

ALPHAS = [3.0, 100.0, 3000.0]


def smooth_designs(rng, delays, *, n_rows=160, n_features=3):
    """Features that change smoothly with the delay: (n_delays, n_rows, n_features), variance 1, volumes of 1 s."""
    clock = np.arange(-20, n_rows + 2, 0.05)
    frames = gaussian_filter1d(rng.normal(size=(len(clock), n_features)), 40, axis=0)
    frames /= frames.std(axis=0)
    return np.stack(
        [[np.interp(np.arange(n_rows) - delay, clock, column) for column in frames.T] for delay in delays]
    ).transpose(0, 2, 1)


def dense_log_evidence(y, x, alpha):
    """Closed form of one voxel and strength with n × n matrices, float64."""
    y, x = y - y.mean(), x - x.mean(axis=0)
    C = np.eye(len(y)) + x @ x.T / alpha
    return -0.5 * np.linalg.slogdet(C)[1] - (len(y) - 1) / 2 * np.log(y @ np.linalg.solve(C, y) / (y @ y))


def test_log_evidence_equals_dense_matrices_averaged_over_strengths():
    rng = np.random.default_rng(0)
    X = smooth_designs(rng, np.arange(35) / 4, n_rows=80) + 5  # more designs than are multiplied at once
    y = 1000 + rng.normal(size=(80, 6)) + 2 * X[3] @ rng.normal(size=(3, 6))
    y = y.astype(np.float32)
    found = evidence.log_evidence(y, evidence.make_basis(X, [*ALPHAS, np.inf]))
    each = [[[dense_log_evidence(v, x, a) for v in y.T.astype(float)] for a in ALPHAS] for x in X]
    np.testing.assert_allclose(found, logsumexp(each, axis=1) - np.log(3), atol=0.01)
    assert found.max() > 20 and found.min() < 0, "from sound to silence"


def test_log_evidence_equals_the_integral_over_noise_and_mean():
    """Weights N(0, σ²/α), flat mean and flat log σ: integrated numerically in the n − 1 directions without mean."""
    rng = np.random.default_rng(1)
    x, alpha = rng.normal(size=(9, 2)), 2.0
    y = x @ [1.0, -1.0] + rng.normal(size=9)
    Q = np.linalg.svd(np.ones((1, 9)))[2][1:]
    z, C = Q @ y, np.eye(8) + Q @ x @ x.T @ Q.T / alpha

    def marginal(C):
        return quad(lambda u: multivariate_normal(cov=np.exp(2 * u) * C).pdf(z), -4, 6, limit=200)[0]

    found = evidence.log_evidence(y[:, None].astype(np.float32), evidence.make_basis(x[None], [alpha]))[0, 0]
    assert found == pytest.approx(np.log(marginal(C) / marginal(np.eye(8))), abs=1e-4)


def test_a_feature_given_twice_or_empty_adds_nothing():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 2)), rng.normal(size=(60, 5)).astype(np.float32)
    spare = np.stack([np.c_[x, np.zeros(60)], np.c_[x, np.full(60, 3.0)]])
    alone = evidence.log_evidence(y, evidence.make_basis(x[None], ALPHAS))
    for made in evidence.log_evidence(y, evidence.make_basis(spare, ALPHAS)):
        np.testing.assert_allclose(made, alone[0], atol=1e-4)
    twice = evidence.log_evidence(y, evidence.make_basis(np.c_[x, x[:, 0]][None], [5.0]))[0]
    np.testing.assert_allclose(twice, [dense_log_evidence(v, np.c_[x, x[:, 0]], 5.0) for v in y.T], atol=1e-4)


def test_a_constant_voxel_follows_nothing():
    y = np.full((50, 2), 555.0, np.float32)
    made = evidence.log_evidence(y, evidence.make_basis(np.random.default_rng(0).normal(size=(4, 50, 3)), ALPHAS))
    assert np.isfinite(made).all() and np.all(made <= 0)


def test_a_perfect_fit_stays_finite():
    x = np.random.default_rng(0).normal(size=(1, 50, 3))
    made = evidence.log_evidence((x[0] @ np.ones((3, 1))).astype(np.float32), evidence.make_basis(x, [1e-8]))
    assert np.isfinite(made).all() and np.all(made > 100)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mixture_and_follows_equal_the_plain_formulas(dtype):
    log_b = np.array([-1e4, -30, -1, 0, 1, 5, 30, 1e4], dtype)
    share = evidence.SHARE
    known = np.logaddexp(np.log(1 - share), np.log(share) + log_b.astype(float))
    np.testing.assert_allclose(evidence.mixture(log_b), known, rtol=1e-6, atol=1e-6)
    surely = expit(np.log(share / (1 - share)) + log_b.astype(float))
    np.testing.assert_allclose(evidence.follows(log_b), surely, rtol=2e-3, atol=1e-6)


def test_log_mean_exp_does_not_overflow():
    values = np.array([[1000.0, -1000.0], [1001.0, -1002.0]])
    known = logsumexp(values, axis=0) - np.log(2)
    np.testing.assert_allclose(evidence.log_mean_exp(values.copy(), axis=0), known)


@pytest.mark.parametrize("pseudo_voxels", [0.0, 10.0])
def test_prior_is_learnt_by_expectation_maximisation(pseudo_voxels):
    """Voxel by voxel: believe, count, begin again; of the voxels added half make the first choice."""
    log_likelihood = np.random.default_rng(0).normal(0, 3, (4, 30)) + np.array([[2.0], [0], [1], [-3]]) + 500
    known = np.full(4, 0.25)
    for _ in range(500):
        counts = pseudo_voxels * np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6])
        believed = [known * np.exp(voxel - 500) for voxel in log_likelihood.T]
        believed = np.array([each / each.sum() for each in believed])
        known = (counts + believed.sum(axis=0)) / (30 + pseudo_voxels)
    prior, posterior = evidence.learn_prior(log_likelihood, pseudo_voxels=pseudo_voxels)
    np.testing.assert_allclose(prior, known, atol=1e-3)
    np.testing.assert_allclose(posterior, believed.T, atol=5e-3)


def test_posterior_gives_each_delay_its_share_of_time():
    delays = [0.0, 1.0, 2.0, 6.0, 7.0]
    flat = evidence.posterior(np.zeros((5, 2)), delays)
    np.testing.assert_allclose(flat[:, 0], np.array([0.5, 1, 2.5, 2.5, 0.5]) / 7)
    log_b = np.random.default_rng(0).normal(0, 300, (5, 20)).astype(np.float32)
    np.testing.assert_allclose(evidence.posterior(log_b, delays).sum(axis=0), 1, rtol=1e-6)
    odds = evidence.posterior(np.log([1.0, 2, 3, 4, 5]), delays)
    np.testing.assert_allclose(odds, np.array([0.5, 2, 7.5, 10, 2.5]) / 22.5)
    assert evidence.posterior(np.array([3.0]), [4.0]) == [1.0]


def test_interval_is_the_shortest_set():
    """Of all sets of equally wide cells that hold 80 % none is smaller or, as small, holds more."""
    rng = np.random.default_rng(0)
    delays = np.arange(10) * 0.5
    low, high = evidence.cells(delays)
    for _ in range(30):
        weight = np.r_[0, rng.dirichlet(np.full(8, 0.7)), 0]
        held = [chosen for size in range(1, 9) for chosen in map(list, combinations(range(1, 9), size))
                if weight[chosen].sum() >= 0.8]  # fmt: skip
        best = min(held, key=lambda chosen: (len(chosen), -weight[chosen].sum()))
        assert evidence.interval(weight, delays, level=0.8) == (low[min(best)], high[max(best)])


def test_interval_goes_by_density_and_spans_all_peaks():
    """A cell is not more likely for being wide; two peaks give one interval."""
    delays = [0.0, 1.0, 2.0, 3.0, 13.0, 14.0]  # cells 0.5, 1, 1, 5.5, 5.5, 0.5 s
    weight = np.array([0.05, 0.3, 0.1, 0.31, 0.21, 0.03])
    assert evidence.interval(weight, delays, level=0.4) == (0.0, 2.5)
    peaks = np.array([[0.0, 0.5, 0.0, 0.0, 0.0, 0.5], [0, 0, 1, 0, 0, 0]]).T
    low, high = evidence.interval(peaks, delays)
    np.testing.assert_array_equal(low, [0.5, 1.5])
    np.testing.assert_array_equal(high, [14.0, 2.5])


def test_median_is_where_half_is_reached():
    weight = np.array([[0.2, 0.2, 0.2, 0.4], [0.6, 0.2, 0.1, 0.1], [0, 0, 0, 1.0]]).T
    np.testing.assert_array_equal(evidence.median(weight, [1.0, 2.0, 3.0, 4.0]), [3.0, 1.0, 4.0])


def test_a_voxels_interval_covers_its_planted_delay_in_95_of_100():
    """400 voxels in white noise, each with a delay and weights of its own, drawn as the model believes."""
    rng = np.random.default_rng(4)
    delays = np.arange(0, 9.01, 0.25)
    X = smooth_designs(rng, delays)
    low, high = evidence.cells(delays)
    place = rng.choice(len(delays), 400, p=(high - low) / (high - low).sum())
    y = rng.normal(size=(160, 400))
    for v, j in enumerate(place):
        y[:, v] += X[j] @ rng.normal(0, 1 / np.sqrt(10), 3)
    log_b = evidence.log_evidence(y.astype(np.float32), evidence.make_basis(X, [10.0]))
    weight = evidence.posterior(log_b, delays)
    a, b = evidence.interval(weight, delays)
    covered = np.mean((a <= delays[place]) & (delays[place] <= b))
    assert 0.92 <= covered <= 0.985
    assert np.median(b - a) < 4, "an interval of the whole range would always cover"
    middle = evidence.median(weight, delays)
    assert np.isin(middle, delays).all() and np.median(np.abs(middle - delays[place])) < 0.6


# --- a region whose voxels repeat one another ---------------------------------------------


DELAYS = np.arange(2.0, 8.01, 0.25)
PLANTED = 5.0


def pooled(y, X):
    """T of a region, its best delay, and the volumes' slopes there."""
    log_b = evidence.log_evidence(y.astype(np.float32), evidence.make_basis(X, ALPHAS))
    T = evidence.mixture(log_b).sum(axis=1, dtype=np.float64)
    at = int(np.clip(T.argmax(), 1, len(DELAYS) - 2))
    change = (X[at + 1] - X[at - 1]) / (DELAYS[at + 1] - DELAYS[at - 1])
    return T, at, evidence.slope_by_volume(y, X[at], change, ALPHAS, log_b[at])


def region(rng, X, *, n_voxels, copies=1, gain=0.5, shared=0.0):
    """White volumes of which all follow the sound at the planted delay; ``shared`` is the noise they have in common."""
    own = rng.normal(size=(X.shape[1], n_voxels)) * np.sqrt(1 - shared)
    noise = own + np.sqrt(shared) * rng.normal(size=(X.shape[1], 1))
    heard = X[int(np.flatnonzero(PLANTED == DELAYS)[0])] @ (gain * np.abs(rng.normal(size=(3, n_voxels))))
    return np.repeat(heard + noise, copies, axis=1)


def test_slopes_of_the_volumes_add_up_to_that_of_the_evidence():
    """Against finite differences beside the peak, where voxels surely follow the sound."""
    rng = np.random.default_rng(0)
    X = smooth_designs(rng, DELAYS, n_rows=400)
    y = region(rng, X, n_voxels=40, gain=1.0)
    log_b = evidence.log_evidence(y.astype(np.float32), evidence.make_basis(X, ALPHAS))
    T = evidence.mixture(log_b).sum(axis=1, dtype=np.float64)
    for at in (8, 10, 14, 16):
        change = (X[at + 1] - X[at - 1]) / 0.5
        summed = evidence.slope_by_volume(y, X[at], change, ALPHAS, log_b[at]).sum()
        assert summed == pytest.approx((T[at + 1] - T[at - 1]) / 0.5, rel=0.1)


def test_slope_of_a_volume_is_its_residual_times_the_change_of_its_refitted_prediction():
    """The fit is made again at a delay slightly longer and shorter; without a penalty, where that is exact."""
    rng = np.random.default_rng(3)
    X = smooth_designs(rng, DELAYS, n_rows=60)
    x, change = X[9] - X[9].mean(axis=0), X[10] - X[8]
    y = region(rng, X, n_voxels=7, gain=0.5)
    y = y - y.mean(axis=0)
    log_b = np.array([8.0, 3.0, 0.0, 1.0, 2.0, 5.0, -9.0])

    def fitted(step):
        moved = x + step * (change - change.mean(axis=0))
        return moved @ np.linalg.lstsq(moved, y, rcond=None)[0]

    residual, moved = y - fitted(0), (fitted(1e-5) - fitted(-1e-5)) / 2e-5
    sure = evidence.follows(log_b) * (evidence.follows(log_b) > 0.01)
    known = (residual * moved / np.mean(residual**2, axis=0)) @ sure
    found = evidence.slope_by_volume(y, X[9], change, [1e-9], log_b)
    np.testing.assert_allclose(found**2, known**2, rtol=1e-3, atol=1e-6 * np.max(known**2))


def test_voxels_that_do_not_follow_the_sound_have_no_slope():
    rng = np.random.default_rng(0)
    X = smooth_designs(rng, DELAYS)
    y = rng.normal(size=(160, 20))
    slope = evidence.slope_by_volume(y, X[4], (X[5] - X[3]) / 0.5, ALPHAS, np.full(20, -5.0))
    np.testing.assert_array_equal(slope, np.zeros(160))


def test_independent_voxels_need_no_tempering_and_copies_their_number():
    """τ is near 1; every voxel m times over multiplies it by m."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        X = smooth_designs(rng, DELAYS, n_rows=300)
        T, at, slope = pooled(region(rng, X, n_voxels=60), X)
        found.append(np.sum(slope**2) / evidence.curvature(T, DELAYS, at))
        rng = np.random.default_rng(seed)
        X = smooth_designs(rng, DELAYS, n_rows=300)
        T, at, slope = pooled(region(rng, X, n_voxels=60, copies=5), X)
        assert evidence.temper(T, DELAYS, slope, at) == pytest.approx(5 * found[-1], rel=1e-3)
    assert 0.7 < np.mean(found) < 1.4


def test_tempering_gives_a_region_with_shared_noise_an_honest_interval():
    """Every voxel there four times and with noise in common: as it is, T is far too sure."""
    honest = bold = 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        X = smooth_designs(rng, DELAYS)
        T, at, slope = pooled(region(rng, X, n_voxels=12, copies=4, gain=0.25, shared=0.3), X)
        for tau in (evidence.temper(T, DELAYS, slope, at), 1.0):
            a, b = (0, 9) if np.isinf(tau) else evidence.interval(evidence.posterior(T / tau, DELAYS), DELAYS)
            honest += tau != 1.0 and a <= PLANTED <= b
            bold += tau == 1.0 and a <= PLANTED <= b
    assert honest >= 52 and bold <= 45, (honest, bold)


def test_temper_is_infinite_without_a_peak_and_never_below_1():
    delays = [0.0, 1.0, 3.0]
    T = np.array([0.0, 4.0, 2.0])  # slopes 4 and −1 around 1.5 s of change
    assert evidence.curvature(T, delays, 1) == pytest.approx(5 / 1.5)
    assert evidence.temper(T, delays, np.array([1.0, 3.0]), 1) == pytest.approx(3.0)
    assert evidence.temper(T, delays, np.array([0.1]), 1) == 1.0
    assert evidence.temper(-T, delays, np.array([1.0]), 1) == np.inf


@pytest.mark.parametrize("n_nuisance", [0, 4])
def test_circular_shifts_of_a_long_design_are_those_that_are_made_one_by_one(monkeypatch, n_nuisance):
    """By Fourier transforms, without a single shifted design, with and without slow waves taken off."""
    rng = np.random.default_rng(0)
    X = smooth_designs(rng, [4.0, 5.0], n_rows=150)
    waves = np.cos(np.pi * np.outer(np.arange(150) + 0.5, np.arange(1, 1 + n_nuisance)) / 150)
    Q = np.linalg.qr(np.column_stack([np.ones(150), waves]))[0] if n_nuisance else None
    y = X[0] @ rng.normal(size=(3, 7)) + 3 * rng.normal(size=(150, 7))
    y = (y if Q is None else evidence.without(y, Q)).astype(np.float32)
    (short,) = evidence.circular_bases(list(X), ALPHAS, Q)
    monkeypatch.setattr(evidence, "MANY_ROWS", 150)
    long = evidence.circular_bases(list(X), ALPHAS, Q)
    found = np.concatenate([evidence.log_evidence(y, basis) for basis in long])
    assert found.max() > 3  # in its place
    np.testing.assert_allclose(found, evidence.log_evidence(y, short), atol=1e-3)
    held = sum(array.nbytes for basis in long for array in vars(basis).values())
    assert held < sum(array.nbytes for array in vars(short).values()) / 10
