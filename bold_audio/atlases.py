"""Labels of the atlases that nilearn fetches, as masks in template space."""

import functools

import nibabel as nib
import numpy as np

from bold_audio.files import AccessError, ParameterError, nearest


@functools.lru_cache(maxsize=4)
def read_atlas(atlas):
    """Fetch an atlas, once.

    Parameters
    ----------
    atlas : {"harvard_oxford", "harvard_oxford_subcortical", "juelich", "aal"}

    Returns
    -------
    values : array of shape (i, j, k)
        Number of the label in each voxel.
    affine : array of shape (4, 4)
        Grid index → template mm.
    numbers : dict of str to int
        Labels, without the background.

    Raises
    ------
    AccessError
        If it is neither here nor can be fetched.
    """
    from nilearn import datasets

    fetchers = {
        "harvard_oxford": lambda: datasets.fetch_atlas_harvard_oxford("cort-maxprob-thr25-2mm", verbose=0),
        "harvard_oxford_subcortical": lambda: datasets.fetch_atlas_harvard_oxford("sub-maxprob-thr25-2mm", verbose=0),
        "juelich": lambda: datasets.fetch_atlas_juelich("maxprob-thr25-2mm", verbose=0),
        "aal": lambda: datasets.fetch_atlas_aal(verbose=0),
    }
    try:
        fetched = fetchers[atlas]()
    except (
        OSError,
        ValueError,
    ) as error:  # requests' errors are OSErrors; nilearn raises ValueError for a bad download
        why = " ".join(str(error).split())[:120]
        raise AccessError(
            f"atlas {atlas} cannot be fetched ({why}) - fetch it where there is a network and copy nilearn's data "
            "folder (~/nilearn_data, or NILEARN_DATA) here, or take it out of regions"
        ) from None
    image = nib.load(fetched.maps) if isinstance(fetched.maps, str) else fetched.maps
    table = fetched.lut
    numbers = {str(n): int(k) for n, k in zip(table["name"], table["index"], strict=True) if int(k) != 0}
    return np.asarray(image.dataobj), image.affine, numbers


def label_map(name, atlas, label):
    """Where a label of an atlas is: bool array of shape (i, j, k), and its affine to template mm.

    Raises
    ------
    ParameterError
        If the atlas has no such label; the nearest one is named. ``name`` is that of the region.
    AccessError
        If the atlas cannot be fetched.
    """
    values, affine, numbers = read_atlas(atlas)
    if label not in numbers:
        known = list(numbers)
        raise ParameterError(f"regions: {name}: {atlas} has no label {label!r} - {nearest(label, known)}")
    return values == numbers[label], affine
