"""Which files of a BIDS tree belong to a subject's run: entities, sessions, runs, inheritance, what lies beside."""

from bold_audio.files import DataError, ParameterError, nearest
from bold_audio.registry import RELEASE, check_fmri_subject, files_of
from bold_audio.schema import DEFAULT_DATASET, SIMULATED, meaning_of

MADE_ENTITIES = {"space", "res", "den", "desc", "label"}  # of preprocessing, not of the measurement
MOST_COMPARED = 30  # people whose scans are read for the ceiling: more change it by less than a hundredth


def entities_of(path):
    """Entities in a BIDS file name, as a dictionary.

    Examples
    --------
    >>> from pathlib import Path
    >>> entities_of(Path("sub-09_ses-mri3t_task-film_run-1_bold.nii.gz"))
    {'sub': '09', 'ses': 'mri3t', 'task': 'film', 'run': '1'}
    """
    parts = path.name.split(".")[0].split("_")[:-1]
    return dict(part.split("-", 1) for part in parts if "-" in part)


def images_in(folder, names):
    """Paths of the images whose names fit a pattern, sorted, without the ``.part`` of an unfinished download."""
    return sorted(path for ending in (".nii", ".nii.gz") for path in folder.glob(names + ending))


def run_name(params):
    """File name of the first run asked for without extension, from its BIDS entities."""
    runs = params.run if isinstance(params.run, list) else [params.run]
    parts = [("sub", params.subject), ("ses", params.session), ("task", params.task), *params.bids_entities.items()]
    parts += [("run", None if runs[0] == "all" else runs[0]), ("space", params.space)]
    parts += [("desc", params.desc if params.derivatives else None)]
    return "_".join(f"{key}-{value}" for key, value in parts if value is not None) + "_bold"


def known_subjects(params):
    """Labels of the subjects in the dataset's tree."""
    return sorted(p.name[4:] for p in params.data_path.glob("sub-*") if p.is_dir())


def check_subject(params):
    """Refuse a subject whom the dataset does not have, before anything is written for it.

    Raises
    ------
    ParameterError
        Names the nearest one, and those that there are.
    """
    if params.dataset == DEFAULT_DATASET:
        check_fmri_subject(params.subject)
    there = known_subjects(params)
    if params.dataset in (DEFAULT_DATASET, SIMULATED) or not there or params.subject in there:
        return
    if params.derivatives is not None and (params.derivatives_path / f"sub-{params.subject}").is_dir():
        return  # of whom the raw scan is not kept beside the others'
    said = [nearest(params.subject, there, otherwise=""), f"subjects of {params.dataset}: {_listed(there)}"]
    raise ParameterError(f"unknown subject {params.subject!r} - {' '.join(filter(None, said))}")


def _listed(names, most=12):
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") if names else "none"


def compared_subjects(params):
    """Labels of the people whom a subject is compared with, itself among them: the first of the dataset's tree."""
    others = [label for label in known_subjects(params) if label != params.subject]
    return sorted([params.subject, *others[: MOST_COMPARED - 1]])


def find_runs(params):
    """Paths of the runs asked for, in order: each the only file that fits.

    Raises
    ------
    DataError
        If none fits, several fit, or there are several runs and none was chosen.
    """
    folders, wanted = _functional_folders(params), _wanted(params)
    foreign = set() if params.derivatives else {"space", "desc"} - set(wanted)  # a raw run has neither
    there = {}
    for path in sorted(path for folder in folders for path in images_in(folder, "*_bold")):
        has = entities_of(path)
        packed = path.suffix == ".nii" and path.with_name(f"{path.name}.gz").is_file()
        if not packed and not foreign & set(has) and all(_same(has.get(k), value) for k, value in wanted.items()):
            there.setdefault(has.get("run"), []).append(path)
    runs = params.run if isinstance(params.run, list) else [params.run]
    if runs == ["all"]:
        runs = sorted(there, key=lambda run: (len(run or ""), run or ""))
    elif runs == [None]:
        if len(there) > 1:
            listed = ", ".join(sorted(str(run) for run in there))
            raise DataError(
                f"sub-{params.subject} has several runs of {params.task} ({listed}) - set run to one or all"
            )
        runs = list(there)
    found = []
    for run in runs or [None]:
        files = [path for other, paths in there.items() if _same(other, run) for path in paths]
        if not files:
            raise _missing_run(params, folders[0] / f"{run_name(params)}.nii.gz", run if there else None)
        if len(files) > 1:
            listed = ", ".join(path.name for path in files[:4])
            raise DataError(f"several files fit: {listed} - set session, space or bids_entities to tell them apart")
        found.append(files[0])
    return found


def _same(one, other):
    """Whether two values of an entity mean the same: run-1 and run-01 do."""
    if one is None or other is None:
        return one is other
    return meaning_of(one) == meaning_of(other)


def _wanted(params):
    """Entities that a file must have, all but the run."""
    wanted = {"task": params.task} | params.bids_entities
    optional = {"ses": params.session, "space": params.space}
    if params.derivatives is not None:
        optional["desc"] = params.desc
    return wanted | {key: value for key, value in optional.items() if value is not None}


def _functional_folders(params):
    """Where the subject's runs may lie: of the session asked for, of none, or of every one."""
    root = params.data_path if params.derivatives is None else params.derivatives_path
    subject = root / f"sub-{params.subject}"
    if params.session is not None:
        named = subject / f"ses-{params.session}"
        # What reads parameters may take 01 for the number 1.
        alike = [path for path in sorted(subject.glob("ses-*")) if _same(path.name[4:], params.session)]
        return [(named if named.is_dir() or len(alike) != 1 else alike[0]) / "func"]
    sessions = sorted(path for path in subject.glob("ses-*/func") if path.is_dir())
    return [subject / "func"] if (subject / "func").is_dir() or not sessions else sessions


def inherited(root, has, ending):
    """Files of a kind that apply to a run by BIDS' inheritance, from the most general to the run's own."""
    folders = [root, root / f"sub-{has['sub']}"]
    folders += [folders[-1] / f"ses-{has['ses']}"] if "ses" in has else []
    found = []
    for folder in (*folders, folders[-1] / "func"):
        fits = [path for path in folder.glob(f"*_{ending}") if entities_of(path).items() <= has.items()]
        found += sorted(fits, key=lambda path: len(entities_of(path)))
    return found


def acquired_of(path):
    """Entities of the measurement itself, without what preprocessing added."""
    return {key: value for key, value in entities_of(path).items() if key not in MADE_ENTITIES}


def files_beside(path):
    """Brain mask and confounds that a preprocessed run comes with, where they are there: ``mask``, ``confounds``."""
    has, acquired = entities_of(path), acquired_of(path)
    masks = [p for p in images_in(path.parent, "*_mask") if entities_of(p) == has | {"desc": "brain"}]
    tables = [
        p
        for suffix in ("timeseries", "regressors")
        for p in path.parent.glob(f"*_{suffix}.tsv")
        if entities_of(p) == acquired | {"desc": "confounds"}
    ]
    return {"mask": next(iter(masks), None), "confounds": next(iter(tables), None)}


def find_t1w(params, bold):
    """Paths of a subject's T1w images, those of the scan's session first; scans made from others are left out."""
    subject, session = params.data_path / f"sub-{params.subject}", entities_of(bold).get("ses")
    folders = [subject / f"ses-{session}" / "anat"] if session else []
    folders += [folder for folder in (subject / "anat", *sorted(subject.glob("ses-*/anat"))) if folder not in folders]
    there = [path for folder in folders for path in images_in(folder, "*_T1w") if path.is_file()]
    raw = [path for path in there if not MADE_ENTITIES & set(entities_of(path))]
    return [path for path in raw if path.suffix == ".gz" or path.with_name(f"{path.name}.gz") not in raw]


def check_release_file(params, path, *, md5=None):
    """Refuse a raw scan of ds003688 that is not the release's, by its size and, where given, its MD5.

    Raises
    ------
    DataError
    """
    if params.dataset != DEFAULT_DATASET or params.derivatives is not None:
        return
    for item in files_of([params.subject]):
        if params.data_path / item.path == path:
            size = path.stat().st_size
            what = f"{size} of {item.bytes} bytes" if size != item.bytes else f"its MD5 is not that of {RELEASE}"
            if size != item.bytes or md5 not in (None, item.md5):
                raise DataError(f"scan damaged: {what}: {path} - run 'bold-audio fetch --subject {params.subject}'")


def _missing_run(params, wanted, run=None):
    check_subject(params)
    where = "data_dir" if params.derivatives is None else "derivatives"
    ways = f"check session, task, run, space and bids_entities, or set {where}"
    if params.dataset == DEFAULT_DATASET:
        ways = (
            f"get it with 'bold-audio fetch --subject {params.subject}'; for the sound, set audio_path to your copy of "
            "the film's sound file, or feature_source annotations"
        )
    elif params.dataset == SIMULATED:
        ways = "make it with 'bold-audio simulate'"
    which = "" if run is None else f" run {run}"
    root = params.data_path if params.derivatives is None else params.derivatives_path
    scans = sorted(path.name for path in images_in(root / f"sub-{params.subject}", "**/*_bold"))
    others = f"scans of this subject: {_listed(scans, 4)}"
    if not scans:
        others = f"other subjects there: {_listed([one for one in known_subjects(params) if one != params.subject])}"
    return DataError(f"sub-{params.subject}{which} is not there: {wanted} is missing ({others}) - {ways}")
