"""Choices of an outer fold: against the sweep, on planted and on silent voxels, and blind to what is held out."""

from dataclasses import fields, replace

import numpy as np
import pytest
from planted import ALPHAS, DELAY, DELAYS, N_VOLUMES, T_R, make_sound, make_subject, noise, planted_subject, raw

from bold_audio import delays, nested, out_of_fold, sweep
from bold_audio.files import ParameterError


@pytest.fixture(scope="module")
def subject():
    return planted_subject()


@pytest.fixture(scope="module")
def chosen(subject):
    return nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))


def test_the_pooled_evidence_is_that_of_the_sweep(subject):
    sound = delays.delayed_sound(subject, DELAYS)
    train = subject.split.train
    found = nested.choose_delay(subject.Y, sound, rows=train, order=2, alphas=ALPHAS)
    swept = sweep.sweep_delays(
        subject.Y, sound, t_r=T_R, rows=train, folds=subject.folds, order=2, alphas=ALPHAS,
        regions=subject.run.regions, delay_region="brain",
    )  # fmt: skip
    curve = swept.table[swept.table["region"] == "brain"].set_index("delay")["evidence"]
    assert found.delay == swept.delay
    assert found.evidence == pytest.approx(curve.max(), abs=1e-3)
    np.testing.assert_array_equal(found.responsive, swept.responsive)


def test_every_fold_finds_the_planted_delay_and_voxels(subject, chosen):
    planted = subject.run.regions["planted"]
    assert [one.delay for one in chosen] == [DELAY] * 4
    for one in chosen:
        assert one.follows[planted].mean() > 0.8 and one.follows[~planted].mean() < 0.05
        assert one.responsive.sum() == 2 and planted[one.responsive].all()


def test_the_folds_cover_the_whole_run_once_and_keep_their_gaps(subject, chosen):
    np.testing.assert_array_equal(np.concatenate([one.held for one in chosen]), subject.whole_run)
    for one in chosen:
        assert np.abs(one.fit[:, None] - one.held).min() > subject.gap_volumes
        for fit, held in one.inner:
            assert np.isin(np.r_[fit, held], one.fit).all()
            assert np.abs(fit[:, None] - held).min() > subject.gap_volumes


def test_slow_noise_without_sound_is_given_none():
    rng = np.random.default_rng(5)
    given = 0
    for _ in range(5):
        subject = make_subject(raw(noise(rng, 60, rho=0.8), rng), make_sound(rng))
        made = nested.choose_folds(subject, subject.Y, delays.delayed_sound(subject, DELAYS))
        given += sum(one.follows.sum() for one in made)
    assert given / (5 * 4 * 60) < 0.005


def test_the_region_that_is_asked_chooses(subject):
    silent = replace(subject, params=type(subject.params)(**vars(subject.params) | {"delay_region": "silent"}))
    made = nested.choose_folds(silent, silent.Y, delays.delayed_sound(silent, DELAYS))
    assert not any(one.follows.any() for one in made), "no evidence for any delay: nobody may have the sound"


def spoil(subject, held, fit):
    """The subject with other held-out volumes, and other sound where only these (and the gaps) hear it."""
    rng = np.random.default_rng(9)
    Y = subject.Y.copy()
    Y[held] = rng.uniform(0, 3000, (len(held), Y.shape[1]))
    before, after = fit[fit < held[0]], fit[fit > held[-1]]
    order, times = subject.params.history_order, subject.designs["sound"].sound_times
    start = times[before[-1]] - DELAYS[0] + T_R if len(before) else -np.inf
    end = times[after[0] - order] - DELAYS[-1] if len(after) else np.inf
    designs = {}
    for name, design in subject.designs.items():
        only = (design.frame_times > start + 1e-9) & (design.frame_times < end - 1e-9)
        assert only.sum() > 500
        frames = design.frames.copy()
        frames[only] = rng.normal(0, 100, frames[only].shape)
        designs[name] = replace(design, frames=frames)
    run = type(subject.run)(**vars(subject.run) | {"volumes": Y})
    return replace(subject, run=run, designs=designs)


@pytest.mark.parametrize("k", range(4))
def test_a_fold_knows_nothing_of_its_held_out_block(subject, chosen, k):
    """Other held-out volumes, and other sound where only they hear it: the same choices and weights, bit for bit."""
    spoilt = spoil(subject, chosen[k].held, chosen[k].fit)
    assert not np.array_equal(spoilt.Y[chosen[k].held], subject.Y[chosen[k].held])
    again = nested.choose_folds(spoilt, spoilt.Y, delays.delayed_sound(spoilt, DELAYS))[k]
    for field in fields(nested.FoldChoice):
        before, after = getattr(chosen[k], field.name), getattr(again, field.name)
        if field.name != "inner":
            np.testing.assert_array_equal(before, after, err_msg=field.name)
    names = ("constant", "sound", "history", "history_sound")
    first, second = (
        out_of_fold.fit_fold(one, made, names=names) for one, made in ((subject, chosen[k]), (spoilt, again))
    )
    for name in names:
        np.testing.assert_array_equal(first[name].phi, second[name].phi)
        np.testing.assert_array_equal(first[name].drive(again.fit), second[name].drive(again.fit))
    other = nested.choose_folds(spoilt, spoilt.Y, delays.delayed_sound(spoilt, DELAYS))[(k + 1) % 4]
    assert other.evidence != chosen[(k + 1) % 4].evidence, "a fold that fits on these volumes must notice"


def test_errors_say_what_to_do(subject, chosen):
    sound = delays.delayed_sound(subject, DELAYS)

    def changed(**given):
        return replace(subject, params=type(subject.params)(**vars(subject.params) | given))

    with pytest.raises(ParameterError, match="delay_region must be responsive, brain or one of .*, got 'ear'"):
        nested.choose_folds(changed(delay_region="ear"), subject.Y, sound)
    with pytest.raises(ParameterError, match="region must be one of brain, planted, silent .* got 'ear'"):
        nested.region_masks(subject, chosen, "ear")


def test_a_large_region_gives_evenly_spaced_voxels(subject, chosen):
    folds = nested.region_folds(subject, chosen, "silent", subject.Y, max_voxels=7)
    assert [fold.at.tolist() for fold in folds] == [[12, 20, 28, 36, 43, 51, 59]] * 4
    assert folds[0].n_region == 48 and folds[0].Y.shape == (N_VOLUMES, 7)
    np.testing.assert_array_equal(folds[0].follows, chosen[0].follows[folds[0].at])
    nearby = nested.region_folds(subject, chosen, "responsive", subject.Y)
    assert [fold.at.tolist() for fold in nearby] == [np.flatnonzero(one.responsive).tolist() for one in chosen]
