"""A scan's image as it lies on disk: opened, read to its last byte, and what its header keeps quiet about."""

import gzip
import io
import logging
import math
import os
import zlib

import nibabel as nib
import numpy as np

from bold_audio.files import DataError

LARGE, PACKED = 2**28, 200  # bytes; a scan that unpacks to more is never packed as tightly as this many times
VOXEL = (1e-6, 1e9)  # mm³
SLAB = 2**26  # bytes of volumes read at a time
# nibabel puts right what it can in a header and prints a line each time it looks; `header_warnings` says it once.
nib.imageglobals.logger.setLevel(logging.CRITICAL)
# How a NIfTI file begins: the size of its header, 348 or 540 bytes, in either byte order.
NOT_COMPRESSED = {size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")}


def open_image(path, *, mmap=True):
    """Open an image, its values not yet read.

    Parameters
    ----------
    path : Path
    mmap : bool or str
        How nibabel maps the values of a file that is not compressed.

    Returns
    -------
    nibabel image

    Raises
    ------
    DataError
        If the file is empty, a placeholder, or no image, or its header says what cannot be.
    """
    if not path.is_file():
        raise DataError(f"scan is no file: {path} - fetch it again")
    with path.open("rb") as handle:
        start = handle.read(64)
    if not start:
        raise DataError(f"scan is empty: {path} - fetch it again")
    if path.suffix == ".gz" and start[:4] in NOT_COMPRESSED:
        raise DataError(f"scan is not compressed: {path} - rename it to .nii")
    if path.suffix == ".gz" and start[:2] != b"\x1f\x8b":
        raise DataError(
            f"scan is a placeholder (first bytes {start[:24]!r}): {path} - the download did not finish, fetch it again"
        )
    try:
        image = nib.load(path, mmap=mmap)
    except Exception as error:  # whatever nibabel, NumPy and zlib make of a damaged header
        raise DataError(f"scan cannot be read: {path} ({' '.join(str(error).split())}) - fetch it again") from error
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"scan holds colours or complex numbers, not intensities: {path} - convert it")
    _check_size(image, path)
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(image.affine[:3, :3].astype(float)))
    if not (np.isfinite(image.affine).all() and VOXEL[0] < volume < VOXEL[1]):
        raise DataError(f"scan has a header that puts it nowhere (voxels of {volume:g} mm³): {path} - fetch it again")
    return image


def _check_size(image, path):
    """Refuse a header that speaks of more than the file can hold, before anything of that size is asked for."""
    says, holds = content_size(image)[0], path.stat().st_size
    if min(image.shape, default=0) < 1 or says > (max(LARGE, PACKED * holds) if path.suffix == ".gz" else holds):
        raise DataError(
            f"scan damaged: {path} ({holds} bytes cannot hold the shape {image.shape} of its header) - fetch it again"
        )


def content_size(image):
    """Bytes of an opened image, header and values unpacked, and bytes of one volume, as its header says."""
    volume = math.prod(image.shape[:3]) * image.get_data_dtype().itemsize
    return image.dataobj.offset + volume * math.prod(image.shape[3:]), volume


def check_length(image, path):
    """Read an image to its last byte, with all checks of that, where its file is not as long as its header says.

    Nobody should hear that the sound is too short when it is the header that is wrong.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    needed, held = content_size(image)[0], path.stat().st_size
    if path.suffix == ".gz":  # ends with the length of what is packed, modulo 2³²
        with path.open("rb") as handle:
            handle.seek(-4, os.SEEK_END)
            held, needed = int.from_bytes(handle.read(4), "little"), needed % 2**32
    if held != needed:
        for _ in read_slabs(path):
            pass


def read_slabs(path):
    """Read an image a few volumes at a time, to its last byte, so that a gzip checksum that does not fit is noticed.

    Yields
    ------
    array of shape (i, j, k, n)
        At most `SLAB` bytes of volumes, or one volume, in the order of the file, and in the image's own type, usually
        int16, or float32 where its header scales the values.

    Raises
    ------
    DataError
        If the file is damaged; what was read before that is not to be used.
    """
    opened = open_image(path)
    says, volume = content_size(opened)
    held, n_volumes = opened.dataobj.offset, math.prod(opened.shape[3:])
    per_slab = max(1, SLAB // volume)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            handle.seek(held)
            for start in range(0, n_volumes, per_slab):
                n = min(per_slab, n_volumes - start)
                content = handle.read(n * volume)
                held += len(content)
                if len(content) < n * volume:
                    raise DataError(f"scan damaged: {path} ({held} of {says} bytes) - fetch it again")
                yield _values(opened, content, (*opened.shape[:3], n))
            if len(handle.read(volume)) == volume:  # nibabel would read as many as the header says
                raise DataError(f"scan holds more volumes than its header says: {path} - fetch it again")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"scan damaged: {path} ({' '.join(str(error).split())}) - fetch it again") from error


def _values(opened, content, shape):
    """Values of an opened image whose bytes these are."""
    about = opened.dataobj
    proxy = nib.arrayproxy.ArrayProxy(io.BytesIO(content), (shape, about.dtype, 0, about.slope, about.inter))
    scaled = about.slope != 1 or about.inter != 0
    with np.errstate(over="ignore", invalid="ignore"):  # whoever needs finite values looks for others
        data = np.asanyarray(proxy, dtype=np.float32 if scaled else None)
    return data.astype(np.float32, copy=False) if data.dtype.kind == "f" else data


def read_whole(path):
    """Read an image whole, with the checks of `read_slabs`.

    Returns
    -------
    data : array
        A float64 copy of a whole film run would be 840 MB: see `read_slabs` for its type.
    affine : array of shape (4, 4)

    Raises
    ------
    DataError
        If the file is damaged.
    """
    opened, whole, start = open_image(path), None, 0
    for slab in read_slabs(path):
        if whole is None:
            whole = np.empty((*slab.shape[:-1], math.prod(opened.shape[3:])), slab.dtype, order="F")
        whole[..., start : start + slab.shape[-1]] = slab
        start += slab.shape[-1]
    return whole.reshape(opened.shape, order="F"), opened.affine


def header_warnings(image, path):
    """What nibabel puts right in a header, or leaves out, without a word that reaches a report: tuple of str."""
    with nib.openers.ImageOpener(path) as handle:
        header = type(image.header).from_fileobj(handle, check=False)
    found = type(header).diagnose_binaryblock(header.binaryblock, header.endianness)
    said = (f"the header was mended: {'; '.join(found.splitlines())}",) if found else ()
    if np.isinf(slope := float(header["scl_slope"])):
        said += (f"scl_slope in the header is {slope:g}: the values are taken unscaled",)
    return said


def orientation_warnings(header):
    """Say so where the header does not tell how the scan lies: tuple of str."""
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return ("orientation unknown (sform and qform are 0): left and right are not labelled",)
    return ()
