"""A statistical map → a small picture for a report: axial slices side by side, as a PNG inside the page."""

import base64
import struct
import zlib

import nibabel as nib
import numpy as np
from plotly.colors import sample_colorscale, unlabel_rgb

from bold_audio import style
from bold_audio.files import read_json
from bold_audio.images import orientation_warnings

N_SLICES = 6
AROUND_ZERO = ("r", "partialr", "gain", "skill", "z", "t", "r2")  # have a sign; other maps begin at their smallest
NO_VALUE, OUTSIDE = 184, 224  # greys, both darker than a map's zero
LEFT_OUT = ("p", "q", "pfwe", "delaylow", "delayhigh")  # beside another map of the same analysis


def subject_thumbnails(folder):
    """Thumbnails of a subject's maps, those of the test part first.

    Parameters
    ----------
    folder : Path
        The subject's outputs, with ``…_desc-<model>_stat-<stat>_statmap.nii.gz``.

    Returns
    -------
    list of dict
        ``src`` (PNG as a data URI), ``alt``, ``caption``, ``model`` and ``stat``. Maps that are lists of regions, and
        not pictures, are left out, and so are ``p`` and the ends of intervals.
    """
    found = [(path, *_entities(path)) for path in sorted(folder.glob("*_statmap.nii.gz"))]
    found = [(*one, *_values(one[0])) for one in found if one[2] not in LEFT_OUT]
    brains = {}  # all maps of a grid are shown in one frame, and where a map has no value the brain is still seen
    for *_, values, _ in found:
        brains[values.shape] = np.isfinite(values) | brains.get(values.shape, False)
    ordered = sorted(found, key=lambda one: (one[1] == "sweep", one[1], one[2]))
    made = [map_thumbnail(*one, brains=brains) for one in ordered]
    return [one for one in made if one is not None]


def _values(path):
    """Values of a map in canonical order, and its affine; as they lie, and None, where the orientation is unknown."""
    image = nib.load(path)
    known = not orientation_warnings(image.header)
    image = nib.as_closest_canonical(image) if known else image
    return np.asarray(image.dataobj, dtype=float), image.affine if known else None


def _entities(path):
    """Model and statistic in a map's name."""
    named = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
    return named.get("desc", ""), named.get("stat", "")


def map_thumbnail(path, model, stat, values, affine, *, brains):
    """One map as a picture with its words; None for a map that is a list of regions or has no finite value.

    ``brains`` holds, by shape of the grid, where any map of it has a value. Without ``affine`` no side is named.
    """
    if sorted(values.shape)[1] == 1 or not np.isfinite(values).any():
        return None
    low, high = map(float, style.limits(values, symmetric=stat in AROUND_ZERO))
    scale = style.DIVERGING if stat in AROUND_ZERO else style.OVERLAY
    brain = brains[values.shape]
    pixels = _colours(_montage(values, brain, np.nan), low, high, scale)
    pixels[~_montage(brain, brain, False)] = OUTSIDE
    about = (read_json(path.with_name(path.name.replace(".nii.gz", ".json")), default={}) or {}).get("Description", "")
    finite = values[np.isfinite(values)]
    top = np.unravel_index(np.nanargmax(values), values.shape)
    sides, unit = "axial slices from bottom to top, left side on the left", "mm of the scanner"
    if affine is None:
        sides, unit = "slices along the grid's third axis, orientation unknown", "voxel"
    where = ", ".join(f"{c:.0f}" for c in (top if affine is None else nib.affines.apply_affine(affine, top)))
    ends = ("blue", "red") if stat in AROUND_ZERO else ("violet", "yellow")
    return {
        "model": model,
        "stat": stat,
        "src": png_uri(pixels),
        "alt": f"Map of {stat} ({model}), {sides}: {finite.min():.3g} to {finite.max():.3g}, largest at ({where}) "
        f"{unit}.",
        "caption": f"{model}, {stat}: {about or 'no description'}. Colours {low:.3g} ({ends[0]}) to {high:.3g} "
        f"({ends[1]}); grey: no value.",
    }


def _montage(values, brain, nothing):
    """Evenly spaced slices of the part of the grid that the brain takes, in two rows, front up."""
    box = tuple(slice(*_ends(brain.any(axis=tuple({0, 1, 2} - {n})))) for n in range(3))
    inside = values[box]
    n = min(N_SLICES, inside.shape[2])
    picks = np.unique(np.linspace(0, inside.shape[2] - 1, n + 2).round().astype(int)[1:-1])
    slices = [np.pad(np.rot90(inside[:, :, k]), 1, constant_values=nothing) for k in picks]
    slices += [np.full_like(slices[0], nothing)] * (len(slices) % 2)
    half = len(slices) // 2
    return np.concatenate([np.concatenate(row, axis=1) for row in (slices[:half], slices[half:])])


def _ends(used):
    at = np.flatnonzero(used)
    return at[0], at[-1] + 1


def _colours(values, low, high, scale):
    """Values as RGB, uint8; NaN is grey."""
    table = np.array([unlabel_rgb(c) for c in sample_colorscale(scale, np.linspace(0, 1, 256).tolist())])
    with np.errstate(invalid="ignore"):
        at = np.clip((values - low) / ((high - low) or 1) * 255, 0, 255)
    pixels = table[np.nan_to_num(at).astype(int)].round().astype(np.uint8)
    pixels[~np.isfinite(values)] = NO_VALUE
    return pixels


def png_uri(pixels):
    """RGB pixels, uint8 of shape (height, width, 3), as a PNG in a data URI.

    References
    ----------
    PNG (Portable Network Graphics) Specification, W3C: a filter byte before each row, zlib, a CRC for each chunk.
    """
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows, 9))
    packed = b"\x89PNG\r\n\x1a\n"
    for name, content in (*chunks, (b"IEND", b"")):
        packed += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return f"data:image/png;base64,{base64.b64encode(packed).decode()}"
