"""A scan's image as it lies on disk: opened, read to its last byte, and what its header keeps quiet about."""

import gzip
import zlib

import nibabel as nib
import numpy as np

from bold_audio.files import DataError


def open_image(path):
    """Open an image, its values not yet read.

    Returns
    -------
    nibabel image

    Raises
    ------
    DataError
        If the file is empty, a placeholder, or no image.
    """
    start = path.open("rb").read(64)
    if not start:
        raise DataError(f"scan is empty: {path} - fetch it again")
    if path.suffix == ".gz" and start[:2] != b"\x1f\x8b":
        raise DataError(
            f"scan is not compressed or a placeholder (first bytes {start[:24]!r}): {path} - fetch it again"
        )
    try:
        return nib.load(path)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        raise DataError(f"scan cannot be read: {path} ({' '.join(str(error).split())}) - fetch it again") from error


def read_whole(path):
    """Read an image to its last byte, so that a gzip checksum that does not fit is noticed.

    Returns
    -------
    data : array
        In the image's own type, usually int16, or float32 where its header scales the values:
        a float64 copy of a whole film run would be 840 MB.
    affine : array of shape (4, 4)

    Raises
    ------
    DataError
        If the file is damaged.
    """
    image = open_image(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            content = handle.read()
        image = type(image).from_bytes(content)
        volume = int(np.prod(image.shape[:3])) * image.get_data_dtype().itemsize
        held = (len(content) - image.dataobj.offset) // max(volume, 1)
        if held > np.prod(image.shape[3:]):  # nibabel would read as many as the header says
            raise DataError(
                f"scan holds {held} volumes, its header says {np.prod(image.shape[3:]):.0f}: {path} - fetch it again"
            )
        scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
        data = np.asanyarray(image.dataobj, dtype=np.float32 if scaled else None)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"scan damaged: {path} ({' '.join(str(error).split())}) - fetch it again") from error
    return data.astype(np.float32, copy=False) if data.dtype.kind == "f" else data, image.affine


def scaling_warnings(image, path):
    """Say so where the header scales values by infinity, which nibabel leaves out without a word."""
    with nib.openers.ImageOpener(path) as handle:
        slope = float(type(image.header).from_fileobj(handle, check=False)["scl_slope"])
    return (f"scl_slope in the header is {slope:g}: the values are taken unscaled",) if np.isinf(slope) else ()


def orientation_warnings(header):
    """Say so where the header does not tell how the scan lies: tuple of str."""
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return ("orientation unknown (sform and qform are 0): left and right are not labelled",)
    return ()
