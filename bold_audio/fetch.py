"""Get subjects of ds003688, and give them on: which source, is there room, are they right.

The sources bring the files: `bold_audio.dvcrepo` from a WebDAV remote of one's own, `bold_audio.openneuro` from the
public release. Whichever it was, every file is checked against the MD5 of the registry here.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from bold_audio import access, dvcrepo, files, openneuro, registry
from bold_audio.files import AccessError, DataError, MachineError, ParameterError
from bold_audio.registry import RELEASE, check_fmri_subject, is_right
from bold_audio.schema import DEFAULT_DATASET

SOURCES = ("auto", "dvc", "openneuro")
SPARE = 1.05  # of the space that the files take
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """What a fetch did: the files that were missing or wrong before, and the source that brought them, in words."""

    paths: list
    source: str | None


def fetch_subjects(
    subjects,
    data_dir,
    *,
    source="auto",
    remote=None,
    root=None,
    base_url=None,
    progress=None,
    items=None,
    waits=(2, 10),
    say=log.info,
):
    """Bring what subjects lack, check it, and write their sidecars and events.

    A file with the right MD5 is kept. A missing or wrong one is replaced only by the right one. Sidecar and events are
    written where there are none. A complete folder may be read-only, and no server is asked for it.

    Parameters
    ----------
    subjects : sequence of str
        Two digits each, such as ``"09"``.
    data_dir : path
        Folder of the dataset; made where missing.
    source : {"auto", "dvc", "openneuro"}
        ``auto`` takes DVC where the token is set and ``data_dir`` is the project's, and OpenNeuro where it is not or
        DVC's remote does not give the files. A source that is named is never changed.
    remote : access.Remote, optional
        For DVC.
    root : path, optional
        The project that DVC works in.
    base_url : str, optional
        Where OpenNeuro is, by default `openneuro.OPENNEURO_URL`.
    progress : bool, optional
        Draw progress bars; by default only on a terminal.
    items : sequence of ReleaseFile, optional
        By default `registry.release_files`.
    waits : sequence of float
        Seconds before each further try; two entries make three tries.
    say : callable
        Given the source, in words, before it is asked.

    Returns
    -------
    Fetched

    Raises
    ------
    ParameterError, AccessError, MachineError
        If a subject has no fMRI; if the server refuses, is silent or sends another file; if the disk is in the way.
    """
    items, data_dir = items or registry.release_files(), Path(data_dir)
    for subject in subjects:
        check_fmri_subject(subject, items)
    if source not in SOURCES:
        raise ParameterError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    try:
        wanted = registry.files_of(subjects, items)
        lacking = [item for item in wanted if not is_right(data_dir / item.path, item)]
        words = None
        if lacking:
            data_dir.mkdir(parents=True, exist_ok=True)
            names = _sources(source, remote, root, data_dir)
            public = {"base_url": base_url or openneuro.OPENNEURO_URL, "progress": progress, "waits": waits}
            words = _bring(lacking, data_dir, names=names, remote=remote, root=root, public=public, say=say)
        for path in (data_dir / item.path for item in wanted if item.kind == "bold"):
            stem = path.name.removesuffix("_bold.nii.gz")
            if not (sidecar := path.with_name(f"{stem}_bold.json")).is_file():
                files.write_json(sidecar, {"RepetitionTime": registry.T_R, "TaskName": "film"})
            if not (events := path.with_name(f"{stem}_events.tsv")).is_file():
                files.write_text(events, registry.film_events())
    except OSError as error:
        raise MachineError(f"{error.filename or data_dir}: {error.strerror} - free space or permit writing") from error
    return Fetched([data_dir / item.path for item in lacking], words)


def remote_of(params):
    """Return the WebDAV folder that the parameters name."""
    return access.Remote(params.dvc_remote, params.dvc_url, params.dvc_jobs, params.dvc_timeout)


def fetch_missing(params):
    """Fetch a subject of ds003688 that is not there, where the token of DVC's remote is set; else do nothing."""
    if params.dataset != DEFAULT_DATASET or not access.has_token():
        return
    bold = [item for item in registry.files_of([params.subject]) if item.kind == "bold"]
    if bold and not (params.data_path / bold[0].path).exists():
        log.warning("sub-%s is not there - fetching it, as %s is set", params.subject, access.TOKEN_VARIABLE)
        fetch_subjects([params.subject], params.data_path, remote=remote_of(params), root=files.project_root())


def check_project_folder(root, data_dir):
    """Refuse another folder of data than the project's, which DVC keeps.

    Raises
    ------
    ParameterError
    """
    if Path(data_dir).resolve() != (Path(root) / "data" / "ds003688").resolve():
        raise ParameterError(
            f"DVC keeps data/ds003688 of the project, got {data_dir} - leave out data_dir, or fetch with --source "
            "openneuro"
        )


def _check_tracked(root, data_dir):
    """Refuse what DVC does not keep: another folder, or a project without the list of the release's files."""
    check_project_folder(root, data_dir)
    if not (Path(root) / dvcrepo.ENTRIES).is_file():
        raise DataError(f"{Path(root) / dvcrepo.ENTRIES} is missing - run 'bold-audio track'")


def _sources(source, remote, root, data_dir):
    """Return the sources to try, in order."""
    if source == "openneuro":
        return ["openneuro"]
    try:
        _check_tracked(root, data_dir)
    except (DataError, ParameterError):
        if source == "dvc":
            raise
        return ["openneuro"]
    if source == "dvc":
        return ["dvc"]
    return ["dvc", "openneuro"] if access.has_token() else ["openneuro"]


def _bring(lacking, data_dir, *, names, remote, root, public, say):
    """Try the sources in turn and return the words for the one that brought the files."""
    for name in names:
        words = f"by DVC from {remote.host}" if name == "dvc" else "from OpenNeuro"
        say(f"{len(lacking)} files, {sum(item.bytes for item in lacking) / 1e6:.0f} MB, {words}")
        try:
            if name == "dvc":
                _pull(lacking, data_dir, remote, root, public["waits"])
                return words
            parts = sum(openneuro.size(openneuro.part_of(data_dir / item.path)) for item in lacking)
            _check_space(sum(item.bytes for item in lacking) - parts, data_dir)
            openneuro.download(lacking, data_dir, **public)
            return words
        except AccessError as error:
            if name == names[-1]:
                raise
            log.warning("%s - source auto goes on to %s", error, names[names.index(name) + 1])
    raise AssertionError("a source was tried")


def _pull(lacking, data_dir, remote, root, waits):
    """Pull files by DVC: ask the server, look for room, pull, check."""
    token = access.read_token()
    header = access.open_remote(remote, token, waits=waits)
    _check_space(dvcrepo.copies(root, data_dir) * sum(item.bytes for item in lacking), data_dir)
    wanted = {data_dir / item.path: item for item in lacking}
    for path in wanted:
        if path.exists() or path.is_symlink():
            log.warning("%s is not the file of %s - fetching it again", path, RELEASE)
    dvcrepo.pull(root, remote, header, wanted, waits=waits)


def fetch_sound(*, remote, root, waits=(2, 10)):
    """Bring the film's sound that somebody adopted and published, and check its MD5.

    Returns
    -------
    Path or None
        None where no sound was adopted, or it is there already.
    """
    item = dvcrepo.sound_entry(root)
    if item is None or is_right(path := Path(root) / "data" / item.path, item):
        return None
    _pull([item], Path(root) / "data", remote, root, waits)
    return path


def publish(subjects, data_dir, *, remote, root, items=None, waits=(2, 10)):
    """Put subjects, complete and checked by MD5, on the remote; with the sound where one was adopted.

    Parameters
    ----------
    subjects : sequence of str
    data_dir : path
        The project's ``data/ds003688``.
    remote : access.Remote
    root : path
        The project.
    items, waits
        As in `fetch_subjects`.

    Returns
    -------
    sent, there : int
        Files sent now, and files that are on the remote now.

    Raises
    ------
    DataError
        If a file is missing or is not that of the release; nothing is sent then.
    AccessError, MachineError
    """
    items = items or registry.release_files()
    for subject in subjects:
        check_fmri_subject(subject, items)
    _check_tracked(root, data_dir)
    token = access.read_token()
    wanted = {Path(data_dir) / item.path: item for item in registry.files_of(subjects, items)}
    sound = dvcrepo.sound_entry(root)
    if sound is not None:
        wanted[Path(root) / "data" / sound.path] = sound
    bad = [path for path, item in wanted.items() if not is_right(path, item)]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(wanted)} files are missing or not those of {RELEASE}, such as {bad[0]} - run "
            "'bold-audio fetch' first, or name the subjects to publish"
        )
    header = access.open_remote(remote, token, waits=waits, may_lack=True)
    access.make_folder(remote, header, waits=waits)
    try:
        _check_space((dvcrepo.copies(root, data_dir) - 1) * sum(item.bytes for item in wanted.values()), data_dir)
        return dvcrepo.push(root, remote, header, wanted, waits=waits), len(wanted)
    except OSError as error:
        raise MachineError(f"{error.filename or root}: {error.strerror} - free space or permit writing") from error


def _check_space(needed, folder):
    """Refuse to begin what the disk cannot hold; ``needed`` in bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed * SPARE:
        raise MachineError(
            f"disk full: {needed * SPARE / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free in {folder} - free some"
        )
