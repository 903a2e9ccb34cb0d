"""Planted nuisance comes off, planted responses stay, and nothing that is fitted knows the test part."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from bold_audio import confounds, data, motion, prepare, workflow
from bold_audio.files import ParameterError
from bold_audio.runs import locate_runs

pytestmark = pytest.mark.slow

T_R, N = 0.608, 641
TRAIN, TEST = np.arange(16, 448), np.arange(475, N)
TIMES = np.arange(N) * T_R


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def blocks(delay=5.0):
    """Blocks of 30 s, music and speech in turn, with a response that lags."""
    return ((TIMES - delay) % 60 >= 30).astype(float) - 0.5


def noise(rng, n_voxels):
    steps = rng.standard_normal((N + 100, n_voxels))
    return lfilter([np.sqrt(1 - 0.6**2)], [1, -0.6], steps, axis=0)[100:]


def columns(*names, train=TRAIN, **given):
    return confounds.nuisance_columns(names, n_volumes=N, t_r=T_R, train=train, **given)


def cleaned(volumes, *names, high_variance=False, **given):
    volumes = volumes.astype(np.float32)
    confounds.take_off(volumes, columns(*names, **given), TRAIN, high_variance=high_variance)
    return volumes


def share(clean, dirty, wave, rows):
    """How much of a planted wave is left, by projection."""
    wave = wave[rows] - wave[rows].mean()
    return float(np.mean((wave @ clean[rows]) / (wave @ dirty[rows])))


# --- drift ------------------------------------------------------------------------------


def test_planted_drift_comes_off_and_a_planted_block_response_stays(rng):
    slow = np.cos(np.pi * (np.arange(N) + 0.5) / len(TRAIN))  # about two half-cycles of 263 s
    response = blocks()
    made = 1000 + 20 * slow[:, None] + 6 * response[:, None] + 5 * noise(rng, 300)
    clean = cleaned(made, "drift")
    without = made - 20 * slow[:, None]
    wave = slow[TRAIN] - slow[TRAIN].mean()
    left = (wave @ (clean[TRAIN] - 1000)) / (wave @ wave)
    assert np.abs(left).mean() < 0.02 * 20
    assert 0.9 < share(clean - 1000, without - 1000, response, TRAIN) < 1.02
    np.testing.assert_allclose(clean[TRAIN].mean(axis=0), made[TRAIN].mean(axis=0), rtol=1e-5)


def test_drift_leaves_the_blocks_and_what_is_faster():
    made = columns("drift")
    assert confounds.DRIFT_PERIOD > 2 * 60
    for delay in np.arange(0, 60, 5.0):
        assert confounds.shared_variance(made, blocks(delay), TRAIN) < 0.05
    for period, least, most in ((60, 0, 0.03), (100, 0, 0.35), (200, 0.9, 1), (400, 0.9, 1)):
        taken = [confounds.shared_variance(made, np.sin(2 * np.pi * TIMES / period + p), TRAIN) for p in (0, 1, 2)]
        assert least <= np.mean(taken) <= most, period


def test_drift_is_the_cosine_basis_of_train_and_is_held_outside_it():
    made = columns("drift").to_numpy()
    n = len(TRAIN)
    order = int(2 * n * T_R / 128)
    basis = np.cos(np.pi * np.outer(np.arange(n) + 0.5, np.arange(1, order + 1)) / n)
    assert made.shape == (N, order) and order == 4
    np.testing.assert_allclose(made[TRAIN], basis * np.sqrt(2 / n), atol=1e-12)
    held = int(round(30 / T_R))
    np.testing.assert_allclose(made[TRAIN[-1] + 1 :], np.broadcast_to(made[TRAIN][-held:].mean(axis=0), (N - 448, 4)))
    np.testing.assert_allclose(made[:16], np.broadcast_to(made[TRAIN][:held].mean(axis=0), (16, 4)))


def test_held_drift_does_less_harm_in_test_than_cosines_continued(rng):
    """Noise alone: what a drift model adds to the test part. Cosines of the whole run, fitted on train, explode."""
    pure = noise(rng, 200)
    held = cleaned(pure, "drift")
    whole = np.cos(np.pi * np.outer(np.arange(N) + 0.5, np.arange(1, 7)) / N)
    design = np.column_stack([np.ones(N), whole])
    continued = pure - design @ np.linalg.lstsq(design[TRAIN], pure[TRAIN], rcond=None)[0]
    assert np.mean((held - pure)[TEST] ** 2) < 0.3 * np.mean(pure[TEST] ** 2)
    assert np.mean((continued - pure)[TEST] ** 2) > 20 * np.mean(pure[TEST] ** 2)


# --- motion and tables ------------------------------------------------------------------


def moved(rng):
    return np.cumsum(rng.standard_normal((N, 6)), axis=0) * [0.02, 0.02, 0.02, 4e-4, 4e-4, 4e-4]


def test_what_motion_planted_comes_off_in_test_too(rng):
    motions = moved(rng)
    made = 1000 + motions @ rng.normal(0, [[90]] * 3 + [[4500]] * 3, (6, 100)) + 2 * noise(rng, 100)
    clean = cleaned(made, "motion", estimate=lambda: motions)
    for rows, most in ((TRAIN, 1.1), (TEST, 1.6)):
        assert np.median(clean[rows].std(axis=0)) < most * 2 < 0.5 * np.median(made[rows].std(axis=0))


def test_derivatives_are_backward_differences_and_say_nothing_of_the_first_volume(rng):
    motions = moved(rng)
    made = columns("motion", "motion_derivatives", estimate=lambda: motions)
    assert list(made) == [*motion.NAMES, *confounds.DERIVATIVES]
    np.testing.assert_allclose(made["rot_y_derivative1"][1:], np.diff(motions[:, 4]))
    assert np.isnan(made["rot_y_derivative1"][0])
    assert np.isfinite(confounds.scale_columns(made, TRAIN)).all()


def test_a_volume_without_an_estimate_loses_nothing_to_motion(rng):
    motions, made = moved(rng), 1000 + 5 * noise(rng, 20)
    motions[[100, 500]] = np.nan
    clean = cleaned(made, "motion", estimate=lambda: motions)
    np.testing.assert_allclose(clean[[100, 500]], made[[100, 500]], rtol=1e-5)
    assert not np.allclose(clean[[101, 501]], made[[101, 501]], rtol=1e-5)


def test_columns_of_a_table_are_asked_for_by_name_or_pattern(rng):
    table = pd.DataFrame(rng.standard_normal((N, 4)), columns=["csf", "a_comp_cor_00", "a_comp_cor_01", "dvars"])
    table["text"] = ["n/a", *map(str, range(N - 1))]
    made = columns("a_comp_cor_*", "csf", "text", table=table)
    assert list(made) == ["a_comp_cor_00", "a_comp_cor_01", "csf", "text"]
    assert np.isnan(made["text"][0]) and made["text"][5] == 4
    volumes = 1000 + table[["csf"]].to_numpy() @ rng.normal(0, 10, (1, 30)) + noise(rng, 30)
    clean = cleaned(volumes, "csf", table=table)
    assert np.abs(np.corrcoef(table["csf"][TRAIN], clean[TRAIN].T)[0, 1:]).max() < 1e-3


def test_a_tables_motion_is_taken_before_an_estimate_of_our_own(rng):
    table = pd.DataFrame(moved(rng), columns=motion.NAMES)
    made = columns("motion", table=table, estimate=lambda: pytest.fail("the scan is realigned already"))
    np.testing.assert_array_equal(made, table)


@pytest.mark.parametrize(
    ("names", "given", "match"),
    [
        (["dirft"], {}, "confounds: dirft is not a group, and there is no table of confounds - did you mean drift"),
        (["xyz"], {}, "the groups are drift, motion, motion_derivatives, high_variance"),
        (["csg"], {"table": pd.DataFrame({"csf": np.zeros(N)})}, "nor a column of the table .* did you mean csf"),
    ],
)
def test_an_unknown_name_is_refused(names, given, match):
    with pytest.raises(ParameterError, match=match):
        columns(*names, **given)


def test_numbers_beyond_all_sizes_say_nothing(rng):
    table = pd.DataFrame({"csf": rng.normal(size=N)}, dtype=object)
    huge, missing = table.copy(), table.copy()
    huge.loc[[30, 50], "csf"] = [10**400, "1e308"]
    missing.loc[[30, 50], "csf"] = np.nan
    one, other = (confounds.scale_columns(columns("csf", table=each), TRAIN) for each in (huge, missing))
    np.testing.assert_allclose(one, other)


def test_more_columns_than_train_can_bear_are_refused(rng):
    table = pd.DataFrame(rng.standard_normal((N, 220))).add_prefix("c")
    with pytest.raises(ParameterError, match="confounds are 220 columns for 432 train volumes - name fewer"):
        cleaned(noise(rng, 5), "c*", table=table)


def test_a_column_that_only_changes_in_test_or_repeats_another_does_no_harm(rng):
    table = pd.DataFrame({"late": np.zeros(N), "a": noise(rng, 1)[:, 0]})
    table.loc[500:, "late"] = 1e6
    table["b"] = 2 * table["a"] + 7
    made = 1000 + noise(rng, 10)
    all_three, one = cleaned(made, "late", "a", "b", table=table), cleaned(made, "a", table=table)
    np.testing.assert_allclose(all_three, one, atol=1e-3)
    assert not np.allclose(one, made, atol=1e-3)


def test_coefficients_are_those_of_ordinary_least_squares(rng):
    """Independent oracle: scikit-learn, all columns and the line at once."""
    from sklearn.linear_model import LinearRegression

    motions, made = moved(rng), 1000 + 5 * noise(rng, 40) + 0.05 * np.arange(N)[:, None]
    all_columns = columns("drift", "motion", line=True, estimate=lambda: motions)
    clean = cleaned(made, "drift", "motion", line=True, estimate=lambda: motions)
    model = LinearRegression().fit(all_columns.to_numpy()[TRAIN], made[TRAIN])
    expected = made - model.predict(all_columns.to_numpy()) + made[TRAIN].mean(axis=0)
    np.testing.assert_allclose(clean, expected, atol=0.01)


# --- components -------------------------------------------------------------------------


def test_components_of_train_are_nilearns():
    """Independent oracle: nilearn on the centred train volumes."""
    from nilearn.signal import high_variance_confounds

    rng = np.random.default_rng(3)
    sources = np.cumsum(rng.standard_normal((N, 5)), axis=0)
    made = 1000 + noise(rng, 600)
    made[:, :30] += sources @ rng.standard_normal((5, 30)) * np.linspace(1, 3, 30)
    found = confounds.high_variance_components(made, np.empty((N, 0)), TRAIN)[TRAIN]
    theirs = high_variance_confounds(made[TRAIN] - made[TRAIN].mean(axis=0), n_confounds=5, percentile=2, detrend=False)
    match = np.abs(np.corrcoef(found.T, theirs.T)[:5, 5:])
    np.testing.assert_allclose(np.diag(match), 1, atol=1e-6)


def test_components_are_of_what_the_other_columns_leave(rng, monkeypatch):
    """Voxels that move most vary most; a component that is motion again would take nothing more off."""
    motions, pulse = moved(rng), np.sin(2 * np.pi * 0.3 * TIMES)
    made = 1000 + 5 * noise(rng, 300)
    made[:, :6] += motions @ rng.normal(0, [[900]] * 3 + [[45000]] * 3, (6, 6)) + 30 * pulse[:, None]
    found, plain = [], confounds.high_variance_components
    monkeypatch.setattr(
        confounds, "high_variance_components", lambda *given: found.append(plain(*given)) or found[-1].copy()
    )
    cleaned(made, "motion", high_variance=True, estimate=lambda: motions)
    together = np.corrcoef(found[0][TRAIN].T, np.c_[motions, pulse][TRAIN].T)[: found[0].shape[1], -7:]
    assert np.abs(together[:, :6]).max() < 0.1 and np.abs(together[:, 6]).max() > 0.9


def test_what_vessels_share_comes_off_in_test_too_and_the_response_stays(rng):
    pulse = np.sin(2 * np.pi * 0.3 * TIMES) + 0.5 * np.sin(2 * np.pi * 0.11 * TIMES)
    weights = np.where(np.arange(500) < 10, 60, 3.0)
    made = 1000 + pulse[:, None] * weights + 5 * noise(rng, 500)
    made[:, 100:] += 4 * blocks()[:, None]
    clean = cleaned(made, high_variance=True)
    for rows in (TRAIN, TEST):
        left = np.corrcoef(pulse[rows], clean[rows][:, :100].T)[0, 1:]
        assert np.abs(left[:10]).mean() < 0.25 and np.abs(left[10:]).mean() < 0.15
    assert share(clean[:, 100:] - 1000, made[:, 100:] - 1000, blocks(), TRAIN) > 0.9


# --- no leak ----------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["drift"], ["motion", "motion_derivatives"], ["drift", "motion", "high_variance"]])
def test_changing_test_changes_no_coefficient_and_no_train_volume(rng, names):
    motions, made = moved(rng), (1000 + 5 * noise(rng, 2500)).astype(np.float32)
    spoilt, jerked = made.copy(), motions.copy()
    spoilt[448:] = rng.normal(3000, 900, spoilt[448:].shape)
    jerked[448:] = 50
    fitted = []
    for volumes, path in ((made, motions), (spoilt, jerked)):
        volumes = volumes.copy()
        confounds.take_off(
            volumes,
            columns(*names, line=True, estimate=lambda path=path: path),
            TRAIN,
            high_variance="high_variance" in names,
        )
        fitted.append(volumes)
    np.testing.assert_array_equal(fitted[0][:448], fitted[1][:448])
    assert not np.allclose(fitted[0][448:], fitted[1][448:])


# --- shared variance --------------------------------------------------------------------


def test_shared_variance_is_the_r2_of_a_fit(rng):
    made = pd.DataFrame(rng.standard_normal((N, 3)))
    target = made.to_numpy() @ [1, 2, 2] + 3 * rng.standard_normal(N)
    assert confounds.shared_variance(made, target, TRAIN) == pytest.approx(0.5, abs=0.1)
    assert confounds.shared_variance(made, made[0], TRAIN) == pytest.approx(1)
    assert np.isnan(confounds.shared_variance(made, np.ones(N), TRAIN))


def test_motion_in_step_with_the_blocks_is_told_from_motion_by_chance(rng):
    by_chance = pd.DataFrame(moved(rng))
    in_step = by_chance.assign(a=0.3 * blocks() + 0.1 * noise(rng, 1)[:, 0])
    share_of, shifted = confounds.shared_by_chance(in_step, blocks(), TRAIN)
    assert share_of > 0.6 and shifted < share_of - 0.2
    share_of, shifted = confounds.shared_by_chance(by_chance, blocks(), TRAIN)
    assert share_of < 3 * shifted


# --- in the run -------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"realign": True}, {"confounds": ["drift", "motion", "high_variance"]}], ids=str)
def test_a_run_is_cleaned_once_and_its_own_cache_entry_is_kept(small_params, given, monkeypatch):
    plain, params = small_params(), small_params(**given)
    files = locate_runs(params)
    before, after = data.load_run(files, plain, train=TRAIN), data.load_run(files, params, train=TRAIN)
    assert not np.array_equal(before.volumes[:, :50], after.volumes[:, :50])
    monkeypatch.setattr(data, "read_whole", lambda path: pytest.fail("read again"))
    monkeypatch.setattr(motion, "estimate_motion", lambda *a, **k: pytest.fail("estimated again"))
    again = data.load_run(files, params, train=TRAIN)
    np.testing.assert_array_equal(again.volumes, after.volumes)
    np.testing.assert_array_equal(data.load_run(files, plain, train=TRAIN).volumes, before.volumes)


def test_a_table_of_confounds_beside_the_run_counts_in_the_cache(small_params, rng, tmp_path):
    params = small_params(confounds=["csf"])
    files, table = locate_runs(params), pd.DataFrame({"csf": rng.standard_normal(N), "other": 0.0})
    path = tmp_path / "confounds.tsv"

    def load(table):
        table.to_csv(path, sep="\t", index=False)
        return data.load_run(replace(files, confounds=path), params, train=TRAIN)

    first, other, changed = map(load, (table, table.assign(other=1.0), table.assign(csf=np.arange(N) % 7)))
    assert first.volumes.filename == other.volumes.filename != changed.volumes.filename
    assert np.abs(np.corrcoef(table["csf"][TRAIN], first.volumes[TRAIN, :20].T)[0, 1:]).max() < 1e-3
    with pytest.raises(ParameterError, match="confounds: csf is not a group, and there is no table"):
        data.load_run(files, params, train=TRAIN)


def test_results_of_other_confounds_are_others(small_params):
    keys = {workflow.open_subject(small_params(**g)).result_key() for g in ({}, {"confounds": ["drift"]})}
    assert len(keys) == 2


def test_parameters_of_the_network_are_read_by_the_network_alone():
    """They are in the keys of its results only: whatever else read one would not be made again."""
    folder = Path(prepare.__file__).parent
    for name in prepare.MLP_ONLY:
        readers = {path.stem for path in folder.glob("*.py") if re.search(rf"params\.{name}\b", path.read_text())}
        assert readers <= {"candidates", "mlp", "training"}, name


def test_results_are_stale_when_the_code_that_cleans_changes(small_params, monkeypatch):
    subject, counted = workflow.open_subject(small_params()), []
    monkeypatch.setattr(prepare, "code_fingerprint", lambda *modules: counted.extend(modules) or "code")
    subject.result_key()
    assert {motion, confounds} <= set(counted)


def test_results_are_made_anew_when_any_code_that_reads_the_data_changes(small_params, monkeypatch):
    """Every module that opening a subject imports is part of the key, but for those that move or judge files only."""
    folder, seen, todo = Path(prepare.__file__).parent, set(), ["prepare"]
    while todo:
        name = todo.pop()
        seen.add(name)
        for node in ast.parse((folder / f"{name}.py").read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bold_audio"):
                found = [node.module[11:]] if node.module != "bold_audio" else [alias.name for alias in node.names]
                todo += [one for one in found if (folder / f"{one}.py").is_file() and one not in seen]
    moving = {"access", "adopt", "audit", "brain", "dvcrepo", "fetch", "files", "locking", "openneuro"}
    moving |= {"params", "plain_yaml", "provenance", "registry", "schema"}
    counted = []
    monkeypatch.setattr(prepare, "code_fingerprint", lambda *modules: counted.extend(modules) or "code")
    workflow.open_subject(small_params()).result_key()
    assert {module.__name__.removeprefix("bold_audio.") for module in counted} == seen - moving
