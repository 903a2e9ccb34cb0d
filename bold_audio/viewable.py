"""What a slice viewer can show → a `scene.Scene`: a run with predictions, an image on disk, maps over a mean volume."""

import gzip
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from bold_audio import slices, timecourse
from bold_audio.files import DataError, fingerprint, project_root, read_json
from bold_audio.images import content_size, open_image, orientation_warnings, read_whole
from bold_audio.locking import cached_folder
from bold_audio.runs import SECONDS_OF_CODE
from bold_audio.scene import Scene

SIMULATED = "SIMULATED: nobody was scanned"
UNKNOWN = "orientation unknown (sform and qform are 0)"
SAME_PLACE = 1e-2  # mm


def scene_of_run(run, predictions=None, *, volumes=None, null=None, maps=None, title=None):
    """A masked run, with what models predict.

    Parameters
    ----------
    run : data.BoldRun
    predictions, null : dict of (str, str) to array, optional
        As of `timecourse.as_predictions`; ``null`` are those of the same models fitted to a shifted sound.
    volumes : array of int, optional
        Which volumes the predictions are for; all of the run without it.
    maps : dict of str to array of shape (n_voxels,), optional
    title : str, optional

    Returns
    -------
    Scene
    """
    files = run.files
    frame = slices.make_frame(run.mask.shape, run.affine, reason="" if any(files.form_codes) else UNKNOWN)
    size = {"volumes": volumes, "n_volumes": len(run.volumes), "n_voxels": run.n_voxels}
    maps = {name: _one_per_voxel(name, values, run.mask) for name, values in (maps or {}).items()}
    simulated = "SIMULATED" in str(files.sidecar)
    said = [text for text in files.warnings if "orientation unknown" not in text]  # which the frame says
    return Scene(
        frame=frame,
        measured=slices.Volumes(run.volumes, slices.masked_index(run.mask, frame)),
        times=np.asarray(files.volume_times, float),
        t_r=float(files.t_r),
        predictions=timecourse.as_predictions(predictions, **size),
        null=timecourse.as_predictions(null, **size),
        starts=tuple(int(start) for start in files.starts),
        blocks=timecourse.film_blocks(files),
        maps=maps,
        regions={name: inside for name, inside in run.regions.items() if name != run.whole},
        given_mean=np.asarray(run.mean_image)[run.mask],
        title=title or files.entities,
        note="; ".join([SIMULATED] * simulated + said),
    )


def _one_per_voxel(name, values, mask):
    values = np.asarray(values, np.float32)
    if values.shape == mask.shape:
        return values[mask]
    if values.shape != (int(mask.sum()),):
        raise DataError(f"map {name} has the shape {values.shape} - give {mask.shape}, or one value per voxel")
    return values


def scene_of_image(path, *, cache=None, title=None):
    """An image on disk. It stays there: a compressed one is unpacked into a cache, once.

    Parameters
    ----------
    path : path
        3-D or 4-D NIfTI.
    cache : path, optional
        Folder of the unpacked copy; without it the project's, or one that goes when the kernel does.

    Returns
    -------
    Scene

    Raises
    ------
    DataError
        If there is no such image, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no scan at {path} - check the path")
    plain = _unpacked(path, cache)
    image = open_image(plain, mmap="r")
    if len(image.shape) not in (3, 4):
        raise DataError(f"{path.name} has {len(image.shape)} axes - a viewer shows images of 3 or 4")
    header = image.header
    unknown = orientation_warnings(header)
    frame = slices.make_frame(image.shape[:3], image.affine, reason=UNKNOWN if unknown else "")
    try:
        measured = slices.image_volumes(image, frame)
    except (OSError, ValueError) as error:
        raise DataError(f"scan damaged: {path} ({' '.join(str(error).split())}) - fetch it again") from error
    t_r, note = _repetition_time(path, image)
    simulated = [SIMULATED] * (b"SIMULATED" in bytes(header["descrip"]))
    return Scene(
        frame=frame,
        measured=measured,
        times=np.arange(len(measured.values)) * t_r,
        t_r=t_r,
        title=title or path.name,
        note="; ".join(simulated + note),
    )


def _repetition_time(path, image):
    """Seconds from one volume to the next, and what must be said of them."""
    if len(image.shape) == 3 or image.shape[3] == 1:
        return 1.0, []
    sidecar = read_json(path.with_name(path.name.split(".nii")[0] + ".json"), default={})
    said = sidecar.get("RepetitionTime") if isinstance(sidecar, dict) else None
    in_header = float(image.header.get_zooms()[3]) * SECONDS_OF_CODE.get(int(image.header["xyzt_units"]) & 0x38, 1.0)
    t_r = said if isinstance(said, int | float) and said > 0 else in_header
    return (float(t_r), []) if t_r > 0 else (1.0, ["no repetition time is known: volumes are counted as 1 s each"])


def _unpacked(path, cache):
    """The image uncompressed, on disk."""
    if not path.name.endswith(".gz"):
        return path
    says, volume = content_size(open_image(path))
    if cache is None:
        try:
            cache = project_root() / "outputs" / "cache"
        except DataError:
            cache = _own_folder()
    stat = path.stat()
    key = "unpacked-" + fingerprint(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    name = path.name.removesuffix(".gz")

    def make(folder):
        try:
            with gzip.open(path) as packed, (folder / name).open("wb") as plain:
                for piece in iter(lambda: packed.read(1 << 20), b""):
                    plain.write(piece)
                    if plain.tell() >= says + volume:
                        raise DataError(f"scan holds more volumes than its header says: {path} - fetch it again")
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"scan damaged: {path} ({' '.join(str(error).split())}) - fetch it again") from error

    return cached_folder(cache, key, make) / name


_FOLDERS = []  # of this process; each goes with it


def _own_folder():
    if not _FOLDERS:
        _FOLDERS.append(tempfile.TemporaryDirectory(prefix="bold_audio-"))
    return _FOLDERS[0].name


def scene_of_maps(maps, *, background=None, affine=None, title="Statistical maps"):
    """Statistical maps over a mean volume.

    Parameters
    ----------
    maps : dict of str to (array of shape (i, j, k), or path), or one path
        NaN is not drawn.
    background : array of shape (i, j, k), or path, optional
        Such as ``run.mean_image``; a 4-D image's mean. Black without it.
    affine : array of shape (4, 4), optional
        Grid index → mm, where neither maps nor background are files that say so.

    Returns
    -------
    Scene

    Raises
    ------
    DataError
        If there is no map, or they lie on different grids.
    """
    if isinstance(maps, str | os.PathLike):
        maps = {Path(maps).name.split(".nii")[0]: maps}
    if not maps:
        raise DataError("no map to show - give at least one")
    grids, places = {}, {}
    for name, given in {**maps, "background": background}.items():
        if given is not None:
            grids[name], places[name] = _grid(given)
    shape = grids[next(iter(maps))].shape
    known = [place for place in places.values() if place is not None]
    affine = known[0] if known else affine
    for name, grid in grids.items():
        if grid.shape != shape:
            raise DataError(f"{name} has the grid {grid.shape}, the first map {shape} - resample it")
        if places[name] is not None and not np.allclose(places[name], affine, atol=SAME_PLACE):
            raise DataError(f"{name} lies elsewhere in the head than the first map - resample it")
    frame = slices.make_frame(shape, affine)
    under = grids.pop("background", np.full(shape, np.nan, np.float32))
    everywhere = np.ones(shape, bool)
    return Scene(
        frame=frame,
        measured=slices.Volumes(under[everywhere][None], slices.masked_index(everywhere, frame)),
        times=np.zeros(1),
        t_r=1.0,
        maps={name: grid[everywhere] for name, grid in grids.items()},
        title=title,
    )


def _grid(given):
    """A map or a mean volume as float32, and its affine where a file says it."""
    if not isinstance(given, str | os.PathLike):
        grid = np.asarray(given, np.float32)
        place = None
    else:
        if not Path(given).is_file():
            raise DataError(f"no map at {given} - check the path")
        values, affine = read_whole(Path(given))
        grid = np.asarray(values, np.float32)
        place = None if orientation_warnings(open_image(Path(given)).header) else affine
    if grid.ndim == 4:
        grid = grid.mean(axis=3)
    if grid.ndim != 3:
        raise DataError(f"a map must be a grid (i, j, k), got the shape {grid.shape} - use run.to_grid")
    return grid, place
