"""Maps of people in the template's space against planted places, nilearn's permuted_ols, and nothing at all."""

import json

import nibabel as nib
import numpy as np
import pytest
from cohort import head_map, write_person_map
from nilearn.image import smooth_img
from nilearn.mass_univariate import permuted_ols
from scipy import stats

from bold_audio import group_maps, group_stats, register
from bold_audio.files import DataError

AUDITORY = ((-54, -20, 3), (57, -14, 2))
MODEL = "oofHistorySound"


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(group_maps, "RESOLUTION", 8)


def distance_to(centres, mask, affine):
    """Mm of every voxel of the mask from the nearest centre."""
    points = register.template_points(np.argwhere(mask).T, affine).T
    return np.min([np.linalg.norm(points - centre, axis=1) for centre in centres], axis=0)


def write_cohort(folder, n, *, seed, planted=()):
    rng = np.random.default_rng(seed)
    labels = [f"{k:02}" for k in range(n)]
    for label in labels:
        values, affine, points = head_map(rng, planted)
        write_person_map(folder, label, values, affine, points=points)
    return labels


def test_each_voxel_of_the_template_gets_what_lies_there_in_the_head():
    _, _, points = head_map(np.random.default_rng(0), ())
    mask, affine = group_maps.template_grid()
    centres = register.template_points(np.argwhere(mask).T, affine)
    for axis in range(3):
        made = group_maps.to_template(points[..., axis], points, mask, affine, reach=7.0)[mask]
        known = np.isfinite(made)
        assert known.mean() > 0.95 and np.abs(made[known] - centres[axis][known]).max() < 6


def test_what_lies_out_of_reach_or_outside_the_brain_has_no_value():
    values, _, points = head_map(np.random.default_rng(1), ())
    mask, affine = group_maps.template_grid()
    values[points[..., 2] > 10] = np.nan
    made = group_maps.to_template(values, points, mask, affine, reach=7.0)
    high = register.template_points(np.argwhere(mask).T, affine)[2] > 18
    assert np.isnan(made[mask][high]).all() and np.isfinite(made[mask][~high]).mean() > 0.5
    assert np.isnan(made[~mask]).all()
    assert np.isnan(group_maps.to_template(values * np.nan, points, mask, affine, reach=7.0)).all()


def test_smoothing_is_nilearns_but_for_the_tails_and_keeps_what_is_level_level_at_the_edge():
    mask, affine = group_maps.template_grid()
    values = np.random.default_rng(2).standard_normal(mask.shape).astype(np.float32)
    known = smooth_img(nib.Nifti1Image(values, affine), 16).get_fdata()
    made = group_maps.smoothed(values, affine, 16)
    inner = (slice(4, -4),) * 3
    assert np.corrcoef(made[inner].ravel(), known[inner].ravel())[0, 1] > 0.99
    assert made[inner].std() == pytest.approx(known[inner].std(), rel=0.2)
    level = group_maps.smoothed(np.where(mask, 3.0, np.nan), affine, 16)
    np.testing.assert_allclose(level[mask], 3, rtol=1e-5)
    assert np.isnan(level[~mask]).all()


def test_a_map_is_made_once_and_again_when_it_or_its_place_changes(tmp_path):
    rng = np.random.default_rng(3)
    values, affine, points = head_map(rng, ())
    write_person_map(tmp_path, "01", values, affine, points=points)
    first = group_maps.ensure_map(tmp_path, "01", model=MODEL)
    (path,) = (tmp_path / "group" / "maps").glob("*.nii.gz")
    about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert about["Sources"] == [f"bids::sub-01/sub-01_task-film_desc-{MODEL}_stat-gain_statmap.nii.gz"]
    assert nib.load(path).header["sform_code"] == 4
    made = path.stat().st_mtime_ns
    np.testing.assert_array_equal(group_maps.ensure_map(tmp_path, "01", model=MODEL), first)
    assert path.stat().st_mtime_ns == made
    write_person_map(tmp_path, "01", values, affine, points=points + [0, 12, 0])
    assert not np.array_equal(group_maps.ensure_map(tmp_path, "01", model=MODEL), first, equal_nan=True)


def test_a_scan_in_template_space_needs_no_transform_and_comes_out_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(group_maps, "FWHM", 0.1)
    mask, affine = group_maps.template_grid()
    values = np.where(mask, np.random.default_rng(4).standard_normal(mask.shape), np.nan).astype(np.float32)
    write_person_map(tmp_path, "01", values, affine)
    np.testing.assert_allclose(group_maps.ensure_map(tmp_path, "01", model=MODEL), values, rtol=1e-6)


def test_a_person_without_map_or_place_is_told_what_is_missing(tmp_path):
    (tmp_path / "sub-01").mkdir()
    with pytest.raises(DataError, match="no map of gain of"):
        group_maps.ensure_map(tmp_path, "01", model=MODEL)
    values, affine, points = head_map(np.random.default_rng(5), ())
    write_person_map(tmp_path, "02", values, affine, points=points)
    next((tmp_path / "sub-02").glob("*xfm.nii.gz")).unlink()
    with pytest.raises(DataError, match="no place in the template"):
        group_maps.ensure_map(tmp_path, "02", model=MODEL)


def test_t_and_family_wise_p_are_those_of_permuted_ols():
    rng = np.random.default_rng(6)
    values = rng.normal(0, 1, (14, 300)) + rng.standard_normal((14, 1))
    values[:, :10] += 2.5
    found = group_stats.flip_test(values)
    how = {"model_intercept": False, "two_sided_test": False, "n_perm": 2000, "random_state": 0}
    theirs = permuted_ols(np.ones((14, 1)), values, **how)
    np.testing.assert_allclose(found["t"], theirs["t"][0])
    np.testing.assert_allclose(found["p_fwe"], 10 ** -theirs["logp_max_t"][0], atol=0.035)
    assert 5 < (found["p_fwe"] <= 0.05).sum() < 20


@pytest.mark.slow
def test_planted_effect_is_found_where_it_is_and_nowhere_else(tmp_path):
    labels = write_cohort(tmp_path, 12, seed=7, planted=AUDITORY)
    found = group_maps.group_map(tmp_path, labels, model=MODEL)
    away = distance_to(AUDITORY, found.tested, found.affine)
    sure = (found.table["p_fwe"] <= 0.05).to_numpy()
    assert found.labels == tuple(labels) and not found.left_out
    assert sure[away <= 8].mean() > 0.9 and not sure[away > 12 + 1.5 * group_maps.FWHM].any()
    written = {path.name.partition("_stat-")[2] for path in (tmp_path / "group").glob("*.nii.gz")}
    assert written == {f"gain{name}_statmap.nii.gz" for name in ("mean", "t", "pfwe", "people")}
    (path,) = (tmp_path / "group").glob("*gainpfwe*.nii.gz")
    np.testing.assert_array_equal(nib.load(path).get_fdata(dtype=np.float32), found.to_grid("p_fwe"))
    about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert about["People"] == labels and "12 people" in about["Description"]


@pytest.mark.slow
def test_among_zeros_nothing_is_found_beyond_the_smoothing(tmp_path):
    """The gain is exactly 0 where the sound adds nothing to anybody."""
    rng, labels = np.random.default_rng(11), [f"{k:02}" for k in range(10)]
    for label in labels:
        values, affine, points = head_map(rng, AUDITORY, spread=0.0)
        write_person_map(tmp_path, label, values, affine, points=points)
    found = group_maps.group_map(tmp_path, labels, model=MODEL)
    away = distance_to(AUDITORY, found.tested, found.affine)
    sure = (found.table["p_fwe"] <= 0.05).to_numpy()
    to_nearest = 6 * np.sqrt(3) / 2  # mm from a voxel of the template to the middle of the nearest one of the scan
    assert sure[away <= 8].mean() > 0.9 and away[sure].max() <= 12 + group_maps.FWHM + to_nearest
    assert (found.table["p"][away > 40] == 1).all()


def test_evidence_is_the_normal_scores_of_p(tmp_path, monkeypatch):
    monkeypatch.setattr(group_maps, "FWHM", 0.1)  # no voxel has a neighbour
    mask, affine = group_maps.template_grid()
    p = np.where(mask, np.random.default_rng(5).uniform(size=mask.shape), np.nan).astype(np.float32)
    write_person_map(tmp_path, "01", p, affine, model="inference", stat="p")
    found = group_maps.ensure_map(tmp_path, "01", model="inference", stat="evidence")
    np.testing.assert_allclose(found[mask], stats.norm.isf(p[mask]), rtol=1e-4, atol=1e-5)


def test_who_has_no_map_or_another_field_of_view_is_left_out_by_name(tmp_path):
    labels = write_cohort(tmp_path, 4, seed=8)
    values, affine, points = head_map(np.random.default_rng(9), ())
    values[points[..., 2] > -10] = np.nan
    write_person_map(tmp_path, "50", values, affine, points=points)
    (next((tmp_path / "sub-00").glob("*statmap.nii.gz"))).write_bytes(b"no NIfTI")
    found = group_maps.group_map(tmp_path, [*labels, "50", "60"], model=MODEL)
    assert found.labels == ("01", "02", "03")
    assert list(found.left_out) == ["00", "60", "50"]
    assert "covers" in found.left_out["50"] and "no map" in found.left_out["60"]


@pytest.mark.slow
def test_of_many_people_a_few_may_lack_a_voxel(tmp_path):
    rng, labels = np.random.default_rng(12), write_cohort(tmp_path, 20, seed=12)
    values, affine, points = head_map(rng, ())
    top = points[..., 2] > np.nanquantile(points[..., 2][np.isfinite(values)], 0.9)
    write_person_map(tmp_path, labels[0], np.where(top, np.nan, values), affine, points=points)
    found = group_maps.group_map(tmp_path, labels, model=MODEL)
    assert len(found.labels) == 20 and not found.left_out
    maps = np.stack([group_maps.ensure_map(tmp_path, one, model=MODEL)[found.tested] for one in labels])
    lacking = np.isnan(maps).sum(axis=0)
    assert 100 < np.isnan(maps[0]).sum() < found.tested.sum() / 2 and lacking.max() == 1
    np.testing.assert_array_equal(found.table["n_people"], 20 - lacking)
    np.testing.assert_allclose(found.table["mean"], np.nanmean(maps, axis=0), rtol=1e-4, atol=1e-7)
    fewer = group_maps.group_map(tmp_path, labels[:19], model=MODEL)
    assert fewer.tested.sum() < found.tested.sum() and set(fewer.table["n_people"]) == {19}


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_people_have_no_group_map(tmp_path, n):
    found = group_maps.group_map(tmp_path, write_cohort(tmp_path, n, seed=10), model=MODEL)
    assert found.table.empty and not found.tested.any() and not list((tmp_path / "group").glob("*.nii.gz"))


@pytest.mark.slow
@pytest.mark.parametrize("planted", [AUDITORY, ()], ids=["planted", "nothing"])
def test_twelve_people_twenty_times(planted):
    """What is planted is found and nothing else; where nothing is, as seldom as p ≤ .05 promises."""
    mask, affine = group_maps.template_grid()
    power, wrong = [], 0
    for seed in range(20):
        rng, maps = np.random.default_rng(100 + seed), []
        for _ in range(12):
            values, _, points = head_map(rng, planted)
            made = group_maps.to_template(values, points, mask, affine, reach=8.0)
            maps.append(group_maps.smoothed(made, affine, group_maps.FWHM)[mask])
        known = np.isfinite(maps).all(axis=0)
        sure = (group_stats.flip_test(np.array(maps)[:, known])["p_fwe"] <= 0.05).to_numpy()
        away = distance_to(AUDITORY, mask, affine)[known]
        power.append(sure[away <= 8].mean())
        # The map is smoothed: what lies within its width of the planted balls of 12 mm is theirs.
        wrong += (sure & (away > 12 + 1.5 * group_maps.FWHM)).any() if planted else sure.any()
    print(f"found {np.mean(power):.3f} of the voxels planted; something else in {wrong} of 20")
    assert wrong <= stats.binom.ppf(0.99, 20, 0.05)
    assert np.mean(power) > 0.95 if planted else np.mean(power) < 0.01
