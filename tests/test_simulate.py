"""The simulated subject has the answer that its truth files claim, and looks like a scan of ds003688."""

import functools
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import soundfile
from nilearn.glm.first_level import glover_hrf
from scipy.fft import dct

import bold_audio.simulate as simulate
from bold_audio import bids, film, prepare
from bold_audio.features import mfcc_features
from bold_audio.files import DataError, ParameterError, file_md5
from bold_audio.film import T_R, add_signal, best_single_delays, film_blocks, film_sound, planted_responses
from bold_audio.params import load_params
from bold_audio.simulate import (
    MFCC,
    head_motion,
    simulate_subject,
    simulated_head,
    simulated_volumes,
    smooth_noise,
    write_film,
)
from bold_audio.truth import planted_delays

TINY = {"shape": (10, 12, 12), "n_volumes": 60}
NOISE = {"ar_rho": 0.85, "ar_share": 0.6, "drift": 0.0, "fwhm": 6.0}


def truth_of(bold):
    """Read truth.json, the maps it names and the noiseless responses of the scan at ``bold``."""
    label = bold.name.split("_")[0]
    folder = bold.parents[3] / "derivatives" / "truth" / label
    truth = json.loads((folder / "truth.json").read_text())
    maps = {k: nib.load(folder / truth["files"][k]) for k in ("r2", "regions", "brain")}
    return truth, maps, pd.read_csv(folder / truth["files"]["responses"], sep="\t").to_numpy()


def volumes_of(bold):
    return np.asarray(nib.load(bold).dataobj)


@pytest.fixture(scope="module")
def strong(tmp_path_factory):
    """Two SIMULATED subjects who share a film and follow it closely: ``delay`` and ``hrf``."""
    root = tmp_path_factory.mktemp("strong")
    settings = {"shape": (10, 12, 12), "n_volumes": 150, "strength": 0.9, "drift": 0.0, "fwhm": 0.0}
    return {kind: simulate_subject(root, subject=kind, response=kind, **settings) for kind in ("delay", "hrf")}


@pytest.fixture
def full(sim_dir):
    """The scan of the small head with all 641 volumes."""
    return sim_dir / "sub-sim/ses-mri3t/func/sub-sim_ses-mri3t_task-film_run-1_bold.nii.gz"


# ---- what is planted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["delay", "hrf"])
def test_planted_delay_is_in_the_scan(strong, kind):
    truth, maps, _ = truth_of(strong[kind])
    scan, regions = volumes_of(strong[kind]), np.asarray(maps["regions"].dataobj)
    sound = mfcc_features(strong[kind].parents[3] / "stimuli/film.wav", **MFCC)
    z = (sound.frames - sound.frames.mean(axis=0)) / sound.frames.std(axis=0)
    step, delays = sound.frame_times[1], np.arange(3.0, 9.0, 0.1)
    for region in truth["regions"]:
        course, times = z @ region["weights"], sound.frame_times
        if kind == "hrf":
            kernel = glover_hrf(step, oversampling=1, time_length=32.0)
            course = np.convolve(course, kernel)
            times = step * (np.arange(len(course)) - kernel.argmax())
        seen = scan[regions == region["label"]].mean(axis=0)
        rows = []
        for delay in delays:  # the slow way: frames whose centres lie in each volume's window
            starts = np.arange(30, 150) * T_R - delay
            rows.append([course[(times >= s) & (times < s + T_R)].mean() for s in starts])
        r = [np.corrcoef(row, seen[30:])[0, 1] for row in rows]
        assert max(r) > 0.8
        assert delays[np.argmax(r)] == pytest.approx(region["delay"], abs=0.16)


def test_r2_is_the_share_that_the_sound_causes():
    rng = np.random.default_rng(3)
    responses = rng.standard_normal((200, 2)).cumsum(axis=0)
    responses = (responses - responses.mean(axis=0)) / responses.std(axis=0)
    noise = rng.standard_normal((200, 6)).cumsum(axis=0) * 3 + 7  # slow, so that noise and sound correlate by chance
    r2, region = np.array([0, 0.01, 0.25, 0.25, 0.6, 0.95]), np.array([0, 1, 2, 1, 2, 1])
    total = noise.copy()
    add_signal(total, responses, r2=r2, region=region)
    assert total.mean(axis=0) == pytest.approx(0, abs=1e-9)
    for v in range(6):
        parts = np.column_stack([noise[:, v] - noise[:, v].mean(), responses[:, region[v] - 1]])
        (of_noise, of_sound), rest, *_ = np.linalg.lstsq(parts, total[:, v])
        assert rest == pytest.approx(0, abs=1e-9)
        assert of_noise > 0
        assert of_sound >= -1e-12
        assert of_sound**2 / total[:, v].var() == pytest.approx(r2[v], abs=1e-9)


@pytest.mark.slow
def test_r2_map_is_what_the_scan_shows(strong):
    _, maps, responses = truth_of(strong["hrf"])
    r2, regions, brain = (np.asarray(maps[k].dataobj) for k in ("r2", "regions", "brain"))
    scan = volumes_of(strong["hrf"]).astype(float)
    assert r2.max() == pytest.approx(0.9)
    assert np.array_equal(r2 > 0, regions > 0)
    assert set(np.unique(regions)) == {0, 1, 2}
    assert brain[regions > 0].all()
    for label in (1, 2):
        inside = regions == label
        assert inside.sum() >= 10
        seen = [np.corrcoef(v, responses[:, label - 1])[0, 1] ** 2 for v in scan[inside]]
        assert np.abs(seen - r2[inside]).mean() < 0.12
        silent = [np.corrcoef(v, responses[:, label - 1])[0, 1] ** 2 for v in scan[(brain > 0) & (r2 == 0)]]
        assert np.mean(silent) < 0.1


@pytest.mark.slow
def test_null_plants_nothing_and_the_rest_is_the_same_noise(tmp_path):
    planted = simulate_subject(tmp_path / "a", strength=0.5, **TINY)
    null = simulate_subject(tmp_path / "b", null=True, **TINY)
    truth, maps, _ = truth_of(null)
    r2 = np.asarray(truth_of(planted)[1]["r2"].dataobj)
    assert truth["settings"]["null"] is True
    assert not np.any(maps["r2"].dataobj)
    assert [region["delay"] for region in truth["regions"]] == [None, None]
    assert truth["pooled"] == {"delay": None, "best_single_delay": {"delay": None, "hrf": None, "fir": None}}
    same = (volumes_of(planted) == volumes_of(null)).all(axis=-1)
    assert same[r2 == 0].all()
    assert not same[r2 > 0.05].any()


@pytest.mark.slow
def test_nonlinear_regions_answer_above_a_threshold_only(tmp_path):
    """One curve, the definition's, takes the linear response to the non-linear one; no straight line does."""
    linear = simulate_subject(tmp_path / "a", response="delay", **TINY)
    bent = simulate_subject(tmp_path / "b", response="delay", nonlinear=True, **TINY)
    (truth, _, above), (plain, _, below) = truth_of(bent), truth_of(linear)
    curve = 1 / (1 + np.exp(6 - 6 * below))
    np.testing.assert_allclose(above, (curve - curve.mean(axis=0)) / curve.std(axis=0), atol=1e-4)
    for x, y in zip(below.T, above.T, strict=True):
        assert 0.5 < np.corrcoef(x, y)[0, 1] < 0.95
    assert truth["settings"]["nonlinear"] is True and plain["settings"]["nonlinear"] is False
    # The delay is the planted one with features made as planted; a linear fit of other features need not find it.
    assert [region["best_single_delay"] for region in truth["regions"]] == [
        {"delay": delay, "hrf": None, "fir": None} for delay in (5.0, 6.5)
    ]
    assert truth["pooled"]["best_single_delay"] == {"delay": None, "hrf": None, "fir": None}
    assert 5.0 < truth["pooled"]["delay"] < 6.5


def test_best_single_delay_of_a_pure_delay_is_that_delay(strong):
    truth = truth_of(strong["delay"])[0]
    assert [region["best_single_delay"]["delay"] for region in truth["regions"]] == [5.0, 6.5]
    truth = truth_of(strong["hrf"])[0]
    assert [region["best_single_delay"]["hrf"] for region in truth["regions"]] == [5.0, 6.5]
    assert 5.0 <= truth["pooled"]["best_single_delay"]["hrf"] <= 6.5
    assert 5.0 < truth["pooled"]["delay"] < 6.5


def test_pooled_delay_follows_the_region_with_more_signal():
    rng = np.random.default_rng(0)
    frames, times = rng.standard_normal((6000, 3)), np.arange(6000) * 0.02
    settings = {"weights": rng.standard_normal((3, 2)), "response": "delay", "n_volumes": 190}
    responses = planted_responses(frames, times, delays=(3.0, 7.0), **settings)
    for power, pooled in (((5.0, 1.0), 3.0), ((1.0, 5.0), 7.0)):
        assert best_single_delays(frames, times, responses, power=np.array(power)) == [3.0, 7.0, pooled]


# ---- the noise


def test_silent_voxels_have_the_declared_autocorrelation():
    noise = smooth_noise(np.random.default_rng(0), keep=np.ones((14, 14, 14), bool), n_volumes=1500, **NOISE)
    assert noise.var() == pytest.approx(1, abs=0.03)
    lags = [np.mean(noise[lag:] * noise[:-lag]) / noise.var() for lag in (1, 2, 4)]
    assert lags == pytest.approx([0.6 * 0.85, 0.6 * 0.85**2, 0.6 * 0.85**4], abs=0.03)


@pytest.mark.parametrize("fwhm", [0.0, 6.0, 9.0])
def test_silent_voxels_are_as_smooth_as_declared(fwhm):
    noise = smooth_noise(
        np.random.default_rng(1), keep=np.ones((14, 14, 14), bool), n_volumes=100, **NOISE | {"fwhm": fwhm}
    )
    cube = noise.reshape(-1, 14, 14, 14)
    assert noise.var() == pytest.approx(1, abs=0.1)
    taps = np.exp(-4 * np.log(2) * (4.0 * np.arange(-6, 7)) ** 2 / max(fwhm, 1e-3) ** 2)
    expected = np.sum(taps[1:] * taps[:-1]) / np.sum(taps**2)
    for axis in (1, 2, 3):
        assert np.mean(cube * np.roll(cube, 1, axis=axis)) / noise.var() == pytest.approx(expected, abs=0.04)


def test_drift_is_slow_and_has_the_declared_size():
    keep = np.ones((20, 20, 20), bool)
    plain, drifting = (
        smooth_noise(np.random.default_rng(2), keep=keep, n_volumes=90, **NOISE | {"drift": size}) for size in (0, 2)
    )
    drift = drifting - plain
    assert np.sqrt((drift**2).mean()) == pytest.approx(2, rel=0.3)
    spectrum = (dct(drift, axis=0) ** 2).mean(axis=1)
    assert spectrum[1:4].sum() > 0.999 * spectrum.sum()
    assert np.all(np.diff(spectrum[1:4]) < 0)


def test_a_moving_head_is_where_its_motion_says():
    middle, spot = np.array([7.5, 8.5, 9.5]), np.array([11, 6, 12])
    image = np.zeros((16, 18, 20), dtype=np.float32)
    image[tuple(spot)] = 1000
    motion = np.zeros((4, 6))
    motion[1:, 0] = 6.0  # mm along x
    motion[2:, 1:3] = 2.0, -4.0
    motion[3, 5] = 0.3  # radians about z
    seen = simulated_volumes(
        np.random.default_rng(0), image, 0 * image, np.zeros((4, 1), np.float32), motion=motion, thermal=0.0
    )
    centres = [
        np.average(np.indices(image.shape).reshape(3, -1), axis=1, weights=v.ravel()) for v in np.moveaxis(seen, -1, 0)
    ]
    c, s = np.cos(0.3), np.sin(0.3)
    turned = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ (spot - middle) + middle
    assert centres[0] == pytest.approx(spot, abs=1e-6)
    assert centres[1] == pytest.approx(spot + [1.5, 0, 0], abs=0.05)
    assert centres[2] == pytest.approx(spot + [1.5, 0.5, -1], abs=0.05)
    assert centres[3] == pytest.approx(turned + [1.5, 0.5, -1], abs=0.15)


def test_motion_is_slow_starts_at_rest_and_reaches_its_size():
    motion = head_motion(np.random.default_rng(0), 300, 1.5)
    assert not motion[0].any()
    assert np.abs(motion[:, :3]).max() == pytest.approx(1.5)
    assert np.abs(motion[:, 3:]).max() == pytest.approx(1.5 / 80)
    assert np.abs(np.diff(motion[:, :3], axis=0)).max() < 0.15


# ---- how it looks


@pytest.mark.slow
def test_events_and_sidecar_are_those_of_the_real_dataset(full, shared):
    real = shared / "ds003688/sub-09/ses-mri3t/func/sub-09_ses-mri3t_task-film_run-1_bold.nii.gz"
    events, sidecar = (full.with_name(full.name.replace("bold.nii.gz", end)) for end in ("events.tsv", "bold.json"))
    assert (
        events.read_text().split() == real.with_name(real.name.replace("bold.nii.gz", "events.tsv")).read_text().split()
    )
    made = json.loads(sidecar.read_text())
    known = json.loads(real.with_name(real.name.replace("bold.nii.gz", "bold.json")).read_text())
    same = {"RepetitionTime", "TaskName", "MRAcquisitionType"}
    assert {k: made[k] for k in same} == {k: known[k] for k in same}
    assert set(made) <= set(known)
    assert all("SIMULATED" in made[k] for k in set(made) - same)


@pytest.mark.slow
def test_header_is_that_of_a_scan_in_scanner_space(full):
    image = nib.load(full)
    assert image.shape == (18, 22, 22, 641)
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms() == pytest.approx((4, 4, 4, 0.608))
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert b"SIMULATED" in image.header["descrip"].tobytes()
    _, maps, _ = truth_of(full)
    assert all(np.array_equal(m.affine, image.affine) and m.shape == image.shape[:3] for m in maps.values())


@pytest.mark.slow
def test_left_is_left(full):
    _, maps, _ = truth_of(full)
    regions = np.asarray(maps["regions"].dataobj)
    left, right = (
        nib.affines.apply_affine(maps["regions"].affine, np.argwhere(regions == k)).mean(axis=0) for k in (1, 2)
    )
    assert left[0] < -10
    assert right[0] > 10


@pytest.mark.slow
def test_intensities_are_those_of_a_raw_scan(full):
    scan, (_, maps, _) = volumes_of(full), truth_of(full)
    brain = np.asarray(maps["brain"].dataobj) > 0
    mean, sd = scan.mean(axis=-1), scan.std(axis=-1)
    assert scan.min() >= 0
    assert scan.max() < 2000
    assert 850 < np.median(mean[brain]) < 1000
    assert np.percentile(mean[brain], 95) - np.percentile(mean[brain], 5) > 150
    assert 0 < np.median(mean[:2]) < 20  # air
    assert np.percentile(100 * sd[brain] / mean[brain], [1, 99]) == pytest.approx([1, 1.5], abs=0.03)


def test_full_size_head_has_a_brain_of_human_size():
    image, brain, distances, affine = simulated_head(np.random.default_rng(0))
    assert 20_000 <= brain.sum() <= 25_000
    spheres = [4 / 3 * np.pi * (radius / 4) ** 3 for _, radius in simulate.REGIONS.values()]
    inside = ((distances < 1) & brain).sum(axis=(1, 2, 3)) / spheres
    assert np.all((inside > 0.7) & (inside < 1.05))
    centres = [nib.affines.apply_affine(affine, np.argwhere(d == 0)[0]) for d in distances]
    assert centres[0][0] < -40 < 40 < centres[1][0]
    assert image[brain].min() > 200


# ---- the film


def test_blocks_alternate_and_end_with_the_film():
    blocks = film_blocks(389.728)
    assert [kind for *_, kind in blocks] == ["music", "speech"] * 6 + ["music"]
    assert [onset for onset, *_ in blocks] == [30.0 * k for k in range(13)]
    assert [length for _, length, _ in blocks] == pytest.approx([30.0] * 12 + [29.728])
    for n_volumes in (50, 60, 150, 198, 400):
        blocks = film_blocks(n_volumes * T_R)
        assert {kind for *_, kind in blocks} == {"music", "speech"}
        assert sum(blocks[-1][:2]) == pytest.approx(n_volumes * T_R)
        assert min(length for _, length, _ in blocks) > 1


@pytest.mark.slow
def test_reels_of_a_long_film_are_films_with_the_blocks_of_the_whole(monkeypatch):
    monkeypatch.setattr(film, "REEL", 120)
    first, last = film.film_reels(290.0, seed=3)
    np.testing.assert_array_equal(first, film_sound(120, seed=3))
    assert len(first) + len(last) == round(290.0 * film.SAMPLE_RATE)
    assert np.abs(np.corrcoef(first[: len(last)], last[: len(first)])[0, 1]) < 0.1, "no reel is shown twice"
    later = [(120 + onset, length, kind) for onset, length, kind in film_blocks(170.0)]
    assert [*film_blocks(120.0), *later] == film_blocks(290.0)
    (whole,) = film.film_reels(40.5, seed=3)
    np.testing.assert_array_equal(whole, film_sound(40.5, seed=3))


@pytest.mark.slow
def test_film_sounds_like_music_and_speech_in_turn(sim_dir):
    y, rate = soundfile.read(sim_dir / "stimuli/film.wav", dtype="float32")
    info = soundfile.info(sim_dir / "stimuli/film.wav")
    assert (rate, info.channels, info.subtype, info.frames) == (44100, 1, "PCM_16", round(389.728 * 44100))
    loudness = 20 * np.log10(np.sqrt(np.mean(y[: len(y) // 441 * 441].reshape(-1, 441) ** 2, axis=1)) + 1e-6)
    times = (np.arange(len(loudness)) + 0.5) * 0.01
    speech = times // 30 % 2 == 1
    pauses = [np.mean(loudness[part] < -40) for part in (speech, ~speech)]
    assert pauses[0] > 0.15  # speech pauses,
    assert pauses[1] < 0.05  # music goes on
    spectrum = np.abs(np.fft.rfft(loudness[:36000].reshape(12, 3000)[1::2], axis=1)) ** 2
    rate_of = np.fft.rfftfreq(3000, 0.01)
    syllables, faster = ((rate_of > low) & (rate_of < high) for low, high in ((2.5, 7), (10, 30)))
    assert spectrum[:, syllables].mean() > 10 * spectrum[:, faster].mean()


@pytest.mark.slow
def test_sound_changes_within_the_blocks(sim_dir):
    sound = mfcc_features(sim_dir / "stimuli/film.wav", **MFCC)
    heard = np.array([sound.frames[(sound.frame_times // T_R) == k].mean(axis=0) for k in range(640)])
    block = (np.arange(640) * T_R) // 30
    within = np.sqrt(np.mean([heard[block == b].var(axis=0) for b in range(13)], axis=0))
    assert np.all(within > 0.6 * heard.std(axis=0))
    r = [np.mean((heard[lag:] - heard.mean(axis=0)) * (heard[:-lag] - heard.mean(axis=0)), axis=0) for lag in (1, 8)]
    assert np.all(r[0] / heard.var(axis=0) > 0.3)  # not a new sound every volume,
    assert np.all(r[1] / heard.var(axis=0) < 0.6)  # nor the same for 5 s


def test_speech_follows_given_syllables():
    syllables = [("sa", 10.0, 10.2), ("tin", 10.2, 10.45), ("mo", 11.5, 11.8), ("é'", 12.5, 12.7)]
    y = film_sound(40.0, syllables=syllables) / 32768
    level = np.sqrt(np.mean(y[: 4000 * 441].reshape(-1, 441) ** 2, axis=1))
    inside = np.concatenate([level[int(a * 100) + 3 : int(b * 100)] for _, a, b in syllables])
    outside = level[[*range(1060, 1140), *range(1195, 1240), *range(1300, 1900)]]
    assert np.median(inside) > 10 * outside.max()


@pytest.mark.slow
def test_annotated_film_leaves_out_syllables_after_its_end(tmp_path):
    table = tmp_path / "sound_annotation_syllables.tsv"
    table.write_text("item\tonset\toffset\npi\t12.0\t12.3\nwil\t36.4\t36.9\nje\t99.0\t99.2\n")
    facts = write_film(tmp_path / "film.wav", seed=0, n_volumes=60, annotations=table)
    y, _ = soundfile.read(tmp_path / "film.wav")
    sounds = film_sound(60 * T_R, syllables=[("pi", 12.0, 12.3)]) / 32768
    assert np.abs(y - sounds).max() < 1e-4
    assert facts["annotations_md5"] == file_md5(table)


# ---- the files


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes(tmp_path):
    first, second, other = (tmp_path / name for name in "abc")
    for root, seed in ((first, 0), (second, 0), (other, 1)):
        simulate_subject(root, seed=seed, motion=0.5, **TINY)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 19
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        if name.suffix == ".gz":
            assert (first / name).read_bytes()[3:8] == bytes(5), "file name or time in the gzip header"
    motion = pd.read_csv(next(first.rglob("*_desc-motion_timeseries.tsv")), sep="\t")
    assert list(motion) == ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    assert motion.iloc[:, :3].abs().to_numpy().max() == pytest.approx(0.5)
    bold = next(name for name in files if name.name.endswith("bold.nii.gz"))
    assert (first / bold).read_bytes() != (other / bold).read_bytes()
    assert (first / "stimuli/film.wav").read_bytes() == (other / "stimuli/film.wav").read_bytes()


@pytest.mark.slow
def test_two_subjects_share_the_film_and_most_of_their_tuning(strong, tmp_path, monkeypatch):
    root = strong["hrf"].parents[3]
    people = pd.read_csv(root / "participants.tsv", sep="\t")
    assert list(people["participant_id"]) == ["sub-delay", "sub-hrf"]
    one, two = (truth_of(strong[kind])[0] for kind in ("delay", "hrf"))
    assert one["film"] == two["film"]
    weights = [np.ravel([region["weights"] for region in truth["regions"]]) for truth in (one, two)]
    assert 0.3 < np.corrcoef(weights)[0, 1] < 0.95
    assert not np.array_equal(volumes_of(strong["delay"])[0, 0, 0], volumes_of(strong["hrf"])[0, 0, 0])

    root = shutil.copytree(root, tmp_path / "strong")  # the scan is replaced, and other tests look at it
    monkeypatch.setattr(simulate, "film_sound", lambda *_, **__: pytest.fail("the film is there already"))
    simulate_subject(root, subject="hrf", shape=(10, 12, 12), n_volumes=150, strength=0.9, drift=0.0)
    assert len(pd.read_csv(root / "participants.tsv", sep="\t")) == 2


@pytest.mark.slow
def test_interrupted_run_leaves_no_scan(tmp_path, monkeypatch):
    bold = simulate_subject(tmp_path, **TINY)
    write = simulate.write_nifti

    def stop(path, *args):
        if path.name.endswith("bold.nii.gz"):
            raise KeyboardInterrupt
        write(path, *args)

    monkeypatch.setattr(simulate, "write_nifti", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate_subject(tmp_path, seed=1, **TINY)
    assert not bold.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subject": "a_b"}, "subject must be letters and digits, got 'a_b'"),
        ({"subject": ""}, "subject must be"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"film_seed": 0.5}, "film_seed must be a whole number"),
        ({"n_volumes": 49}, "n_volumes must be a whole number >= 50, got 49"),
        ({"n_volumes": True}, "n_volumes must be a whole number"),
        ({"shape": (10, 12)}, r"shape must be three whole numbers >= 10, got \(10, 12\)"),
        ({"shape": (9, 12, 12)}, "shape must be three"),
        ({"delays": (5.0,)}, "delays must be two numbers from 0 to 12 s"),
        ({"delays": (5.0, 13.0)}, "delays must be two"),
        ({"response": "HRF"}, "response must be delay or hrf, got 'HRF'"),
        ({"strength": 0}, "strength must be above 0"),
        ({"strength": 1.0}, "strength must be above 0 and at most 0.99"),
        ({"motion": -0.1}, "motion must be from 0"),
        ({"motion": float("nan")}, "motion must be from 0"),
        ({"ar_rho": 1.0}, "ar_rho must be"),
        ({"ar_share": 1.1}, "ar_share must be"),
        ({"drift": -1}, "drift must be"),
        ({"fwhm": 41}, "fwhm must be"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, given, message):
    with pytest.raises(ParameterError, match=message) as error:
        simulate_subject(tmp_path / "new", **TINY | given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_other_datasets_and_other_films_are_left_alone(strong, tmp_path):
    root = strong["hrf"].parents[3]
    with pytest.raises(ParameterError, match="n_volumes must be 150 as in the film"):
        simulate_subject(root, **TINY)
    with pytest.raises(ParameterError, match="seed must be 0 as in the film"):
        simulate_subject(root, film_seed=1, shape=(10, 12, 12), n_volumes=150)
    assert strong["hrf"].is_file()

    real = tmp_path / "dataset_description.json"
    real.write_text('{"Name": "Open multimodal iEEG-fMRI dataset"}')
    with pytest.raises(ParameterError, match="data_dir must be new or hold simulated data"):
        simulate_subject(tmp_path, **TINY)
    assert "SIMULATED" not in real.read_text()


@pytest.mark.slow
def test_damaged_film_and_missing_annotations_are_named(tmp_path):
    simulate_subject(tmp_path, **TINY)
    film = tmp_path / "stimuli/film.wav"
    film.write_bytes(film.read_bytes()[:-1000])
    with pytest.raises(DataError, match="is not the film that film.json describes"):
        simulate_subject(tmp_path, **TINY)
    with pytest.raises(DataError, match="table not found"):
        simulate_subject(tmp_path / "b", annotations=tmp_path / "no.tsv", **TINY)


# ---- a subject that is missing is made once, and whole


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Parameters of a SIMULATED subject that is not there yet, of a size that takes no time."""
    monkeypatch.setattr(simulate, "simulate_subject", functools.partial(simulate_subject, **TINY))
    return load_params("sim", data_dir=str(tmp_path / "data"), outputs_dir=str(tmp_path / "outputs"))


def bytes_of(folder):
    """Content of every file by name, but for lock files, which have none."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"
    }


@pytest.mark.slow
@pytest.mark.parametrize("at", ["smooth_noise", "film_sound", "scan"])
def test_a_simulation_that_was_stopped_is_made_whole_by_the_next_who_asks(asked, tmp_path, monkeypatch, at):
    """Stopped while it computes, before anything of the subject is there, and while it writes the scan."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        if at == "scan":  # what a killed process leaves of a file that it was writing
            stopped.setattr(simulate, "write_run", stop)
        else:
            stopped.setattr(simulate, at, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare.ensure_scan(asked)
    scan = simulate.scan_path(asked.data_path, "sim")
    assert not scan.exists() and bids.known_subjects(asked) == ([] if at == "film_sound" else ["sim"])
    if at == "scan":
        left = scan.parent / f".{scan.name}.abc.part"
        left.mkdir(parents=True)
        (left / scan.name).write_bytes(b"half")
    assert prepare.ensure_scan(asked).n_volumes == TINY["n_volumes"]
    simulate_subject(tmp_path / "plain", **TINY)
    assert bytes_of(asked.data_path) == bytes_of(tmp_path / "plain")


@pytest.mark.slow
def test_who_asks_for_a_simulation_under_way_waits_for_it(asked, monkeypatch):
    begun, go_on, made = threading.Event(), threading.Event(), []

    def slow(*given, **how):
        made.append(1)
        begun.set()
        assert go_on.wait(60)
        return smooth_noise(*given, **how)

    monkeypatch.setattr(simulate, "smooth_noise", slow)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(prepare.ensure_scan, asked)
        assert begun.wait(60) and bids.known_subjects(asked) == ["sim"]
        others = [
            pool.submit(prepare.ensure_scan, asked),
            pool.submit(simulate_subject, asked.data_path, **TINY, only_missing=True),
        ]
        try:
            assert not wait(others, timeout=1).done
        finally:
            go_on.set()
        assert first.result().n_volumes == others[0].result().n_volumes == TINY["n_volumes"]
    assert others[1].result() == simulate.scan_path(asked.data_path, "sim") and len(made) == 1


def test_nobody_is_simulated_into_a_tree_of_others_or_of_real_people(asked, monkeypatch):
    monkeypatch.setattr(simulate, "simulate_subject", lambda *_, **__: pytest.fail("simulated"))
    anat = asked.data_path / "sub-sim/anat"
    anat.mkdir(parents=True)
    with pytest.raises(DataError, match="sub-sim is not there"):  # a real subject without a scan
        prepare.ensure_scan(asked)
    described = {"Name": simulate.DATASET_NAME}
    (asked.data_path / "dataset_description.json").write_text(json.dumps(described))
    (asked.data_path / "sub-other").mkdir()
    with pytest.raises(DataError, match="sub-sim is not there"):
        prepare.ensure_scan(asked)
    (asked.data_path / "sub-other").rmdir()
    scan = simulate.scan_path(asked.data_path, "sim")
    scan.parent.mkdir(parents=True)
    scan.with_name(scan.name.replace("run-1", "run-2")).touch()
    with pytest.raises(DataError):  # of more runs than one: with which settings, only its maker knows
        prepare.ensure_scan(asked)


@pytest.mark.slow
def test_delays_of_the_planted_regions_are_known_and_real_data_have_none(small_params, tmp_path):
    assert sorted(planted_delays(small_params()).values()) == [5.0, 6.5]
    assert planted_delays(small_params(data_dir=str(tmp_path / "real"))) == {}
