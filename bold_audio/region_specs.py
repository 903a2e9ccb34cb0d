"""What the parameter ``regions`` may say: spheres at template mm, a label of an atlas, a mask image; nothing else."""

import re

from bold_audio.files import nearest

KINDS = {"sphere": "radius", "atlas": "label", "mask": None}  # kind → what it needs besides
ATLASES = ("harvard_oxford", "harvard_oxford_subcortical", "juelich", "aal")
TAKEN = ("brain", "volume", "responsive", "silent")  # regions that every subject, or every simulated one, has
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")
FARTHEST, LARGEST = 120.0, 50.0  # mm


def check_regions(regions):
    """Check the parameter ``regions``.

    Parameters
    ----------
    regions : dict of str to dict
        ``{name: {sphere: [[x, y, z], …], radius: mm}}``, ``{name: {atlas: …, label: …}}`` or ``{name: {mask: path}}``.

    Returns
    -------
    dict of str to dict
        With numbers as floats.

    Raises
    ------
    ValueError
        If anything else is said: what, and the nearest right name.

    Examples
    --------
    >>> check_regions({"left": {"sphere": [[-54, -20, 3]], "radius": 12}})
    {'left': {'sphere': [[-54.0, -20.0, 3.0]], 'radius': 12.0}}
    """
    if not isinstance(regions, dict):
        raise ValueError("must be names with what each region is - write {} for none")
    checked = {name: _checked(name, spec) for name, spec in regions.items()}
    for name, spec in checked.items():
        for part in parts_of(name) if has_sides(spec) else ():
            if part in checked:
                raise ValueError(f"{part} is also the name that a side of {name} gets - rename one of them")
    return checked


def parts_of(name):
    """Names of the left and the right part that a region with voxels on both sides also gets."""
    return f"{name}_left", f"{name}_right"


def has_sides(spec):
    """Whether a checked region may get a left and a right part: spheres on both sides, and all that is no sphere."""
    return "sphere" not in spec or {x > 0 for x, _, _ in spec["sphere"] if x} == {False, True}


def _checked(name, spec):
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in TAKEN or name.startswith("planted_"):
        rule = "must begin with a letter and be at most 50 letters, digits and '_', not planted_… and none of "
        raise ValueError(f"the name {name!r} {rule}{', '.join(TAKEN)} - choose another name")
    if not isinstance(spec, dict) or not spec:
        raise ValueError(f"{name} must say what it is, got {spec!r} - give sphere and radius, atlas and label, or mask")
    known = [*KINDS, *filter(None, KINDS.values())]
    for key in spec:
        if key not in known:
            raise ValueError(f"{name} has an unknown {key} - {nearest(key, known)}")
    kinds = [kind for kind in KINDS if kind in spec]
    if len(kinds) != 1:
        raise ValueError(
            f"{name} must be one of sphere, atlas and mask, got {' and '.join(kinds) or 'none'} - take one"
        )
    (kind,) = kinds
    needed = {kind, KINDS[kind]} - {None}
    if set(spec) != needed:
        wrong = sorted(set(spec) ^ needed)[0]
        what = "lacks its" if wrong in needed else f"is a {kind} and takes no"
        raise ValueError(f"{name} {what} {wrong} - write {' and '.join(sorted(needed, reverse=True))}")
    return {"sphere": _sphere, "atlas": _atlas, "mask": _mask}[kind](name, spec)


def _number(value, low, high):
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _sphere(name, spec):
    centres = spec["sphere"]
    centres = [centres] if isinstance(centres, list | tuple) and centres and _number(centres[0], -1e9, 1e9) else centres
    listed = isinstance(centres, list | tuple) and len(centres) > 0
    if not listed or not all(
        isinstance(c, list | tuple) and len(c) == 3 and all(_number(v, -FARTHEST, FARTHEST) for v in c) for c in centres
    ):
        raise ValueError(f"{name}: sphere must be centres [x, y, z] in template mm - such as [[-54, -20, 3]]")
    if not _number(spec["radius"], 1, LARGEST):
        raise ValueError(f"{name}: radius must be from 1 to {LARGEST:g} mm, not {spec['radius']!r} - 12 is usual")
    return {"sphere": [[float(v) for v in c] for c in centres], "radius": float(spec["radius"])}


def _atlas(name, spec):
    if spec["atlas"] not in ATLASES:
        raise ValueError(f"{name}: unknown atlas {spec['atlas']} - {nearest(spec['atlas'], ATLASES)}")
    if not isinstance(spec["label"], str) or not spec["label"]:
        raise ValueError(f"{name}: label must be a name in the atlas, not {spec['label']!r} - write it in quotes")
    return dict(spec)


def _mask(name, spec):
    if not isinstance(spec["mask"], str) or not spec["mask"]:
        raise ValueError(f"{name}: mask must be the path of an image, not {spec['mask']!r} - write it in quotes")
    return dict(spec)
