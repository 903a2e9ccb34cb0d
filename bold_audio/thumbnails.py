"""A statistical map → a small picture for a report: axial slices side by side, as a PNG inside the page."""

import base64
import struct
import zlib

import nibabel as nib
import numpy as np
from plotly.colors import sample_colorscale, unlabel_rgb

from bold_audio import style
from bold_audio.files import read_json

N_SLICES = 6
AROUND_ZERO = ("r", "partialr", "gain", "skill", "z", "r2")  # these have a sign; other maps begin at their smallest
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
    found = [one for one in found if one[2] not in LEFT_OUT]
    made = [map_thumbnail(*one) for one in sorted(found, key=lambda one: (one[1] == "sweep", one[1], one[2]))]
    return [one for one in made if one is not None]


def _entities(path):
    """Model and statistic in a map's name."""
    named = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
    return named.get("desc", ""), named.get("stat", "")


def map_thumbnail(path, model, stat):
    """One map as a picture with its words; None for a map that is a list of regions or has no finite value."""
    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj, dtype=float)
    if sorted(values.shape)[1] == 1 or not np.isfinite(values).any():
        return None
    low, high = map(float, style.limits(values, symmetric=stat in AROUND_ZERO))
    scale = style.DIVERGING if stat in AROUND_ZERO else style.OVERLAY
    pixels = _colours(_montage(values), low, high, scale)
    about = (read_json(path.with_name(path.name.replace(".nii.gz", ".json")), default={}) or {}).get("Description", "")
    finite = values[np.isfinite(values)]
    top = np.unravel_index(np.nanargmax(values), values.shape)
    where = ", ".join(f"{c:.0f}" for c in nib.affines.apply_affine(image.affine, top))
    ends = ("blue", "red") if stat in AROUND_ZERO else ("violet", "yellow")
    return {
        "model": model,
        "stat": stat,
        "src": png_uri(pixels),
        "alt": f"Map of {stat} ({model}), axial slices from bottom to top, left side on the left: "
        f"{finite.min():.3g} to {finite.max():.3g}, largest at ({where}) mm of the scanner.",
        "caption": f"{model}, {stat}: {about or 'no description'}. Colours {low:.3g} ({ends[0]}) to {high:.3g} "
        f"({ends[1]}); grey: no value.",
    }


def _montage(values):
    """Evenly spaced axial slices of the part of the grid that has values, in two rows, front up."""
    box = tuple(slice(*_ends(np.isfinite(values).any(axis=tuple({0, 1, 2} - {n})))) for n in range(3))
    inside = values[box]
    n = min(N_SLICES, inside.shape[2])
    picks = np.unique(np.linspace(0, inside.shape[2] - 1, n + 2).round().astype(int)[1:-1])
    slices = [np.pad(np.rot90(inside[:, :, k]), 1, constant_values=np.nan) for k in picks]
    slices += [np.full_like(slices[0], np.nan)] * (len(slices) % 2)
    half = len(slices) // 2
    return np.concatenate([np.concatenate(row, axis=1) for row in (slices[:half], slices[half:])])


def _ends(used):
    at = np.flatnonzero(used)
    return at[0], at[-1] + 1


def _colours(values, low, high, scale):
    """Values as RGB, uint8; NaN is a light grey."""
    table = np.array([unlabel_rgb(c) for c in sample_colorscale(scale, np.linspace(0, 1, 256).tolist())])
    with np.errstate(invalid="ignore"):
        at = np.clip((values - low) / ((high - low) or 1) * 255, 0, 255)
    pixels = table[np.nan_to_num(at).astype(int)].round().astype(np.uint8)
    pixels[~np.isfinite(values)] = 228
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
