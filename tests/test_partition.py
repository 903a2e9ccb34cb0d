"""Variance partition: inclusion and exclusion by brute force, and planted unique and shared contributions."""

from itertools import combinations

import numpy as np
import pytest
from planted import ALPHAS, DELAYS, heard, make_sound, make_subject, noise, raw

from bold_audio import delays, nested, partition
from bold_audio.features import SoundFeatures


def blocks_of(sound, *, length=15.0):
    """A boxcar that changes every ``length`` s."""
    frames = (sound.frame_times // length % 2)[:, None]
    return SoundFeatures(frames, sound.frame_times, ("speech_block",), sound.duration, "blocks")


def study(y, sound, rng, blocks=None):
    subject = make_subject(raw(y, rng), sound, blocks=blocks)
    chosen = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
    folds = nested.region_folds(subject, chosen, "brain", subject.Y)
    designs = subject.designs
    table = partition.partition_region(folds, designs["sound"], designs.get("blocks"), alphas=ALPHAS, max_order=2)
    return table, table.set_index(["kind", "bands"])["skill"]


def test_parts_are_the_areas_of_a_venn_diagram():
    """Areas drawn at random; the skill of some bands is the area of their union. Every area comes back."""
    rng, names = np.random.default_rng(0), ("a", "b", "c", "d")
    cells = {frozenset(one): rng.random() for k in range(1, 5) for one in combinations(names, k)}
    skills = {some: sum(area for cell, area in cells.items() if cell & some) for some in cells}
    found = partition.partition(skills, names)
    assert set(found) == set(cells)
    for cell, area in cells.items():
        assert found[cell] == pytest.approx(area)


def test_independent_contributions_come_out_unique():
    rng = np.random.default_rng(1)
    sound = make_sound(rng, memory=0.8)
    blocks = blocks_of(sound)
    z, b = heard(sound), heard(blocks)
    # Half the variance is noise; sound and blocks give .3 and .2 of it. Weights of both signs, so that what the two
    # have in common by chance in 420 volumes cancels over the voxels.
    weights = rng.normal(size=(3, 40))
    weights /= np.linalg.norm(weights, axis=0)
    y = np.sqrt(0.5) * rng.normal(size=(420, 40)) + np.sqrt(0.3) * z @ weights + np.sqrt(0.2) * b
    table, skill = study(y, sound, rng, blocks)
    assert skill["unique", "sound"] == pytest.approx(0.3, abs=0.08)
    assert skill["unique", "blocks"] == pytest.approx(0.2, abs=0.08)
    assert abs(skill["shared", "blocks+sound"]) < 0.05
    parts = table[table["kind"] != "model"]
    assert parts["skill"].sum() == pytest.approx(skill["model", "history+blocks+sound"])
    assert len(table) == 14 and (table["fold_spread"] >= 0).all()


def test_what_two_bands_both_know_is_shared():
    """The only sound feature is the boxcar itself, with next to no noise of its own."""
    rng = np.random.default_rng(2)
    plain = make_sound(rng)
    blocks = blocks_of(plain)
    copy = blocks.frames + 0.01 * rng.normal(size=blocks.frames.shape)
    sound = SoundFeatures(copy, blocks.frame_times, ("mfcc0",), blocks.duration, "the boxcar again")
    y = rng.normal(size=(420, 40)) + heard(blocks)
    _, skill = study(y, sound, rng, blocks)
    assert skill["model", "sound"] == pytest.approx(0.5, abs=0.08)
    assert abs(skill["unique", "sound"]) < 0.02 and abs(skill["unique", "blocks"]) < 0.02
    both = skill["shared", "blocks+sound"] + skill["shared", "history+blocks+sound"]
    assert both == pytest.approx(skill["model", "blocks+sound"], abs=0.02)


def test_own_history_is_unique_in_silent_noise_and_two_bands_have_three_parts():
    rng = np.random.default_rng(3)
    table, skill = study(noise(rng, 40, rho=0.7), make_sound(rng), rng)
    assert list(table["bands"][table["kind"] != "model"]) == ["history", "sound", "history+sound"]
    assert skill["unique", "history"] == pytest.approx(0.49, abs=0.06)  # rho²
    assert abs(skill["unique", "sound"]) < 0.01
    assert (table["n_volumes"] == 410).all() and (table["n_voxels"] == 40).all() and (table["n_region"] == 40).all()
