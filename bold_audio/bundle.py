"""A model version as files: what inference needs besides the network, read back and checked.

``models_dir/<name>/<version>/`` holds ``model.onnx``, ``best_dt.txt``, ``bundle.json`` (plain facts) and
``bundle.npz`` (arrays). Voxels and coordinates of a model say the same:

    voxels = level + basis · coordinates + Σ_l phi_l ∘ previous_l  (+ what components of the previous volume add),

with the sum over the past only where measured previous volumes are an input. A whole volume can thus be made from a
few dozen numbers by whoever has the bundle.
"""

import itertools
import json
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bold_audio.files import DataError, ModelError, ParameterError, file_md5, fingerprint, read_json
from bold_audio.schema import NAME

FACTS = dict.fromkeys(("kind", "target", "onnx_md5", "arrays_md5", "bundle_hash", "model_name"), str)
FACTS |= dict.fromkeys(("n_inputs", "n_previous", "n_voxels", "model_version"), int)
FACTS |= {"delay": float, "mask_shape": list}
ARRAYS = {"basis", "level", "mask", "probe_features", "probe_coordinates", "mean_volume"}
ARRAYS_FILE = "bundle.npz"
VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Bundle:
    """A version of a model, all its files checked against one another.

    Parameters
    ----------
    folder : Path
    facts : dict
        ``bundle.json``: delay, target, settings and scaling of the features, mask hash, …
    arrays : dict of str to array
        ``basis`` (n_voxels, n_coordinates) and ``level`` (n_voxels,); ``mask`` in the scan's grid; ``mean_volume``
        (n_voxels,) of train; ``phi`` and
        ``space_*`` of a model with previous volumes among its inputs; ``history_phi``, ``history_level`` and
        ``history_space_*``, own history beside a network that gives the sound's part; ``probe_*``, an input and what
        the model answers to it.
    """

    folder: Path
    facts: dict
    arrays: dict

    @property
    def n_coordinates(self):
        """Numbers that stand for a volume."""
        return self.arrays["basis"].shape[1]

    def unfold(self, coordinates, previous=None):
        """Volumes from coordinates: array of shape (n, n_voxels), float32.

        Parameters
        ----------
        coordinates : array of shape (n, n_coordinates)
        previous : array of shape (n, n_previous, n_voxels), optional
            Measured previous volumes, nearest first; needed where the model has weights for them.
        """
        made = np.asarray(coordinates, np.float32) @ self.arrays["basis"].T
        made += self.arrays["level"]
        for lag, weight in enumerate(self.arrays.get("phi", ())):
            made += weight * previous[:, lag]
        if "space_loadings" in self.arrays:
            scores = (previous[:, 0] - self.arrays["space_centre"]) @ self.arrays["space_loadings"]
            made += scores @ self.arrays["space_weights"]
        return made

    def probe(self):
        """Inputs with a known answer: features and, where the model has them, previous volumes; or None for these."""
        X = self.arrays["probe_features"]
        n = self.facts["n_previous"]
        return X, (np.broadcast_to(self.arrays["mean_volume"], (len(X), n, self.facts["n_voxels"])) if n else None)


def mask_fingerprint(mask, affine):
    """Hash of a mask and its place in the head: a model serves the voxels it was trained on."""
    return fingerprint(list(mask.shape), np.packbits(mask).tobytes().hex(), np.round(affine, 4).tolist())


def facts_hash(facts):
    """Hash of ``bundle.json`` without itself and what is known only once the network, which holds it, is written."""
    later = ("bundle_hash", "onnx_md5", "max_difference")
    about = {name: value for name, value in facts.items() if name not in later}
    return fingerprint(json.dumps(about, sort_keys=True, default=str))


def input_widths(facts, n_voxels):
    """Inputs of a model and their widths: features and, where it has them, previous volumes one after the other."""
    widths = {"features": facts["n_inputs"]}
    return widths | ({"previous": facts["n_previous"] * n_voxels} if facts["n_previous"] else {})


def version_folder(models_dir, name, version):
    """``models_dir/name/version``.

    Raises
    ------
    ParameterError
        If the name or the version would lead elsewhere.
    """
    if not NAME.fullmatch(name):
        raise ParameterError(f"model_name must be letters, digits, '.', '_' and '-', got {str(name)[:60]!r}")
    if not VERSION.fullmatch(str(version)):
        raise ParameterError(f"model_version must be a whole number from 1 on, got {str(version)[:60]!r}")
    return Path(models_dir) / name / str(version)


def next_version(models_dir, name):
    """The first version number above all that exist."""
    return max(versions_in(Path(models_dir) / name), default=0) + 1


def versions_in(folder):
    """Version numbers of a model, in their order; a folder such as ``1.bak`` is none."""
    return sorted(int(path.name) for path in Path(folder).glob("*") if VERSION.fullmatch(path.name))


def find_same_model(models_dir, name, source, *, version=None):
    """The version that was exported from this very source, ``version`` before others; None where there is none."""
    folder = Path(models_dir) / name
    for number in sorted(versions_in(folder), key=lambda one: one != version):
        try:
            facts = _read_facts(folder / str(number) / "bundle.json")
        except ModelError:
            continue  # a damaged old version is not this model, and stops nobody from exporting
        if facts is not None and facts.get("source") == source:
            return number
    return None


def fitting_name(models_dir, name, widths, n_voxels, *, replaced=None):
    """The name itself, or the first of ``name_2, name_3, …``, under which all versions have these inputs and voxels.

    A server has one config for all versions of a name, so that models of other shapes need names of their own.

    Parameters
    ----------
    models_dir : path
    name : str
    widths : dict of str to int
        From `input_widths`.
    n_voxels : int
    replaced : int, optional
        A version that is about to be replaced, and does not count.
    """
    for k in itertools.count(1):
        made = name if k == 1 else f"{name}_{k}"
        theirs = shapes_in(Path(models_dir) / made)
        if all(one == (widths, n_voxels) for version, one in theirs.items() if version != replaced):
            return made


def shapes_in(folder):
    """By version: widths of the inputs and number of voxels; damaged versions, which serve nobody, are left out."""
    found = {}
    for number in versions_in(folder):
        try:
            facts = _read_facts(Path(folder) / str(number) / "bundle.json")
        except ModelError:
            continue
        if facts is not None:
            found[number] = input_widths(facts, facts["n_voxels"]), facts["n_voxels"]
    return found


def folders_of(models_dir, name):
    """Folders of a name and of its numbered twins (see `fitting_name`)."""
    models_dir = Path(models_dir)
    twins = (path for path in sorted(models_dir.glob(f"{name}_*")) if re.fullmatch(r"_[0-9]+", path.name[len(name) :]))
    return [models_dir / name, *twins]


def open_bundle(models_dir, name, version=None):
    """Read a version and check its files against one another.

    Parameters
    ----------
    models_dir : path
    name : str
    version : int, optional
        The newest by default.

    Returns
    -------
    Bundle

    Raises
    ------
    ModelError
        If there is no such version, or its files are damaged or contradict each other.
    ParameterError
        If name or version cannot be one.
    """
    version_folder(models_dir, name, version or 1)  # before a name that leads elsewhere is looked for
    if version is None:
        version = max(1, next_version(models_dir, name) - 1)
    folder = version_folder(models_dir, name, version)
    facts = _read_facts(folder / "bundle.json")
    if facts is None or not (folder / "model.onnx").is_file():
        raise ModelError(f"no model {name} version {version} in {models_dir} - run notebook 05 to export it")
    if (facts["model_name"], str(facts["model_version"])) != (name, str(version)):
        own = f"{facts['model_name']} version {facts['model_version']}"
        raise ModelError(f"{folder} holds a copy of {own} - a server knows it by that name; export it under this one")
    _check_delay(folder / "best_dt.txt", facts["delay"])
    for file, key in (("model.onnx", "onnx_md5"), (ARRAYS_FILE, "arrays_md5")):
        if not (folder / file).is_file() or file_md5(folder / file) != facts[key]:
            raise ModelError(f"{folder / file} is not the file that bundle.json describes - export it again")
    arrays = _read_arrays(folder / ARRAYS_FILE, facts)
    if facts_hash(facts) != facts["bundle_hash"]:
        raise ModelError(f"{folder / 'bundle.json'} was changed after the export - export the model again")
    return Bundle(folder, facts, arrays)


def _read_facts(path):
    """What a version's bundle says; None where there is none."""
    try:
        facts = read_json(path)
    except DataError as error:
        raise ModelError(f"{path} is damaged - export the model again") from error
    if facts is not None and not (
        isinstance(facts, dict) and all(_is(facts.get(k), kind) for k, kind in FACTS.items())
    ):
        raise ModelError(f"{path} lacks what inference needs - export the model again")
    return facts


def _is(value, kind):
    """Whether a fact is of its kind: text, a count, a finite number, or a list of counts."""
    if kind is list:
        return isinstance(value, list) and len(value) > 0 and all(_is(one, int) for one in value)
    if kind is str:
        return isinstance(value, str)
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return whole or (kind is float and isinstance(value, float) and math.isfinite(value))


def _read_arrays(path, facts):
    """Arrays of a version, nothing in them executed, of the sizes that the facts name."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_header(archive, member)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        shape = tuple(facts["mask_shape"])
        if math.prod(shape) > 8 * arrays["mask"].size:
            raise ValueError("the mask is smaller than its grid")
        arrays["mask"] = np.unpackbits(arrays["mask"], count=math.prod(shape)).reshape(shape).astype(bool)
    except Exception as error:  # whatever zip, NumPy and a missing key make of a damaged file
        raise ModelError(f"{path} is damaged ({type(error).__name__}) - export the model again") from error
    n = facts["n_voxels"]
    plain = set(arrays) >= ARRAYS and all(array.dtype.kind in "fb" for array in arrays.values())
    if not (plain and arrays["mask"].sum() == n and arrays["basis"].ndim == 2 and len(arrays["basis"]) == n):
        raise ModelError(f"{path} does not fit bundle.json - export the model again")
    if not arrays["level"].shape == arrays["mean_volume"].shape == (n,):
        raise ModelError(f"{path} does not fit bundle.json - export the model again")
    return arrays


def _check_header(archive, member):
    """Refuse an array whose header speaks of more than is there: NumPy would ask for all of it first."""
    with archive.open(member) as stored:
        np.lib.format.read_magic(stored)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stored)
        if member.compress_type != zipfile.ZIP_STORED or math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} is not an array of its size")


def _check_delay(path, delay):
    """``best_dt.txt`` is a copy for people; it must say what the bundle says."""
    text = ""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace").strip()
        written = float(text)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing - export the model again") from None
    except ValueError:
        raise ModelError(f"{path} holds {text[:40]!r}, not a delay in s - export the model again") from None
    if not abs(written - delay) <= 1e-6:
        raise ModelError(f"{path} says {written:g} s, but this model was trained at {delay:g} s - export it again")


def check_fits(facts, *, n_features, subject, mask_hash, allow_other_subject=False):
    """Refuse a model that was trained on another subject, mask or set of features.

    ``allow_other_subject`` lets another subject's model pass.

    Raises
    ------
    ModelError
    """
    if facts["n_inputs"] != n_features:
        raise ModelError(
            f"the model expects {facts['n_inputs']} features, these are {n_features} - set what bundle.json says"
        )
    if not allow_other_subject and (facts["subject"] != subject or facts["mask_hash"] != mask_hash):
        raise ModelError(
            f"the model was trained on sub-{facts['subject']} with mask {facts['mask_hash']}, this is sub-{subject} "
            f"with mask {mask_hash} - train a model for this scan, or set allow_other_subject"
        )
