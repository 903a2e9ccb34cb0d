"""What was planted in a simulated subject: the answer that real data do not have."""

import nibabel as nib
import numpy as np

from bold_audio.files import DataError, read_json

ANEW = "simulate the subject anew, or delete this folder"


def read_truth(params):
    """What was planted in a simulated subject; None for data that were not simulated by us."""
    folder = folder_of(params)
    return _simulated_truth(folder) if (folder / "truth.json").is_file() else None


def folder_of(params):
    """Where what was planted is written down."""
    return params.data_path / "derivatives" / "truth" / f"sub-{params.subject}"


def _simulated_truth(folder):
    truth = read_json(folder / "truth.json", mend=ANEW)
    try:
        truth["labels"] = {str(region["name"]): region["label"] for region in truth["regions"]}
        truth["region_map"] = next(folder.glob("*_dseg.nii.gz"))
        truth["r2_map"] = next(folder.glob("*r2*.nii.gz"))
    except (KeyError, TypeError, StopIteration) as error:
        raise DataError(f"{folder} lacks what a simulation leaves ({type(error).__name__}) - {ANEW}") from error
    return truth


def planted_delay(params):
    """The single Δt that fits a simulated subject's noiseless responses best, for features made as ``response`` says.

    None for real data, for a subject in whom nothing was planted, and for ``fir``, which has several windows.
    """
    truth = read_truth(params)
    best = truth and truth["pooled"]["best_single_delay"]
    return best.get(params.response) if best else None


def planted_delays(params):
    """The delay at which each region of a simulated subject follows the sound, in seconds: dict, empty of real data."""
    planted = read_truth(params) or {"regions": []}
    return {region["name"]: region["delay"] for region in planted["regions"] if region["delay"] is not None}


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

    Raises
    ------
    DataError
        If the maps of the truth cannot be read, or have another grid.
    """
    try:
        label, r2 = (np.asarray(nib.load(truth[name]).dataobj)[mask] for name in ("region_map", "r2_map"))
    except Exception as error:  # whatever nibabel and NumPy make of a damaged map, or of one in another grid
        raise DataError(f"{truth['region_map'].parent} has maps that cannot be read - {ANEW}") from error
    planted = {f"planted_{name}": label == number for name, number in truth["labels"].items()}
    regions = {name: where for name, where in planted.items() if where.any()}
    if np.any(r2 >= 0.2):
        regions["planted_r2_over_0.2"] = r2 >= 0.2
    return regions | {"silent": r2 == 0}
