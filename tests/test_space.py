"""Components of the previous volume: against scikit-learn's PCA, by hand, and on a planted dependence."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from bold_audio import choices, encoding, models, space
from bold_audio.splits import blocked_folds

ROWS, TEST = np.arange(5, 305), np.arange(320, 400)


@pytest.fixture(scope="module")
def Y():
    """60 voxels; the first 10 have a rhythm in common, which the others follow one volume later. One is constant."""
    rng = np.random.default_rng(0)
    y, common = rng.normal(size=(400, 60)), rng.normal(size=401)
    y[:, :10] += common[1:, None]
    y[:, 10:] += common[:-1, None]
    y = 900 + 10 * y * rng.uniform(0.5, 3, 60)
    y[:, 7] = 900
    return y.astype(np.float32)


def fit(Y, **given):
    options = {"sound": np.zeros((400, 2)), "sound_at_zero": None, "blocks": None, "alphas": [10.0, np.inf]}
    folds = blocked_folds(ROWS, n_folds=4, gap_volumes=5)
    options |= {"rows": ROWS, "folds": folds, "max_order": 1, "names": ("history", "history_sound"), "chunk_voxels": 16}
    return models.fit_rows(Y, **options | given)


def test_scores_are_the_principal_components_of_train(Y):
    made = space.principal_space(Y, rows=ROWS, n_components=4, chunk_voxels=16)
    varying = np.delete(Y.astype(float), 7, axis=1)
    z = (varying - varying[ROWS].mean(axis=0)) / varying[ROWS].std(axis=0)
    known = PCA(4, whiten=True, svd_solver="full").fit(z[ROWS]).transform(z)
    scores = made.scores(Y)
    signs = np.sign(np.sum(scores * known, axis=0))
    np.testing.assert_allclose(scores * signs, known * np.sqrt(300 / 299), atol=2e-3)
    np.testing.assert_allclose(scores[ROWS].std(axis=0), 1, atol=1e-3)
    assert not made.loadings[7].any()


def test_more_components_than_the_volumes_span_are_left_out(Y):
    made = space.principal_space(Y[:, :6], rows=ROWS, n_components=50)
    assert made.loadings.shape == (6, 6)


def test_what_neighbours_tell_of_the_next_volume_is_used(Y):
    own, both = (fit(Y, n_components=k)["history"][0] for k in (0, 5))
    assert own.space is None and both.space.weights.shape == (5, 60)
    nothing = np.zeros((80, 0))
    errors = []
    for model in (own, both):
        made = encoding.predict(model.phi, encoding.drive_of(model, nothing), Y, TEST, model.space)
        errors.append(np.mean((Y[TEST] - made)[:, 10:] ** 2))
    assert errors[1] < 0.95 * errors[0]


def test_one_step_and_open_loop_by_hand(Y):
    model = fit(Y, n_components=3)["history"][0]
    drive = encoding.drive_of(model, np.zeros((80, 0)))
    one = encoding.predict(model.phi, drive, Y, TEST, model.space)
    loop = encoding.rollout(model.phi, drive, Y, TEST, model.space)
    np.testing.assert_allclose(one[0], loop[0], rtol=1e-5)
    for previous, made in ((Y[TEST[2] - 1], one[2]), (loop[1], loop[2])):
        scores = (previous - model.space.space.centre) @ model.space.space.loadings
        known = model.intercept + model.phi[0] * previous + scores @ model.space.weights
        np.testing.assert_allclose(made, known, rtol=1e-5)
    spoilt = Y.copy()
    spoilt[TEST] = 0
    np.testing.assert_array_equal(loop, encoding.rollout(model.phi, drive, spoilt, TEST, model.space))


@pytest.mark.parametrize(("strength", "expected"), [(0.0, 1e6), (0.7, 30.0)])
def test_strength_of_components_is_that_of_models_which_never_saw_the_held_out_block(strength, expected):
    """Against whole models of each fold. Components of all rows, held-out ones too, would say 100 in place of 30."""
    rng = np.random.default_rng(1)
    y, common = rng.normal(size=(400, 60)), strength * rng.normal(size=401)
    y[:, :10] += common[1:, None]
    y[:, 10:] += common[:-1, None]
    Y = (500 + 5 * y).astype(np.float32)
    past, folds = choices.History(1, 0.0, np.zeros((1, 1))), blocked_folds(ROWS, n_folds=4, gap_volumes=5)
    errors = np.zeros(len(choices.SPACE_ALPHAS))
    for train, held in folds:
        before = space.principal_space(Y, rows=train, n_components=20).scores_before(Y)
        for k, alpha in enumerate(choices.SPACE_ALPHAS):
            model = encoding.fit_linear(Y, rows=train, ridge=before, order=1, alphas=[alpha])
            made = encoding.predict(model.phi, encoding.drive_of(model, before[held]), Y, held)
            errors[k] += np.sum((Y[held] - made) ** 2 / Y[ROWS].var(axis=0))
    assert choices.SPACE_ALPHAS[errors.argmin()] == expected
    assert choices.choose_space_alpha(Y, 20, past, rows=ROWS, folds=folds) == expected


def test_sound_that_may_not_be_there_leaves_the_past_as_it_is(Y):
    heard = np.random.default_rng(2).normal(size=(400, 2))
    models = fit(Y, sound=heard, n_components=2, alphas=[1.0, 100.0], follows=np.zeros(60, bool))
    past, both = models["history"][0], models["history_sound"][0]
    assert np.isinf(both.alpha).all() and not both.weights.any()
    np.testing.assert_allclose(both.phi, past.phi)
    np.testing.assert_allclose(both.intercept, past.intercept)
    np.testing.assert_allclose(both.space.weights, past.space.weights)
    some = fit(Y, sound=heard, alphas=[1.0, 100.0], follows=np.arange(60) == 3)["history_sound"][0]
    assert list(np.flatnonzero(np.isfinite(some.alpha))) == [3]
