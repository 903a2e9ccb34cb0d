"""Outputs of made-up subjects, as their runs leave them: tables, provenance, status and maps, no scan."""

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bold_audio import brain, register
from bold_audio.files import time_of_day, write_json, write_table

PARAMETERS = {"dataset": "sim", "sweep_fwhm": 8.0, "delays": [2.0, 4.0, 6.0], "data_note": "SIMULATED subject"}


def write_person(folder, label, gains, *, r=0.2, delay=5.0, mean_fd=0.1, within=True, **parameters):
    """Write a finished subject into ``folder``; ``gains``: region → gain over the past. Gives its folder."""
    path = folder / f"sub-{label}"
    models = ["past_sound", *(["past_blocks_sound"] if within else [])]
    line = {"over": "the past", "partial_r": 0.1, "p": 0.01, "n_surrogates": 99, "n_voxels": 20, "n_region": 20}
    lines = [line | {"region": name, "model": model, "gain": g} for model in models for name, g in gains.items()]
    write_table(path / "inference_regions.tsv", pd.DataFrame(lines))
    scores = {"prediction": "one_step", "region": list(gains), "r_median": r}
    write_table(
        path / "out_of_fold.tsv", pd.concat([pd.DataFrame({"model": m} | scores) for m in ("sound", "history")])
    )
    known = {"delay": delay, "low": delay - 0.4, "high": delay + 0.4, "p": 0.01, "identifiable": True}
    write_table(path / "dt_regions.tsv", pd.DataFrame({"region": list(gains)} | known))
    moved = pd.DataFrame({"time": [0.0, 1.0, 2.0], "framewise_displacement": [None, mean_fd, mean_fd]})
    write_table(path / f"sub-{label}_task-film_desc-quality_timeseries.tsv", moved)
    made = {"parameters": PARAMETERS | {"subject": label} | parameters}
    made["input_md5"] = {f"sub-{label}_bold.nii.gz": label, "film.wav": "0"}
    made["finished"] = time_of_day()
    write_json(path / "provenance.json", dict.fromkeys(("inference_regions", "out_of_fold", "dt_sweep"), made))
    write_json(path / "status.json", {"state": "done"})
    return path


def write_person_map(folder, label, values, affine, *, model="oofHistorySound", stat="gain", points=None):
    """Write a person's map, of the gain unless ``stat`` says otherwise.

    ``points``: template mm of each voxel, else the scan is in MNI space.
    """
    space = "_space-MNI152NLin2009cAsym" if points is None else ""
    path, codes = folder / f"sub-{label}", (1, 1)
    name = f"sub-{label}_task-film{space}"
    known = {"about": {}, "named": "made up", "form_codes": codes}
    made = brain.write_statmap(path / f"{name}_desc-{model}_stat-{stat}_statmap.nii.gz", values, affine, **known)
    if points is not None:
        ending = f"from-boldref_to-{register.TEMPLATE}_mode-points_xfm.nii.gz"
        brain.write_statmap(path / f"{name}_{ending}", points.astype(np.float32), affine, **known)
    return made


def head_map(rng, planted, *, voxel=6.0, effect=0.03, spread=0.006):
    """A made-up head with its map of the gain: smooth noise, and in ``planted`` an effect that differs by person.

    Parameters
    ----------
    planted : sequence of (float, float, float)
        Centres of balls of 12 mm, template mm; empty for nothing.

    Returns
    -------
    values : array of shape (i, j, k), float32
        NaN outside the brain.
    affine : array of shape (4, 4)
    points : array of shape (i, j, k, 3)
        Template mm of each voxel: the head is turned, shifted and of another size.
    """
    shape = (30, 34, 28)
    turn = Rotation.from_euler("xyz", rng.normal(0, 5, 3), degrees=True).as_matrix() * rng.uniform(0.95, 1.05)
    affine = np.diag([-voxel, voxel, voxel, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2 + rng.normal(0, 5, 3)
    middle = affine[:3, :3] @ (np.array(shape) - 1) / 2 + affine[:3, 3]
    points = register.grid_points(shape, affine).T.reshape(*shape, 3)
    points = (points - middle) @ turn.T + [0, -18, 8]
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    values = (spread * noise / noise.std()).astype(np.float32)
    inside = np.linalg.norm((points - [0, -18, 8]) / [80, 98, 82], axis=-1) <= 1
    for centre in planted:
        values += max(rng.normal(effect, effect / 5), 0) * (np.linalg.norm(points - centre, axis=-1) <= 12)
    return np.where(inside, values, np.nan), affine, points
