"""What is wrong with a scan is found, with its index, and nothing is found where nothing is wrong."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from bold_audio import data, motion, quality, workflow
from bold_audio.runs import locate_runs

pytestmark = pytest.mark.slow

T_R, N = 0.608, 641
TRAIN = np.arange(16, 448)
TIMES = np.arange(N) * T_R


def scan(seed=0, n_voxels=2000, drift=0.4):
    """Clean volumes: noise that remembers itself and its neighbours, slow drift, 1 to 1.5 % of the mean."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((N + 100, n_voxels + 20))
    made = np.apply_along_axis(lambda x: np.convolve(x, np.ones(21) / np.sqrt(21), "valid"), 1, steps)
    made = np.sqrt(0.6) * lfilter([np.sqrt(1 - 0.85**2)], [1, -0.85], made, axis=0)[100:]
    made += np.sqrt(0.4) * rng.standard_normal((N, n_voxels))
    waves = np.cos(np.pi * np.outer(np.arange(N) + 0.5, [1, 2, 3]) / N) / [1, 2, 3]
    made += drift * waves @ rng.standard_normal((3, n_voxels))
    mean = rng.uniform(600, 1100, n_voxels)
    return (mean * (1 + rng.uniform(0.01, 0.015, n_voxels) * made)).astype(np.float32)


@pytest.fixture(scope="module")
def clean():
    return scan()


def measure(volumes, **given):
    return quality.scan_quality(volumes, t_r=T_R, train=TRAIN, **given)


def findings(volumes):
    return dict(measure(volumes).found["finding"])


# --- bad volumes ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_scan_has_no_bad_volume(seed):  # S15
    """False alarms: none in 5 × 641 clean volumes."""
    assert findings(scan(seed, n_voxels=800)) == {}


@pytest.mark.parametrize("k", [0, 1, 300, 447, 448, 640])
def test_an_empty_volume_is_flagged_with_its_index_and_nothing_else_is(clean, k):  # S15
    spoilt = clean.copy()
    spoilt[k] = 0
    assert findings(spoilt) == {k: "empty volume"}


@pytest.mark.parametrize("factor", [10, 1.5, 1.08])
@pytest.mark.parametrize("k", [0, 200, 600, 640])
def test_a_spike_is_flagged_with_its_index_and_nothing_else_is(clean, factor, k):  # S15
    spoilt = clean.copy()
    spoilt[k] *= factor
    found = findings(spoilt)
    assert list(found) == [k] and found[k].startswith("outlier: "), found


def test_spike_and_empty_volume_together_are_both_found_and_nothing_is_mended(clean):  # S15
    spoilt = clean.copy()
    spoilt[120] *= 10
    spoilt[500] = 0
    before = spoilt.copy()
    found = measure(spoilt)
    assert list(found.outliers) == [120, 500]
    np.testing.assert_array_equal(spoilt, before)
    assert found.volumes["outlier_share"].drop([120, 500]).max() < 0.01


def test_a_weak_spike_of_all_voxels_is_found_by_its_jumps(clean):
    """1 % of the mean, within each voxel's own noise: no voxel is an outlier, the volume is."""
    spoilt = clean.copy()
    spoilt[300] *= 1.012
    found = measure(spoilt)
    assert found.volumes["outlier_share"][300] < quality.OUTLIER_SHARE
    assert dict(found.found["finding"]) == {300: "outlier: stands out from both neighbours"}


def test_a_lasting_jump_is_told_once(clean):
    moved = clean.copy()
    moved[320:] = np.roll(moved[320:] - moved.mean(axis=0), 1, axis=1) + 1.01 * moved.mean(axis=0)
    moved[320:, ::2] -= 0.03 * moved[320:, ::2]
    assert findings(moved) == {320: "jump since the volume before"}


def test_a_scan_that_begins_too_bright_is_told_as_not_settled(clean):
    bright = clean.copy()
    bright[:2] *= np.array([1.025, 1.012])[:, None]
    assert set(findings(bright)) == {0, 1}
    assert "not settled" in findings(bright)[1] or "outlier" in findings(bright)[1]
    assert quality.name_findings([np.nan, 9, 8, 1.0, 1.1, 0.9, 1.05, 1], np.zeros(8)) == (
        ["not settled yet", "not settled yet"] + [""] * 6
    )


def test_an_empty_volume_accounts_for_the_jumps_beside_it():
    """Also where its voxels are no outliers, since many volumes are empty."""
    for k in (1, 3):  # a run does not begin unsettled because its second volume is empty
        dvars = np.array([np.nan, 1, 1.1, 0.95, 1, 1, 0.9, 1.05])
        dvars[[k, k + 1]] = 90, 95
        expected = ["empty volume" if at == k else "" for at in range(8)]
        assert quality.name_findings(dvars, np.zeros(8), empty=[k]) == expected


def test_the_share_of_outlying_voxels_is_counted_and_few_are_no_outlying_volume(clean):
    spoilt = clean.copy()
    spoilt[300, :60] *= 1.5
    assert measure(spoilt).volumes["outlier_share"][300] == pytest.approx(0.03, abs=0.001)
    quiet = np.append(np.nan, 1 + 0.01 * np.sin(np.arange(19)))
    for share, finding in ((0.03, ""), (0.049, ""), (0.06, "outlier: 6 % of the voxels")):
        assert quality.name_findings(quiet, np.where(np.arange(20) == 8, share, 0))[8] == finding


def test_outliers_are_counted_as_afni_does():
    """By hand: -2 … 2 in turn has the MAD 1; of 400 values, qginv(0.001 / 400) · sqrt(π/2) is 4.565 · 1.2533 = 5.72."""
    series = np.tile(np.tile(np.arange(-2.0, 3), 80)[:, None], (1, 5))
    series[7] = [5.5, -5.5, 5.9, -5.9, 30]
    found = quality.outlier_values(series)
    assert found[7].tolist() == [False, False, True, True, True] and found.sum() == 3


def test_one_huge_value_hides_no_other():
    """Fitted without clipping, the slow course would follow the first and widen the limit for the second."""
    series = np.random.default_rng(0).standard_normal((400, 200))
    series[7], series[200] = 1e5, 10
    found = quality.outlier_values(series)
    assert found[[7, 200]].all() and np.delete(found, [7, 200], axis=0).mean() < 3e-4


def test_parts_and_times_are_the_runs(clean):
    parts = {"train": TRAIN, "gap": np.arange(448, 475), "test": np.arange(475, N)}
    table = measure(clean, parts=parts).volumes
    assert table["part"].value_counts().to_dict() == {"train": 432, "test": 166, "gap": 27, "": 16}
    np.testing.assert_allclose(table["time"], TIMES)
    two = measure(clean, starts=(0, 300), begins=[-0.25, 0.5]).volumes["time"]
    np.testing.assert_allclose(two - TIMES, np.r_[np.full(300, -0.25), np.full(N - 300, 0.5)])


# --- steadiness -------------------------------------------------------------------------


def test_temporal_snr_is_mean_over_standard_deviation():
    rng = np.random.default_rng(0)
    mean, sd = rng.uniform(500, 1500, 300), rng.uniform(5, 50, 300)
    volumes = (mean + sd * rng.standard_normal((N, 300))).astype(np.float32)
    volumes[448:] += 5000  # not train
    volumes[:, 0] = 7
    found = measure(volumes)
    np.testing.assert_allclose(found.mean[1:], mean[1:], rtol=0.02)
    np.testing.assert_allclose(found.sd[1:], sd[1:], rtol=0.2)
    np.testing.assert_allclose(found.tsnr[1:], (mean / sd)[1:], rtol=0.2)
    assert np.median(found.tsnr[1:] / (mean / sd)[1:]) == pytest.approx(1, abs=0.01)
    assert found.tsnr[0] == 0


def test_the_median_spread_of_a_part_is_in_percent_of_the_train_mean():
    rng = np.random.default_rng(0)
    volumes = 1000 + rng.standard_normal((N, 500)) * 10
    volumes[475:] = 1000 + (volumes[475:] - 1000) * 3
    found = quality.median_spread(volumes, {"train": TRAIN, "test": np.arange(475, N)}, train=TRAIN)
    assert found == pytest.approx({"train": 1.0, "test": 3.0}, rel=0.05)


def test_dvars_is_the_root_mean_square_change_in_percent(clean):
    found = measure(clean).volumes["dvars"]
    level = clean[TRAIN].mean()
    expected = [100 * np.sqrt(np.mean((clean[k].astype(float) - clean[k - 1]) ** 2)) / level for k in (1, 77, 640)]
    np.testing.assert_allclose(found[[1, 77, 640]], expected, rtol=1e-4)
    assert np.isnan(found[0])


def test_the_global_signal_is_the_mean_over_voxels_in_percent(clean):
    risen = clean.copy()
    risen[500:] *= 1.02
    signal = measure(risen).volumes["global_signal"]
    assert signal[TRAIN].mean() == pytest.approx(0, abs=1e-3)
    assert signal[500:].mean() - measure(clean).volumes["global_signal"][500:].mean() == pytest.approx(2, abs=0.01)


def test_the_carpet_is_ordered_and_small(clean):
    shared = clean.copy()
    wave = np.sin(TIMES / 9)
    shared[:, :500] *= 1 + 0.03 * wave[:, None].astype(np.float32)
    found = measure(shared).carpet
    assert found.shape == (quality.CARPET_ROWS, N)
    like = [np.corrcoef(row, wave)[0, 1] for row in found]
    assert np.mean(like[:25]) > 0.8 and np.mean(like[-60:]) < 0.2
    assert abs(found[:, TRAIN].mean()) < 0.01
    assert measure(clean[:, :6]).carpet.shape == (6, N)


# --- rhythms ----------------------------------------------------------------------------


def test_bad_volumes_do_not_hide_how_good_the_others_are(clean):
    spoilt = clean.copy()
    spoilt[200] *= 10
    spoilt[500] = 0
    before, after = measure(clean), measure(spoilt)
    np.testing.assert_allclose(after.tsnr, before.tsnr, rtol=0.02)
    np.testing.assert_allclose(after.mean, before.mean, rtol=1e-3)
    assert np.corrcoef(np.log(before.spectrum["power"]), np.log(after.spectrum["power"]))[0, 1] > 0.95
    kept = np.setdiff1d(np.arange(N), [200, 500])
    assert after.carpet[:, kept].std() == pytest.approx(before.carpet.std(), rel=0.1)
    np.testing.assert_allclose(after.volumes["dvars"][1:199], before.volumes["dvars"][1:199], rtol=1e-3)


@pytest.mark.parametrize(("rate", "shown"), [(72, 0.4447), (97.68, 1 / 60), (99.68, 1 / 60), (30, 0.5), (60, 0.6447)])
def test_a_heartbeat_shows_up_at_its_alias(clean, rate, shown):
    """Planted: a beat in every voxel, sampled at each volume's time; the peak lies at the folded frequency."""
    beating = clean * (1 + 0.004 * np.sin(2 * np.pi * rate / 60 * TIMES + 0.4))[:, None].astype(np.float32)
    assert float(quality.alias(rate / 60, T_R)) == pytest.approx(shown, abs=2e-4)
    peak = quality.peak_frequencies(measure(beating).spectrum, 1)[0]
    assert peak == pytest.approx(shown, abs=1 / (N * T_R))


@pytest.mark.parametrize("t_r", [0.608, 1.0, 2.0, 0.72])
@pytest.mark.parametrize("limits", [quality.HEART, quality.BREATHING])
def test_rates_onto_a_frequency_are_all_those_that_fold_there(t_r, limits):
    """Independent oracle: every rate tried, sampled, and compared with the block's own sine."""
    found = quality.rates_onto(1 / 60, t_r, limits)
    assert all(limits[0] <= rate <= limits[1] for rate in found)
    tried = np.arange(60 * limits[0], 60 * limits[1] + 1) / 60  # steps of one per hour
    there = tried[np.abs(quality.alias(tried / 60, t_r) - 1 / 60) < 0.5 / 3600]
    assert len(there) == len(found)
    np.testing.assert_allclose(there, found, atol=1 / 60)


def test_at_this_repetition_time_two_heart_rates_and_no_breathing_look_like_the_blocks():
    assert quality.rates_onto(1 / 60, 0.608, quality.HEART) == pytest.approx([60 / 0.608 - 1, 60 / 0.608 + 1])
    assert quality.rates_onto(1 / 60, 0.608, quality.BREATHING) == []


def test_the_spectrum_has_the_signals_power():
    wave = 0.5 * np.sin(2 * np.pi * 0.2 * TIMES)
    made = quality.spectrum(wave + 0.001 * TIMES, T_R)
    step = made["frequency"][1] - made["frequency"][0]
    assert made["power"].sum() * step == pytest.approx(0.5**2 / 2, rel=0.05)


# --- of a subject -----------------------------------------------------------------------


def test_a_subjects_quality_is_measured_once_and_written(small_params, monkeypatch):
    subject = workflow.open_subject(small_params())
    first = workflow.ensure_quality(subject)
    assert first.found.empty, first.found  # clean SIMULATED data
    assert first.volumes["framewise_displacement"].mean() < 0.15  # a small head at rest
    monkeypatch.setattr(quality, "scan_quality", lambda *a, **k: pytest.fail("measured twice"))
    second = workflow.ensure_quality(subject)
    pd.testing.assert_frame_equal(first.volumes, second.volumes)
    np.testing.assert_array_equal(first.tsnr, second.tsnr)
    (path,) = subject.params.subject_path.glob("*_desc-quality_timeseries.tsv")
    written = pd.read_csv(path, sep="\t")
    assert list(written.columns) == list(quality.COLUMNS) == list(first.volumes.columns)
    assert len(written) == 641 and path.with_suffix(".json").is_file()


def test_times_are_on_the_clock_of_a_run_whose_slices_were_moved(small_params):
    subject = workflow.open_subject(small_params())
    raw = workflow.ensure_quality(subject).volumes["time"]
    files = replace(subject.run.files, start=0.304)  # StartTime of a preprocessed run
    moved = workflow.ensure_quality(replace(subject, run=replace(subject.run, files=files))).volumes["time"]
    np.testing.assert_allclose(raw, subject.run.files.volume_times)
    np.testing.assert_allclose(moved, files.volume_times)


def test_quality_is_of_the_scan_as_it_came(small_params):
    plain, cleaned = (workflow.open_subject(small_params(confounds=c)) for c in ([], ["drift"]))
    first, second = workflow.ensure_quality(plain), workflow.ensure_quality(cleaned)
    np.testing.assert_array_equal(first.sd, second.sd)
    assert workflow.cleaning_effect(plain) is None
    effect = workflow.cleaning_effect(cleaned)
    assert effect["after"]["train"] < effect["before"]["train"]
    assert effect["columns"] == 3 and 0 < effect["blocks"] < 0.1


def test_a_list_of_regions_has_a_quality_without_motion(shared, tmp_path):
    from bold_audio.params import load_params

    folders = {"data_dir": str(shared / "realdata" / "alice"), "outputs_dir": str(tmp_path)}
    subject = workflow.open_subject(load_params("18", "alice", **folders))
    found = workflow.ensure_quality(subject)
    assert found.volumes[list(motion.NAMES)].isna().all(axis=None)
    assert found.carpet.shape[0] == 6
    assert workflow.motion_with_blocks(subject, found) is None


def test_a_real_scan_begins_with_an_outlier_and_then_lies_still(shared, tmp_path):
    """One-back: the second volume is brighter than the rest; the head drifts half a millimetre in five minutes."""
    from bold_audio.params import load_params

    folders = {"data_dir": str(shared / "realdata" / "oneback"), "outputs_dir": str(tmp_path)}
    params = load_params("02", "oneback", **folders)
    files, train = locate_runs(params), np.arange(10, 100)
    run = data.load_run(files, params, train=train)
    moved = motion.cached_motion(files, params.cache_path, train=train)
    found = quality.scan_quality(run.volumes, t_r=files.t_r, train=train, moved=moved)
    assert dict(found.found["finding"]) == {1: "outlier: 6 % of the voxels"}
    assert 0.3 < np.abs(moved[:, :3]).max() < 0.8
    assert 0.1 < found.volumes["framewise_displacement"].mean() < 0.2
    assert 60 < np.median(found.tsnr) < 120
