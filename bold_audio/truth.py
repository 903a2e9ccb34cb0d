"""What was planted in a simulated subject: the answer that real data do not have."""

import json

import nibabel as nib
import numpy as np


def read_truth(params):
    """What was planted in a simulated subject; None for data that were not simulated by us."""
    folder = folder_of(params)
    return _simulated_truth(folder) if (folder / "truth.json").is_file() else None


def folder_of(params):
    """Where what was planted is written down."""
    return params.data_path / "derivatives" / "truth" / f"sub-{params.subject}"


def _simulated_truth(folder):
    truth = json.loads((folder / "truth.json").read_text())
    truth["labels"] = {region["name"]: region["label"] for region in truth["regions"]}
    truth["region_map"] = next(folder.glob("*_dseg.nii.gz"))
    truth["r2_map"] = next(folder.glob("*r2*.nii.gz"))
    return truth


def planted_delay(params):
    """The single Δt that fits a simulated subject's noiseless responses best, for features made as ``response`` says.

    None for real data, for a subject in whom nothing was planted, and for ``fir``, which has several windows.
    """
    truth = read_truth(params)
    best = truth and truth["pooled"]["best_single_delay"]
    return best.get(params.response) if best else None


def planted_regions(truth, mask):
    """Where responses were planted, and where none were, in a mask of the simulated grid.

    Parameters
    ----------
    truth : dict
        From `read_truth`.
    mask : array of bool

    Returns
    -------
    dict of str to array of bool, shape (n_voxels,)
    """
    label = np.asarray(nib.load(truth["region_map"]).dataobj)[mask]
    r2 = np.asarray(nib.load(truth["r2_map"]).dataobj)[mask]
    planted = {f"planted_{name}": label == number for name, number in truth["labels"].items()}
    regions = {name: where for name, where in planted.items() if where.any()}
    if np.any(r2 >= 0.2):
        regions["planted_r2_over_0.2"] = r2 >= 0.2
    return regions | {"silent": r2 == 0}
