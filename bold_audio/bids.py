"""A BIDS run where it lies: its paths, and what header, sidecar and events say of its clock and its sound."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bold_audio.features import BLOCK_TYPES, SPEECH_TYPES, read_table, read_times
from bold_audio.files import DataError, read_json
from bold_audio.params import DEFAULT_DATASET, SIMULATED
from bold_audio.registry import check_fmri_subject

T_R_TOLERANCE = 0.01  # relative; PAR/REC and DICOM headers round to this
SECONDS_OF_CODE = {8: 1.0, 16: 1e-3, 24: 1e-6}  # of xyzt_units; headers with no known unit mean seconds


@dataclass(frozen=True)
class RunFiles:
    """Where a BIDS run lies and what its header, sidecar and events say.

    ``onset`` is the onset of the sound on the clock of the run, in seconds; ``events`` is
    None where there is no events file.
    """

    bold: Path
    n_volumes: int
    grid: tuple
    affine: np.ndarray
    t_r: float
    onset: float
    events: object
    sidecar: dict
    form_codes: tuple = (1, 1)
    warnings: tuple = ()

    @property
    def entities(self):
        """File name without ``_bold.nii.gz``: the prefix of everything made from this run."""
        return self.bold.name.split("_bold.nii")[0]

    @property
    def volume_times(self):
        """Start of each volume on the clock of the run, in seconds."""
        return np.arange(self.n_volumes) * self.t_r


def run_name(params):
    """File name of the run without extension, from its BIDS entities."""
    parts = [("sub", params.subject), ("ses", params.session), ("task", params.task)]
    parts += [("run", params.run), ("space", params.space)]
    return "_".join(f"{key}-{value}" for key, value in parts if value is not None) + "_bold"


def known_subjects(params):
    """Labels of the subjects in the dataset's tree."""
    return sorted(p.name[4:] for p in params.data_path.glob("sub-*") if p.is_dir())


def locate_run(params):
    """Find a subject's run and read what its header, sidecar and events say.

    Raises
    ------
    DataError
        If the run is missing or contradicts itself: repetition time, shape, onset.
    """
    folder = params.data_path / f"sub-{params.subject}"
    folder = (folder / f"ses-{params.session}" if params.session else folder) / "func"
    found = [p for p in (folder / f"{run_name(params)}.nii.gz", folder / f"{run_name(params)}.nii") if p.is_file()]
    if not found:
        raise _missing_run(params, folder / f"{run_name(params)}.nii.gz")
    image = _open_image(found[0])
    if len(image.shape) != 4 or image.shape[3] < 2:
        raise DataError(f"{found[0].name} holds one volume of shape {image.shape} - a film run needs a 4-D image")
    sidecar = _read_sidecar(params, folder)
    events_path = folder / f"{run_name(params).removesuffix('_bold')}_events.tsv"
    events = _read_events(events_path, needed=params.audio_onset is None)
    return RunFiles(
        bold=found[0],
        n_volumes=image.shape[3],
        grid=image.shape[:3],
        affine=image.affine,
        t_r=_repetition_time(image.header, sidecar, params.t_r_source, found[0].name),
        onset=_sound_onset(params.audio_onset, events, events_path),
        events=events,
        sidecar=sidecar,
        form_codes=(int(image.header["sform_code"]), int(image.header["qform_code"])),
        warnings=_orientation_warnings(image.header),
    )


def _missing_run(params, wanted):
    there = known_subjects(params)
    if params.dataset == DEFAULT_DATASET:
        check_fmri_subject(params.subject)
    ways = "check the spelling, session, task and run, or set data_dir"
    if params.dataset == DEFAULT_DATASET:
        ways = (
            f"get it with 'bold-audio fetch --subject {params.subject}'; for the sound, set audio_path to your copy of "
            "the film's sound file, or feature_source annotations"
        )
    elif params.dataset == SIMULATED:
        ways = "make it with 'bold-audio simulate'"
    listed = ", ".join(there[:12]) + (", …" if len(there) > 12 else "") if there else "none"
    return DataError(f"sub-{params.subject} is not there: {wanted} is missing (subjects there: {listed}) - {ways}")


def _open_image(path):
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


def _read_sidecar(params, folder):
    """The run's sidecar on top of what it inherits from the top of the dataset, key by key."""
    merged = {}
    for path in (params.data_path / f"task-{params.task}_bold.json", folder / f"{run_name(params)}.json"):
        content = read_json(path, default={}, mend="fetch it again")
        if not isinstance(content, dict):
            raise DataError(f"{path} must hold names and values - fetch it again")
        merged |= content
    return merged


def _read_events(path, *, needed):
    """Events of the run; None where there are none, or where they are of no use and not needed."""
    if not path.is_file():
        return None
    try:
        events = read_table(path, columns=("onset", "duration", "trial_type"))
        read_times(events, "onset", path.name)
    except DataError:
        if needed:
            raise
        return None
    return events


def _repetition_time(header, sidecar, source, name):
    in_header = float(header.get_zooms()[3]) * SECONDS_OF_CODE.get(int(header["xyzt_units"]) & 0x38, 1.0)
    in_sidecar = sidecar.get("RepetitionTime")
    if in_sidecar is not None and (isinstance(in_sidecar, bool) or not isinstance(in_sidecar, int | float)):
        raise DataError(
            f"{name}: RepetitionTime in the sidecar must be a number, got {in_sidecar!r} - mend the sidecar"
        )
    if source == "header" or (in_sidecar is None and source is None):
        chosen = in_header
    elif in_sidecar is None:
        raise DataError(f"{name}: t_r_source is sidecar, but there is no RepetitionTime - set t_r_source header")
    else:
        chosen = float(in_sidecar)
        if source is None and abs(in_header - chosen) > T_R_TOLERANCE * chosen:
            raise DataError(
                f"{name}: repetition time {in_header:g} s in the header, {chosen:g} s in the sidecar - set t_r_source"
            )
    if not 0.05 <= chosen <= 20:
        raise DataError(f"{name}: a repetition time of {chosen:g} s cannot be right - write it into the sidecar")
    return chosen


def _sound_onset(given, events, path):
    if given is not None:
        return float(given)
    kinds = () if events is None else events["trial_type"].astype(str)
    heard = [k for k, kind in enumerate(kinds) if kind in (*BLOCK_TYPES, *SPEECH_TYPES)]
    if not heard:
        raise DataError(
            f"no music, speech or story event in {path.name} - set audio_onset, the onset of the sound in s"
        )
    return float(read_times(events.iloc[heard], "onset", path.name).min())


def _orientation_warnings(header):
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return ("orientation unknown (sform and qform are 0): left and right are not labelled",)
    return ()


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
    image = _open_image(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            image = type(image).from_bytes(handle.read())
        scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
        data = np.asanyarray(image.dataobj, dtype=np.float32 if scaled else None)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"scan damaged: {path} ({' '.join(str(error).split())}) - fetch it again") from error
    return data.astype(np.float32, copy=False) if data.dtype.kind == "f" else data, image.affine
