"""The plain delay sweep: against scikit-learn, and without peeking."""

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import Ridge

from bold_audio import pairing, sweep
from bold_audio.files import ParameterError

T_R, DELAYS = 1.0, [2.0, 4.0, 6.0]
ALPHAS = [10.0, 100.0, 1000.0, np.inf]


@pytest.fixture(scope="module")
def case():
    """120 voxels, the first 12 of which follow the sound 4 s later; slow noise."""
    rng = np.random.default_rng(0)
    n_volumes, n_voxels = 320, 120
    frame_times = np.arange(3400) * 0.1
    frames = lfilter([1], [1, -0.97], rng.normal(size=(3400, 3)), axis=0)
    sound_times = np.arange(n_volumes) * T_R
    at = {d: pairing.delay_features(frames, frame_times, sound_times, delay=d, window=T_R) for d in DELAYS}
    rows = np.arange(10, 230)
    designs = {d: pairing.scale_on(X, rows)[0] for d, X in at.items()}
    Y = 800 + 8 * lfilter([1], [1, -0.5], rng.normal(size=(n_volumes, n_voxels)), axis=0)
    Y[6:, :12] += 5 * (np.nan_to_num(designs[4.0]) @ rng.normal(size=(3, 12)))[6:]
    folds = pairing.blocked_folds(rows, n_folds=4, gap_volumes=10)
    regions = {"brain": np.ones(n_voxels, bool), "planted": np.arange(n_voxels) < 12}
    return {
        "Y": Y.astype(np.float32), "designs": designs, "rows": rows, "folds": folds, "gap_volumes": 10,
        "alphas": ALPHAS, "regions": regions, "delay_region": "responsive", "target": "volume",
        "value_range": (0.0, 1000.0),
    }  # fmt: skip


def test_errors_equal_scikit_learn(case):
    """Every delay's best strength and error in a region, formed voxel by voxel with another library."""
    found = sweep.sweep_delays(**case)
    Y, roi = case["Y"].astype(float), case["regions"]["planted"]
    weight = 1 / Y[case["rows"]].var(axis=0)
    for delay, X in case["designs"].items():
        errors = {}
        for alpha in ALPHAS:
            raw = 0.0
            for fit, held in case["folds"]:
                if np.isinf(alpha):
                    predicted = np.tile(Y[fit].mean(axis=0), (len(held), 1))
                else:
                    predicted = Ridge(alpha=alpha).fit(X[fit], Y[fit]).predict(X[held])
                raw = raw + np.sum((Y[held] - predicted) ** 2, axis=0)
            errors[alpha] = raw
        weighted = {a: np.sum((e * weight)[roi]) for a, e in errors.items()}
        best = min(weighted, key=weighted.get)
        row = found.table[(found.table["delay"] == delay) & (found.table["region"] == "planted")].iloc[0]
        assert row["alpha"] == best
        assert row["skill"] == pytest.approx(1 - weighted[best] / weighted[np.inf], abs=1e-5)
        n_held = sum(len(held) for _, held in case["folds"])
        assert row["mse"] == pytest.approx(errors[best][roi].sum() / (n_held * roi.sum() * 1000**2), rel=1e-5)


def test_planted_delay_and_voxels_are_found(case):
    found = sweep.sweep_delays(**case)
    assert found.delay == 4.0 and found.region == "responsive" and not found.at_edge
    assert case["regions"]["planted"][found.responsive].all()
    assert found.responsive.sum() == round(sweep.RESPONSIVE_SHARE * 120)


def test_responsive_voxels_of_a_block_do_not_depend_on_that_block(case):
    """Nested: whatever happens in held-out block f, the voxels that score it stay the same."""
    options = {"target": "volume", "chunk_voxels": 8192}
    args = (case["designs"], case["folds"], 10, np.array(ALPHAS), options)
    before = sweep._nested_responsive(case["Y"], *args)
    for f, (_, held) in enumerate(case["folds"]):
        spoilt = case["Y"].copy()
        spoilt[held] = np.random.default_rng(f).normal(0, 1e4, spoilt[held].shape)
        after = sweep._nested_responsive(spoilt, *args)
        assert np.array_equal(before[f], after[f])
        others = [not np.array_equal(a, b) for g, (a, b) in enumerate(zip(before, after, strict=True)) if g != f]
        assert any(others), "the other blocks' choice must have seen it, or this test says nothing"


def test_volumes_outside_train_change_nothing(case):
    spoilt = case["Y"].copy()
    spoilt[230:] = 1e6
    spoilt[:10] = -1e6
    designs = {d: np.where(np.arange(320)[:, None] < 230, X, 1e3) for d, X in case["designs"].items()}
    a, b = sweep.sweep_delays(**case), sweep.sweep_delays(**(case | {"Y": spoilt, "designs": designs}))
    assert a.table.equals(b.table) and a.delay == b.delay and np.array_equal(a.responsive, b.responsive)


def test_noise_has_no_skill(case):
    Y = (800 + np.random.default_rng(9).normal(size=case["Y"].shape)).astype(np.float32)
    found = sweep.sweep_delays(**(case | {"Y": Y}))
    brain = found.table[found.table["region"] == "brain"]
    assert brain["skill"].max() < 0.01


def test_unknown_region_is_refused(case):
    with pytest.raises(
        ParameterError, match="delay_region must be responsive, brain or one of brain, planted, got 'LPTLL'"
    ):
        sweep.sweep_delays(**(case | {"delay_region": "LPTLL"}))


def test_edge_is_noticed(case):
    designs = {d: X for d, X in case["designs"].items() if d >= 4.0}
    assert sweep.sweep_delays(**(case | {"designs": designs})).at_edge


def test_few_voxels_have_no_responsive_region(case):
    """Six regions in place of voxels: the whole decides."""
    regions = {"volume": np.ones(6, bool)}
    found = sweep.sweep_delays(**(case | {"Y": case["Y"][:, :6], "regions": regions}))
    assert found.region == "volume" and set(found.table["region"]) == {"volume"}
