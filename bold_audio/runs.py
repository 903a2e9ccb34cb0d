"""A subject's run: what header, sidecar and events say of its place, its clock and its sound."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bold_audio import bids
from bold_audio.features import BLOCK_TYPES, SPEECH_TYPES, as_numbers, read_table, read_times
from bold_audio.files import DataError, read_json
from bold_audio.images import check_length, header_warnings, open_image, orientation_warnings

T_R_TOLERANCE = 0.01  # relative; PAR/REC and DICOM headers round to this
LATE_END = 30.0  # s that a scan may go on after the last event of the sound: the sound has ended, the scanner has not
FARTHEST = 1e4  # s from the start of the clock; what is farther is not a time of this run
SECONDS_OF_CODE = {8: 1.0, 16: 1e-3, 24: 1e-6}  # of xyzt_units; headers with no known unit mean seconds


@dataclass(frozen=True)
class RunFiles:
    """Where a BIDS run lies and what its header, sidecar and events say.

    ``onset`` is the onset of the sound on the clock of the run, in seconds; ``events`` is None where there is no events
    file; ``start`` is when the first volume begins on that clock, in seconds; ``mask`` and ``confounds`` are the brain
    mask and the table of confounds that a preprocessed run comes with; ``beside`` are the sidecars and events read.
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
    start: float = 0.0
    mask: Path | None = None
    confounds: Path | None = None
    beside: tuple = ()

    @property
    def entities(self):
        """File name without ``_bold.nii.gz``: the prefix of everything made from this run."""
        return self.bold.name.split("_bold.nii")[0]

    @property
    def volume_times(self):
        """Start of each volume on the clock of the run, in seconds."""
        return self.start + np.arange(self.n_volumes) * self.t_r

    @property
    def sound_times(self):
        """Start of each volume, in seconds from the onset of the sound."""
        return self.volume_times - self.onset

    @property
    def heard(self):
        """Seconds from the onset of the sound to the end of the run."""
        return float(self.sound_times[-1] + self.t_r)

    @property
    def parts(self):
        """The runs that these are: one."""
        return (self,)

    @property
    def starts(self):
        """First volume of each run: array of int."""
        return np.zeros(1, int)


@dataclass(frozen=True)
class SeveralRuns:
    """Runs of one subject in one grid, their volumes counted one after the other; as `RunFiles` where that makes sense.

    ``onset``, ``events`` and ``sidecar`` are those of the first run: ask ``parts`` for each run's own.

    Parameters
    ----------
    parts : tuple of RunFiles
        At least two.
    """

    parts: tuple

    def __getattr__(self, name):
        # What all runs share, grid, place and repetition time, and what is the first one's.
        if name in ("bold", "grid", "affine", "t_r", "onset", "events", "sidecar", "form_codes"):
            return getattr(self.parts[0], name)
        raise AttributeError(name)

    @property
    def n_volumes(self):
        """Volumes of all runs."""
        return sum(part.n_volumes for part in self.parts)

    @property
    def starts(self):
        """First volume of each run: array of int."""
        return np.cumsum([0, *(part.n_volumes for part in self.parts[:-1])])

    @property
    def volume_times(self):
        """Start of each volume, in seconds, as if each run began when the one before ended."""
        return np.concatenate(
            [start * self.t_r + part.volume_times for start, part in zip(self.starts, self.parts, strict=True)]
        )

    @property
    def sound_times(self):
        """Start of each volume, in seconds from the onset of its own run's sound."""
        return np.concatenate([part.sound_times for part in self.parts])

    @property
    def entities(self):
        """What the runs' file names have in common: the prefix of everything made from them."""
        return "_".join(part for part in self.parts[0].entities.split("_") if not part.startswith("run-"))

    @property
    def warnings(self):
        """Those of all runs, each once."""
        return tuple(dict.fromkeys(text for part in self.parts for text in part.warnings))


def locate_runs(params):
    """Find a subject's run, or its several runs, and read what their headers, sidecars and events say.

    Returns
    -------
    RunFiles or SeveralRuns

    Raises
    ------
    DataError
        If a run is missing, or contradicts itself or another: repetition time, shape, place.
    """
    parts = [_read_run(path, params) for path in bids.find_runs(params)]
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for part in parts[1:]:
        if part.grid != first.grid or not np.allclose(part.affine, first.affine, atol=1e-2):
            raise DataError(
                f"{part.bold.name} and {first.bold.name} differ in grid or place - take runs that were preprocessed "
                "into one space (derivatives), or one run at a time"
            )
        if abs(part.t_r - first.t_r) > T_R_TOLERANCE * first.t_r:
            raise DataError(
                f"{part.bold.name} has a repetition time of {part.t_r:g} s, {first.bold.name} of {first.t_r:g} s - "
                "take one run at a time"
            )
    return SeveralRuns(tuple(parts))


def _read_run(path, params):
    image = open_image(path)
    bids.check_release_file(params, path)
    if len(image.shape) != 4 or image.shape[3] < 2:
        raise DataError(f"{path.name} holds one volume of shape {image.shape} - a film run needs a 4-D image")
    check_length(image, path)
    roots = [params.data_path] if params.derivatives is None else [params.data_path, params.derivatives_path]
    has, acquired = bids.entities_of(path), bids.acquired_of(path)
    sidecar, sidecars = {}, []
    for root, names in zip(roots, ([acquired, has] if len(roots) > 1 else [has]), strict=True):
        for found in bids.inherited(root, names, "bold.json"):
            sidecar |= _read_sidecar(found)
            sidecars.append(found)
    expected = "_".join(f"{key}-{value}" for key, value in acquired.items())
    events_path = next(iter(bids.inherited(params.data_path, acquired, "events.tsv")[::-1]), None)
    events = None if events_path is None else _read_events(events_path, needed=params.audio_onset is None)
    t_r = _repetition_time(image.header, sidecar, params.t_r_source, path.name)
    given = {} if params.derivatives is None else bids.files_beside(path)
    start, n_volumes = _first_start(sidecar, t_r, path.name), image.shape[3]
    onset = _sound_onset(params.audio_onset, events, events_path.name if events_path else f"{expected}_events.tsv")
    if onset >= start + n_volumes * t_r:
        raise DataError(
            f"{path.name}: the sound begins at {onset:g} s, the scan ends at {start + n_volumes * t_r:.1f} s - mend "
            "the events (times in s), or set audio_onset"
        )
    return RunFiles(
        bold=path,
        n_volumes=n_volumes,
        grid=image.shape[:3],
        affine=image.affine,
        t_r=t_r,
        onset=onset,
        events=events,
        sidecar=sidecar,
        form_codes=(int(image.header["sform_code"]), int(image.header["qform_code"])),
        warnings=(*orientation_warnings(image.header), *header_warnings(image, path)),
        start=start,
        beside=(*sidecars, *([events_path] if events_path else [])),
        **given,
    )


def _first_start(sidecar, t_r, name):
    """When the first volume begins: its slices may have been moved to one moment (``SliceTimingCorrected``)."""
    start = sidecar.get("StartTime", 0.0)
    if not _is_number(start):
        raise DataError(f"{name}: StartTime in the sidecar must be a number of s, got {start!r} - mend the sidecar")
    return float(start) - (t_r / 2 if sidecar.get("SliceTimingCorrected") is True and "StartTime" in sidecar else 0.0)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and -FARTHEST < value < FARTHEST


def _read_sidecar(path):
    content = read_json(path, default={}, mend="fetch it again")
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold names and values - fetch it again")
    return content


def _read_events(path, *, needed):
    """Events of the run; None where they are of no use and not needed."""
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
    if in_sidecar is not None and not _is_number(in_sidecar):
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


def _sound_onset(given, events, name):
    if given is not None:
        return _checked_onset(float(given), "audio_onset")
    kinds = () if events is None else events["trial_type"].astype(str)
    heard = [k for k, kind in enumerate(kinds) if kind in (*BLOCK_TYPES, *SPEECH_TYPES)]
    if not heard:
        what = f"there is no {name}" if events is None else f"no music, speech or story event in {name}"
        raise DataError(f"{what} - set audio_onset, the onset of the sound in s")
    return _checked_onset(float(read_times(events.iloc[heard], "onset", name).min()), name)


def _checked_onset(onset, name):
    if not _is_number(onset):
        raise DataError(f"{name}: an onset of the sound of {onset:g} s cannot be right - mend it")
    return onset


def check_events_end(files):
    """Refuse events of the sound that end after the scan, or long before it: they may be another run's.

    Raises
    ------
    DataError
    """
    for part in files.parts:
        if part.events is not None:
            _check_events_end(part)


def _check_events_end(files):
    heard = files.events[files.events["trial_type"].astype(str).isin((*BLOCK_TYPES, *SPEECH_TYPES))]
    ends = as_numbers(heard["onset"]) + as_numbers(heard["duration"])
    scanned = float(files.volume_times[-1] + files.t_r)
    if not np.isnan(ends).all() and not -files.t_r <= scanned - np.nanmax(ends) <= LATE_END:
        raise DataError(
            f"events end at {np.nanmax(ends):.1f} s, the scan at {scanned:.1f} s ({files.bold.name}) - "
            "put this run's events beside it, or set audio_onset if these are right"
        )


def read_confounds(files):
    """The table of confounds that a preprocessed run comes with; None without one.

    Raises
    ------
    DataError
        If it has not one row for each volume.
    """
    if files.confounds is None:
        return None
    table = read_table(files.confounds, columns=())
    if len(table) != files.n_volumes:
        raise DataError(
            f"{files.confounds.name} has {len(table)} rows, the run {files.n_volumes} volumes - make it anew"
        )
    return table
