"""Whitening, the contrast of speech and music, its threshold and the test of a region: oracles, truths, calibration."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from nilearn.glm.contrasts import compute_contrast
from nilearn.glm.first_level import run_glm
from scipy import stats
from scipy.signal import lfilter

from bold_audio import contrast, film, prepare, whitening
from bold_audio.features import block_features
from bold_audio.files import DataError, ParameterError
from bold_audio.pairing import make_design

N, T_R, DELAY, ORDER = 641, 0.608, 5.0, 4
BLOCKS = pd.DataFrame(film.film_blocks(N * T_R), columns=["onset", "duration", "trial_type"])
TIMES = np.arange(N) * T_R
BOXCAR = make_design(block_features(BLOCKS, onset=0, duration=N * T_R), TIMES, T_R, response="hrf").at(DELAY)
COVERED = np.flatnonzero(np.isfinite(BOXCAR[:, 0]))
ROWS = COVERED[ORDER:]
SETTLED = np.arange(17, N)
PAIRS = contrast.block_pairs(BLOCKS, TIMES, rows=SETTLED, t_r=T_R, delay=DELAY)
HOW = {"t_r": T_R, "order": ORDER}


def noise(rng, n_columns, *, rho=0.85, share=0.6, drift=0.4, n=N):
    """Autoregressive and white noise of variance 1 with slow drift, around 1,000."""
    state = lfilter([np.sqrt(1 - rho**2)], [1, -rho], rng.standard_normal((n + 200, n_columns)), axis=0)[200:]
    waves = np.cos(np.pi * np.outer(np.arange(n) + 0.5, [1, 2, 3]) / n) / [1, 2, 3]
    waves *= drift / np.sqrt((waves**2).mean(axis=0).sum())
    y = np.sqrt(share) * state + np.sqrt(1 - share) * rng.standard_normal((n, n_columns))
    return 1000 + 10 * (y + waves @ rng.standard_normal((3, n_columns)))


# --- drift and filter ---------------------------------------------------------------------


def test_drift_spans_nilearns_cosines_in_each_stretch_alone():
    from nilearn.glm.first_level.design_matrix import create_cosine_drift

    rows = np.r_[10:150, 200:420]
    made = whitening.drift_cosines(500, 2.0, rows=rows, before=3)
    for first, last in ((7, 150), (197, 420)):
        known = create_cosine_drift(1 / 128, 2.0 * np.arange(last - first))
        mine = made[first:last][:, np.abs(made[first:last]).any(axis=0)]
        assert mine.shape == known.shape
        assert np.linalg.matrix_rank(np.hstack([mine, known]), tol=1e-8) == known.shape[1]
        assert not made[np.ix_([first - 1, last], range(made.shape[1]))].any()


@pytest.mark.parametrize("wave", [np.sin(2 * np.pi * TIMES / 60), np.nan_to_num(BOXCAR[:, 0])])
def test_the_60_s_of_the_blocks_survive_128_s_and_would_not_survive_0_02_hz(wave):
    size = np.var(wave[ROWS])
    kept = np.var(whitening.high_pass(wave[:, None], rows=ROWS, t_r=T_R))
    deleted = np.var(whitening.high_pass(wave[:, None], rows=ROWS, t_r=T_R, period=1 / 0.02))
    assert kept > 0.95 * size and deleted < 0.25 * size


def test_high_pass_is_least_squares_on_the_cosines():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(N, 3)) + np.linspace(0, 50, N)[:, None] + 1000
    D = whitening.drift_cosines(N, T_R, rows=SETTLED)[SETTLED]
    expected = y[SETTLED] - D @ np.linalg.lstsq(D, y[SETTLED], rcond=None)[0]
    np.testing.assert_allclose(whitening.high_pass(y, rows=SETTLED, t_r=T_R), expected, atol=1e-8)


def test_the_filter_is_that_of_the_noise_whatever_the_drift():
    rng = np.random.default_rng(1)
    for drift in (0.0, 5.0):
        Y = noise(rng, 400, rho=0.6, share=1.0, drift=drift).astype(np.float32)
        white = whitening.fit_whitening(Y, rows=ROWS, t_r=T_R, order=2)
        np.testing.assert_allclose(white.taps, [1, -0.6, 0], atol=0.03)
        left = white.apply(Y)
        assert np.abs(np.mean([np.corrcoef(v[1:], v[:-1])[0, 1] for v in left.T])) < 0.03


def test_the_filter_is_least_squares_on_volumes_without_drift():
    rng = np.random.default_rng(13)
    Y = noise(rng, 8, drift=3.0)
    white = whitening.fit_whitening(Y, rows=ROWS, t_r=T_R, order=3)
    volumes = np.arange(ROWS[0] - 3, ROWS[-1] + 1)
    D = whitening.drift_cosines(N, T_R, rows=ROWS, before=3)[volumes]
    y = Y[volumes] - D @ np.linalg.lstsq(D, Y[volumes], rcond=None)[0]
    y /= Y[ROWS].std(axis=0)
    past = np.stack([y[3 - lag : len(y) - lag].ravel() for lag in (1, 2, 3)], axis=1)
    known = np.linalg.lstsq(past, y[3:].ravel(), rcond=None)[0]
    np.testing.assert_allclose(-white.taps[1:], known, atol=2e-5)


def test_whitening_stays_within_its_rows():
    rng = np.random.default_rng(2)
    Y = noise(rng, 30)
    rows = np.arange(60, 400)
    other = Y.copy()
    other[400:], other[:56] = 0, -1
    made = [whitening.fit_whitening(y, rows=rows, t_r=T_R, order=4) for y in (Y, other)]
    assert np.array_equal(made[0].taps, made[1].taps) and np.array_equal(made[0].Q, made[1].Q)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"period": 0}, "period must be > 0 s"),
        ({"period": 1.3}, "columns for 588 volumes - use a longer period"),
        ({"order": 80}, "needs 80 volumes before volume"),
    ],
)
def test_what_cannot_be_whitened_is_refused(given, message):
    rows = np.arange(53, N)
    with pytest.raises(ParameterError, match=message):
        whitening.fit_whitening(np.ones((N, 2)), **({"rows": rows, "t_r": T_R, "order": 4} | given))


# --- the map ------------------------------------------------------------------------------


def test_map_equals_nilearns_glm_on_filtered_volumes_widened_by_what_the_filter_left():
    rng = np.random.default_rng(3)
    Y = (noise(rng, 25) + 8 * np.nan_to_num(BOXCAR) * np.arange(25)).astype(np.float32)
    found = contrast.contrast_map(Y, BOXCAR, rows=ROWS, chunk_voxels=7, **HOW)
    design = np.hstack([np.nan_to_num(BOXCAR), whitening.drift_cosines(N, T_R, rows=ROWS, before=ORDER)])
    taps = whitening.fit_whitening(Y, rows=ROWS, chunk_voxels=7, **HOW).taps
    filtered = [lfilter(taps, [1.0], one.astype(float), axis=0)[ROWS] for one in (Y - 1000, design)]
    labels, results = run_glm(*filtered, noise_model="ols")
    known = compute_contrast(labels, results, np.eye(design.shape[1])[0], stat_type="t")
    weights, *_ = np.linalg.lstsq(filtered[1], filtered[0], rcond=None)
    left = filtered[0] - filtered[1] @ weights
    rho = np.sum(left[1:] * left[:-1], axis=0) / np.sum(left**2, axis=0)
    expected = np.ravel(known.stat()) * np.sqrt((1 - rho) / (1 + rho))
    np.testing.assert_allclose(found.t, expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.percent, 100 * np.ravel(known.effect) / Y[ROWS].mean(axis=0), rtol=2e-3, atol=1e-4)


def test_voxels_with_slower_noise_than_most_stand_out_less():
    """One filter is right for 1,900 voxels and wrong for 100 whose noise is slower."""
    rng, spreads = np.random.default_rng(12), []
    for _ in range(4):
        Y = np.hstack([noise(rng, 1900, rho=0.5, share=1.0), noise(rng, 100, rho=0.9, share=1.0)])
        found = contrast.contrast_map(Y, BOXCAR, rows=ROWS, **HOW)
        white = whitening.fit_whitening(Y, rows=ROWS, t_r=T_R, order=ORDER)
        x, y = white.apply(BOXCAR), white.apply(Y)
        plain = (x.T @ y)[0] / np.sqrt(np.sum(x**2) * np.sum(y**2, axis=0) / found.dof)
        spreads.append([t[1900:].std() / t[:1900].std() for t in (plain, found.t)])
    without, corrected = np.mean(spreads, axis=0)
    assert without > 2 and corrected < 0.8 * without


def test_map_finds_planted_voxels_and_their_size():
    rng = np.random.default_rng(4)
    Y = noise(rng, 600)
    Y[:, :20] += 15 * np.nan_to_num(BOXCAR)
    Y[:, 20:30] -= 15 * np.nan_to_num(BOXCAR)
    Y[:, 30] = 7  # a voxel that does not vary
    found = contrast.contrast_map(Y, BOXCAR, rows=ROWS, **HOW)
    assert (found.t[:20] > found.threshold).all() and (found.t[20:30] < -found.threshold).all()
    assert np.isnan(found.t[30]) and np.isnan(found.percent[30])
    assert (np.abs(found.t[31:]) > found.threshold).sum() == 0
    assert found.percent[:20].mean() == pytest.approx(1.5, abs=0.1)
    assert found.n_volumes == len(ROWS)


def test_order_of_voxels_and_width_of_slabs_change_nothing():
    Y = noise(np.random.default_rng(5), 40)
    found = contrast.contrast_map(Y, BOXCAR, rows=ROWS, **HOW)
    other = contrast.contrast_map(Y[:, ::-1], BOXCAR, rows=ROWS, chunk_voxels=11, **HOW)
    np.testing.assert_allclose(found.t, other.t[::-1], atol=1e-3)


def test_blocks_region_sees_train_alone():
    rng = np.random.default_rng(6)
    Y = noise(rng, 300)
    Y[:, :10] += 20 * np.nan_to_num(BOXCAR)
    train = ROWS[ROWS < 447]
    found = contrast.blocks_region(Y, BOXCAR, train=train, **HOW)
    assert found.dtype == bool and found[:10].all() and found[10:].sum() <= 1
    Y[447:] = rng.normal(size=Y[447:].shape)
    boxcar = BOXCAR.copy()
    boxcar[447:] = np.nan
    assert np.array_equal(contrast.blocks_region(Y, boxcar, train=train, **HOW), found)
    known = contrast.contrast_map(Y, boxcar, rows=train, **HOW).t
    inside = Y.copy()
    inside[400:420] = 0
    assert not np.allclose(contrast.contrast_map(inside, boxcar, rows=train, **HOW).t, known, atol=0.1, equal_nan=True)


def test_threshold_is_bonferronis_in_the_spread_of_the_values():
    t = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    assert contrast.threshold_of(t) == pytest.approx(stats.norm.isf(0.025 / 4000), rel=1e-3)
    small = stats.t.ppf((np.arange(4000) + 0.5) / 4000, 20)
    assert contrast.threshold_of(small, dof=20) == pytest.approx(stats.t.isf(0.025 / 4000, 20), rel=1e-3)
    assert contrast.threshold_of(3 * t) == pytest.approx(3 * stats.norm.isf(0.025 / 4000), rel=1e-3)
    # A few voxels that do respond, or do not vary, or a spread below 1, move nothing.
    loud = np.r_[t, np.full(40, 30.0), np.nan]
    assert contrast.threshold_of(loud) == pytest.approx(contrast.threshold_of(t), rel=0.02)
    assert contrast.threshold_of(t / 10) == contrast.threshold_of(np.zeros(4000))
    with pytest.raises(DataError, match="no voxel varies"):
        contrast.threshold_of([np.nan])


@pytest.mark.parametrize(
    ("boxcar", "period", "message"),
    [
        (np.where(np.arange(N) == 300, np.nan, 1.0), 128.0, "not known in every volume of rows"),
        (np.full(N, 0.5), 128.0, "the blocks do not change in rows"),
        (np.cos(2 * np.pi * (np.arange(N) - 53 + 0.5) / (2 * (N - 53)) * 4), 128.0, "only as slowly as the drift"),
    ],
)
def test_a_boxcar_that_says_nothing_is_refused(boxcar, period, message):
    with pytest.raises(ParameterError, match=message):
        contrast.contrast_map(noise(np.random.default_rng(7), 3), boxcar, rows=np.arange(57, N), period=period, **HOW)


@pytest.mark.slow
def test_map_is_calibrated_on_noise():
    """Family-wise error of maps of 1,000 voxels without any response; 5 % asked."""
    wrong, naive = [], []
    for seed in range(2000, 2080):
        found = contrast.contrast_map(noise(np.random.default_rng(seed), 1000), BOXCAR, rows=ROWS, **HOW)
        wrong.append(np.abs(found.t).max() > found.threshold)
        naive.append(np.mean(np.abs(found.t) > stats.norm.isf(0.025)))
    assert np.mean(wrong) <= 0.125, "5 % and three standard errors of 80 maps"
    assert np.mean(naive) < 0.1, "without whitening 50 to 60 % of the voxels"


# --- the test of a region -----------------------------------------------------------------


def test_pairs_of_the_film_hold_no_volume_twice_and_the_right_one():
    assert len(PAIRS) == 6
    volumes = np.concatenate([part for pair in PAIRS for part in pair])
    assert len(np.unique(volumes)) == len(volumes)
    for music, speech in PAIRS:
        for part, kind in ((music, "music"), (speech, "speech")):
            heard = TIMES[part] + T_R / 2 - DELAY
            block = BLOCKS.iloc[int(heard[0] // 30)]
            assert block["trial_type"] == kind
            assert heard[0] >= min(block["onset"] + 4, 17 * T_R) and heard[-1] <= block["onset"] + block["duration"] - 4
    levels = [[BOXCAR[part, 0].mean() for part in pair] for pair in PAIRS[1:]]
    assert np.max(np.array(levels)[:, 0]) < 0.1 and np.min(np.array(levels)[:, 1]) > 0.9


@pytest.mark.parametrize("end", [116, 125])
def test_a_block_that_is_mostly_missing_is_in_no_pair(end):
    rows = SETTLED[(TIMES[SETTLED] < 95) | (TIMES[SETTLED] > end)]
    pairs = contrast.block_pairs(BLOCKS, TIMES, rows=rows, t_r=T_R, delay=DELAY)
    used = np.concatenate([part for pair in pairs for part in pair])
    assert len(pairs) == 5 and np.isin(used, rows).all() and not ((TIMES[used] > 92) & (TIMES[used] < 128)).any()


def test_several_runs_have_pairs_of_their_own():
    part = SimpleNamespace(n_volumes=N, events=BLOCKS, volume_times=TIMES, t_r=T_R)
    files = SimpleNamespace(parts=(part, part), starts=np.array([0, N]), t_r=T_R)
    subject = SimpleNamespace(run=SimpleNamespace(files=files), params=SimpleNamespace(skip_initial=10.0))
    pairs = contrast.subject_pairs(subject, DELAY)
    assert len(pairs) == 12
    assert all(
        np.array_equal(a + N, b)
        for one, two in zip(PAIRS, pairs[6:], strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_region_contrast_equals_scipy_by_hand():
    Y = noise(np.random.default_rng(8), 2)
    found = contrast.region_contrast(Y, PAIRS, rows=SETTLED, t_r=T_R)
    D = whitening.drift_cosines(N, T_R, rows=SETTLED, period=200.0)[SETTLED]
    for k in range(2):
        left = np.full(N, np.nan)
        left[SETTLED] = Y[SETTLED, k] - D @ np.linalg.lstsq(D, Y[SETTLED, k], rcond=None)[0]
        differences = [left[speech].mean() - left[music].mean() for music, speech in PAIRS]
        known = stats.ttest_1samp(differences, 0)
        assert found["t"][k] == pytest.approx(known.statistic) and found["p"][k] == pytest.approx(known.pvalue)
        assert found["percent"][k] == pytest.approx(100 * np.mean(differences) / Y[SETTLED, k].mean())
    assert (found["n_pairs"] == 6).all()


def test_a_planted_region_is_found_with_its_sign_and_size():
    course = noise(np.random.default_rng(9), 1)[:, 0] + 20 * np.nan_to_num(BOXCAR[:, 0], nan=0.0)
    found = contrast.region_contrast(course, PAIRS, rows=SETTLED, t_r=T_R, alternative="greater").iloc[0]
    size = np.mean([BOXCAR[speech, 0].mean() - BOXCAR[music, 0].mean() for music, speech in PAIRS[1:]])
    assert found["p"] < 0.01 and found["percent"] == pytest.approx(2 * size, abs=0.4)
    flipped = contrast.region_contrast(2000 - course, PAIRS, rows=SETTLED, t_r=T_R, alternative="greater").iloc[0]
    assert flipped["p"] > 0.99 and flipped["t"] == pytest.approx(-found["t"])


def test_drift_alone_is_no_contrast():
    """Music comes first in each pair, so a drift that were left in would point the same way in all of them."""
    line = 1000 + 0.5 * np.arange(N) + 0.001 * np.random.default_rng(10).standard_normal(N)
    found = contrast.region_contrast(line, PAIRS, rows=SETTLED, t_r=T_R).iloc[0]
    raw = np.mean([line[speech].mean() - line[music].mean() for music, speech in PAIRS])
    assert raw > 20 and abs(found["percent"]) * line.mean() / 100 < 0.06 * raw, "cosines come near a line, not onto it"


def test_region_contrast_is_calibrated_on_noise():
    for drift in (0.0, 1.0):
        Y = noise(np.random.default_rng(2000), 4000, drift=drift)
        found = contrast.region_contrast(Y, PAIRS, rows=SETTLED, t_r=T_R)
        assert np.mean(found["p"] <= 0.05) == pytest.approx(0.05, abs=0.011)  # three standard errors
        assert np.mean(found["p"] <= 0.01) == pytest.approx(0.01, abs=0.005)


def test_what_does_not_vary_or_has_too_few_pairs_has_no_t():
    still = contrast.region_contrast(np.full(N, 5.0), PAIRS, rows=SETTLED, t_r=T_R).iloc[0]
    assert np.isnan(still[["t", "p", "percent"]].astype(float)).all()
    with pytest.raises(DataError, match="2 pairs of a music and a speech block"):
        contrast.region_contrast(np.ones(N), PAIRS[:2], rows=SETTLED, t_r=T_R)


@pytest.mark.slow
def test_contrast_of_a_simulated_subject(small_params):
    """Its regions follow the film's MFCCs, which differ between speech and music: more there than where is silence."""
    subject = prepare.open_subject(small_params())
    boxcar, t_r = subject.designs["blocks"].at(DELAY), subject.run.files.t_r
    found = contrast.contrast_map(subject.Y, boxcar, rows=subject.whole_run, t_r=t_r, order=ORDER)
    regions = subject.run.regions
    assert np.abs(found.t[regions["planted_r2_over_0.2"]]).mean() > 2 * np.abs(found.t[regions["silent"]]).mean()
    assert np.mean(np.abs(found.t[regions["silent"]]) > found.threshold) < 0.01
    courses = contrast.region_courses(subject.Y, regions)
    np.testing.assert_allclose(courses[:, 0], subject.Y.mean(axis=1), rtol=1e-5)
    assert len(contrast.subject_pairs(subject, DELAY)) == 6
    assert contrast.settled_rows(subject)[0] == 17
