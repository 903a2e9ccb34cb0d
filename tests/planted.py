"""A subject made in memory: a few dozen voxels, some of which follow a sound after 5 s. No files, no head."""

from types import SimpleNamespace

import numpy as np
from scipy.signal import lfilter

from bold_audio import pairing, prepare, splits
from bold_audio.features import SoundFeatures

T_R, N_VOLUMES, DELAY = 1.0, 420, 5.0
DELAYS = (3.0, 4.0, 5.0, 6.0, 7.0)
ALPHAS = (1.0, 10.0, 100.0, 1000.0, np.inf)


def make_sound(rng, n_features=3, *, memory=0.93):
    """Features with memory, ten frames per second; the run starts 20 s into the sound."""
    frames = lfilter([1], [1, -memory], rng.normal(size=(10 * (N_VOLUMES + 20), n_features)), axis=0)
    names = tuple(f"mfcc{k}" for k in range(n_features))
    return SoundFeatures(frames, np.arange(len(frames)) * 0.1, names, len(frames) / 10, "made up")


def make_subject(Y, sound, *, blocks=None, regions=None, **given):
    """A `prepare.Subject` of these volumes, array of shape (n_volumes, n_voxels)."""
    times = 20 + np.arange(len(Y)) * T_R
    known = {
        "alphas": ALPHAS, "history_order": 2, "history_components": 0, "n_folds": 4, "gap": 12.0, "delays": DELAYS,
        "delay_region": "responsive", "chunk_voxels": 512, "response": "delay", "sound_lags": 0,
        "feature_source": "audio", "annotation_tables": [], "dataset": "made_up",
    } | given  # fmt: skip
    params = SimpleNamespace(**known)
    everywhere = {"brain": np.ones(Y.shape[1], bool)}
    part = SimpleNamespace(sound_times=times, heard=len(Y) * T_R)
    files = SimpleNamespace(t_r=T_R, starts=np.array([0]), parts=[part])
    run = SimpleNamespace(
        volumes=Y, n_voxels=Y.shape[1], regions=everywhere | (regions or {}), files=files, value_range=(0.0, 1000.0)
    )
    split = splits.split_volumes(len(Y), T_R, skip_initial=10, train_fraction=0.7, gap=params.gap)
    folds = splits.blocked_folds(split.train, n_folds=params.n_folds, gap_volumes=int(params.gap))
    designs = {name: pairing.make_design(sound, times, T_R) for name in ("sound", "zero")}
    if blocks is not None:
        designs["blocks"] = pairing.make_design(blocks, times, T_R)
    return prepare.Subject(params, run, sound, blocks, split, folds, designs)


def heard(sound, delay=DELAY):
    """What each volume hears at a delay, standardised over the run: array of shape (n_volumes, n_features)."""
    times = 20 + np.arange(N_VOLUMES) * T_R
    x = pairing.delay_features(sound.frames, sound.frame_times, times, delay=delay, window=T_R)
    return (x - x.mean(axis=0)) / x.std(axis=0)


def noise(rng, n_voxels, rho=0.5, n=N_VOLUMES):
    """First-order autoregressive noise, one column per voxel."""
    return lfilter([1], [1, -rho], rng.normal(size=(n + 100, n_voxels)), axis=0)[100:]


def raw(y, rng):
    """Raw-looking intensities: each voxel has a level and a loudness of its own."""
    return (700 + 200 * rng.random(y.shape[1]) + rng.uniform(2, 10, y.shape[1]) * y).astype(np.float32)


def planted_subject(seed=0, *, n_voxels=60, n_planted=12, strength=0.7, **given):
    """Noise, and in the first voxels the sound after 5 s."""
    rng = np.random.default_rng(seed)
    sound, y = make_sound(rng), noise(rng, n_voxels)
    y[:, :n_planted] += strength * heard(sound) @ rng.normal(size=(3, n_planted))
    at = np.arange(n_voxels)
    regions = {"planted": at < n_planted, "silent": at >= n_planted}
    return make_subject(raw(y, rng), sound, regions=regions, **given)
