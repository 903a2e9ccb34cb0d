"""Changing the test part, and the sound heard only during it, changes nothing that was fitted, bit for bit."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
import soundfile
import torch

from bold_audio import workflow

pytestmark = pytest.mark.slow

FIRST_TEST = 475  # 448 = int(0.7 · 641) volumes up to the end of train, then a gap of 27


@pytest.fixture(scope="module")
def spoilt_dir(sim_dir, tmp_path_factory):
    """A copy of the simulated dataset with other test volumes and other sound from the test part on."""
    root = tmp_path_factory.mktemp("spoilt") / "sim"
    shutil.copytree(sim_dir, root)
    path = next(root.glob("sub-sim/ses-mri3t/func/*_bold.nii.gz"))
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).copy()
    rng = np.random.default_rng(0)
    first = FIRST_TEST
    data[..., first:] = rng.integers(0, 5000, data[..., first:].shape)
    with gzip.open(path, "wb", compresslevel=1) as handle:
        handle.write(nib.Nifti1Image(data, image.affine, image.header).to_bytes())
    wav = root / "stimuli" / "film.wav"
    y, rate = soundfile.read(wav)
    start = int(first * 0.608 * rate)
    y[start:] = rng.normal(0, 0.3, len(y) - start)  # much louder than the film: a global scale would show it
    soundfile.write(wav, y, rate, subtype="PCM_16")
    return root


@pytest.mark.parametrize("response", ["hrf", "delay"])
def test_nothing_fitted_knows_the_test_part(small_params, spoilt_dir, response):
    settings = {
        "response": response,
        "delays": [5.0, 6.0, 7.0],
        "mlp_delays": [5.0],
        "max_epochs": 10,
        "history_order": 2,
    }
    settings["history_components"] = 3
    fitted = []
    for given in ({}, {"data_dir": str(spoilt_dir)}):
        params = small_params(**settings, **given)
        subject = workflow.open_subject(params)
        found = workflow.ensure_sweep(subject)
        rows = workflow.fit_linear_rows(subject, found.delay, follows=found.follows)
        model, facts, _, _ = workflow.ensure_mlp(subject)
        train, test = subject.split.train, subject.split.test
        assert test[0] == FIRST_TEST
        fitted.append(
            {
                "mask": subject.run.mask,
                "value_range": np.array(subject.run.value_range),
                "mean_image": subject.run.mean_image,
                "train volumes": np.asarray(subject.Y[train]),
                "sweep": found.table.drop(columns="region").to_numpy(float),
                "responsive": found.responsive,
                "intervals": found.regions.drop(columns="region").fillna(-1.0).to_numpy(float),
                "voxels' delays": found.voxels.fillna(-1.0).to_numpy(),
                "components": rows["history"].step.weights,
                "scaling": np.array([facts["feature_mean"], facts["feature_scale"]]),
                **{f"phi of {name}": row.phi for name, row in rows.items()},
                **{f"train drive of {name}": row.drive(train) for name, row in rows.items()},
                **{f"mlp {name}": value.numpy() for name, value in model.state_dict().items()},
            }
        )
        fitted[-1]["test (must differ)"] = np.asarray(subject.Y[test])
        torch.manual_seed(99)
    differ = [name for name in fitted[0] if not np.array_equal(fitted[0][name], fitted[1][name])]
    assert differ == ["test (must differ)"]


def test_other_air_changes_no_headline(small_params, sim_dir, tmp_path):
    """Canary (vi): voxels outside the head with their volumes in another order, so that their mean is the same."""
    root = tmp_path / "air"
    shutil.copytree(sim_dir, root)
    path = next(root.glob("sub-sim/ses-mri3t/func/*_bold.nii.gz"))
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).copy()
    order = np.random.default_rng(1).permutation(448)  # inside train, so that the mask is made from the same mean
    found = []
    for changed in (False, True):
        if changed:
            outside = ~found[0]["mask"]
            data[outside, :448] = data[outside][:, order]
            with gzip.open(path, "wb", compresslevel=1) as handle:
                handle.write(nib.Nifti1Image(data, image.affine, image.header).to_bytes())
        params = small_params(data_dir=str(root), delays=[5.0, 6.0, 7.0], mlp_delays=[5.0])
        subject = workflow.open_subject(params)
        sweep = workflow.ensure_sweep(subject)
        rows = workflow.fit_linear_rows(subject, sweep.delay, follows=sweep.follows)
        table, _ = workflow.score_rows(
            subject, rows, subject.split.test, workflow.score_regions(subject, sweep), fitted_on=subject.split.train
        )
        found.append({"mask": subject.run.mask, "table": table, "delay": sweep.delay})
    assert np.array_equal(found[0]["mask"], found[1]["mask"]) and found[0]["delay"] == found[1]["delay"]
    kept = ["r_median", "r_best", "r2", "skill", "partial_r_median"]
    np.testing.assert_array_equal(found[0]["table"][kept], found[1]["table"][kept])
