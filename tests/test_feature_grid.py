"""Every choice of features from stored products equals a regression on just those features."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bold_audio import feature_grid, gram, viewer
from bold_audio.splits import blocked_folds

DELAYS, N_FEATURES, N_LAGS = [3.0, 4.0, 5.0], 3, 1
ROWS = np.arange(6, 166)
FOLDS = blocked_folds(ROWS, n_folds=4, gap_volumes=4)


@pytest.fixture(scope="module")
def case():
    """40 voxels that follow the second delay's first two features; the first 4 volumes of train have no sound."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3, 180, N_FEATURES * (N_LAGS + 1) + 1))
    X[..., -1] = np.arange(180) // 15 % 2  # the blocks
    Y = 500 + rng.normal(size=(180, 40))
    Y[:, :20] += X[1][:, :2] @ rng.normal(size=(2, 20))
    X[:, :10] = np.nan
    regions = {"brain": np.ones(40, bool), "planted": np.arange(40) < 20}
    grams = gram.gram_matrices(Y, volumes=np.arange(4, 166), train=ROWS, regions=regions, scaled=True)
    return Y, X, {name: [one] for name, one in grams.items()}, regions


def make(case, target="volume"):
    _, X, grams, _ = case
    options = {"whitening": np.array([1.0, -0.4]), "rows": ROWS, "folds": FOLDS, "delays": DELAYS, "n_lags": N_LAGS}
    return feature_grid.make_feature_grid(grams, X, target=target, n_features=N_FEATURES, has_blocks=True, **options)


def brute_force(case, columns, *, region, alpha, target="volume"):
    """Skill by scikit-learn on those columns, voxel by voxel."""
    Y, X, _, regions = case
    z = Y[:, regions[region]] / Y[ROWS][:, regions[region]].std(axis=0)
    taps = {"volume": [1.0], "difference": [1.0, -1.0], "whitened": [1.0, -0.4]}[target]
    t = sum(w * np.roll(z, lag, axis=0) for lag, w in enumerate(taps))
    filtered = taps if target == "whitened" else [1.0]
    A = np.stack([sum(w * np.roll(x, lag, axis=0) for lag, w in enumerate(filtered)) for x in X])[:, :, columns]
    heard = ROWS[np.isfinite(A[:, ROWS]).all(axis=(0, 2))]
    skills = []
    for x in A:
        x = (x - x[heard].mean(axis=0)) / x[heard].std(axis=0)
        error = null = 0.0
        for fit, held in FOLDS:
            fit, held = np.intersect1d(fit, heard), np.intersect1d(held, heard)
            error += np.sum((t[held] - Ridge(alpha=alpha).fit(x[fit], t[fit]).predict(x[held])) ** 2)
            null += np.sum((t[held] - t[fit].mean(axis=0)) ** 2)
        skills.append(1 - error / null)
    return skills


@pytest.mark.parametrize("target", ["volume", "difference", "whitened"])
@pytest.mark.parametrize(
    ("setting", "columns"),
    [
        ({"n_features": 3, "n_lags": 1, "blocks": True}, [0, 1, 2, 3, 4, 5, 6]),
        ({"n_features": 2, "n_lags": 1}, [0, 1, 3, 4]),
        ({"n_features": 1, "n_lags": 0, "blocks": True}, [0, 6]),
        ({"n_features": 0, "n_lags": 0, "blocks": True}, [6]),
    ],
)
def test_curve_equals_a_regression_on_those_features(case, target, setting, columns):
    grid = make(case, target)
    for region, alpha in (("brain", 3.0), ("planted", 100.0)):
        known = brute_force(case, columns, region=region, alpha=alpha, target=target)
        np.testing.assert_allclose(grid.curve(region, alpha=alpha, **setting), known, atol=1e-6)


def test_settings_hold_every_choice_at_its_best_strength(case):
    grid, alphas = make(case), [1.0, 30.0, 1000.0, np.inf]
    table = grid.settings("planted", alphas)
    # 3 numbers x 2 lags x with and without blocks, and the blocks alone; 3 delays each
    assert len(table) == (3 * 2 * 2 + 1) * 3 and not table.duplicated(["n_features", "n_lags", "blocks", "delay"]).any()
    for row in table.sample(12, random_state=0).itertuples():
        setting = {"n_features": row.n_features, "n_lags": row.n_lags, "blocks": row.blocks}
        at = DELAYS.index(row.delay)
        curves = {a: grid.curve("planted", alpha=a, **setting)[at] for a in alphas[:-1]}
        assert row.alpha == max(curves, key=curves.get)
        assert row.skill == pytest.approx(curves[row.alpha], abs=1e-9)
    best = table[~table["blocks"]].nlargest(1, "skill").iloc[0]
    assert best["delay"] == 4.0 and best["n_features"] == 2 and best["n_lags"] == 0


def test_infinite_strength_has_no_skill(case):
    np.testing.assert_allclose(make(case).curve("brain", alpha=np.inf, n_features=2), 0, atol=1e-12)


def test_moving_a_knob_redraws_the_curve_of_that_setting(case):
    grid = make(case)
    box = viewer.delay_explorer(grid, region="brain", alphas=[1.0, 30.0, np.inf], alpha=25.0)
    *knobs, verdict, figure = box.children
    knobs = {knob.description: knob for knob in knobs}
    assert knobs["ridge strength α"].value == 30.0
    np.testing.assert_array_equal(figure.data[0].y, grid.curve("brain", alpha=30.0, n_features=3))
    knobs["region"].value, knobs["features"].value, knobs["further windows"].value = "planted", 2, 1
    knobs["ridge strength α"].value, knobs["with the film's blocks"].value = 1.0, True
    known = grid.curve("planted", alpha=1.0, n_features=2, n_lags=1, blocks=True)
    np.testing.assert_array_equal(figure.data[0].y, known)
    assert verdict.value.startswith(
        f"planted: best at Δt = {DELAYS[known.argmax()]:g} s, skill {known.max():.4f} (3 delays"
    )
