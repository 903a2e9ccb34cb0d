"""Public download of ds003688 v1.0.7 from OpenNeuro, every file checked by MD5.

The registry ``ds003688.tsv`` beside this module has path, size and MD5 of what each fMRI subject needs and of the
annotation tables all share (CC0, doi 10.18112/openneuro.ds003688.v1.0.7). The film and its sound are not in it.
"""

import logging
import math
import shutil
import time
from collections import namedtuple
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3
from tqdm import tqdm

from bold_audio import files
from bold_audio.files import AccessError, MachineError, ParameterError

# The public bucket serves the newest release under plain paths, whichever that is.
# Only the MD5 in the registry tells that a file is the one of v1.0.7.
OPENNEURO_URL = "https://s3.amazonaws.com/openneuro.org/ds003688/"
RELEASE = "ds003688 v1.0.7"
T_R, N_VOLUMES, BLOCK = 0.608, 641, 30.0  # s, volumes, s: the same for every subject
TIMEOUT = (10, 60)  # s, to connect and between two bytes
CHUNK = 1 << 16  # bytes; what a broken connection can lose at most
log = logging.getLogger(__name__)
# A row of the registry: the subject is "n/a" where all share the file, the path is below the dataset's folder.
ReleaseFile = namedtuple("ReleaseFile", "subject kind path bytes md5")


class _TryAgain(AccessError):
    """A fault that may pass: no answer, a busy server, a broken connection."""


@cache
def release_files():
    """Return the registry as a tuple of `ReleaseFile`; the kinds are bold, T1w and annotation."""
    lines = Path(__file__).with_name("ds003688.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return tuple(ReleaseFile(subject, kind, path, int(size), md5) for subject, kind, path, size, md5 in rows)


def fmri_subjects(registry=None):
    """Return the subjects with a film run, sorted.

    >>> len(fmri_subjects()), fmri_subjects()[:4]
    (30, ['04', '07', '08', '09'])
    """
    return sorted(item.subject for item in registry or release_files() if item.kind == "bold")


def film_events():
    r"""Return the film's 13 blocks, music first, as the text of a BIDS ``_events.tsv``.

    >>> film_events().splitlines()[-1]
    '360.000\t29.728\tmusic'
    """
    lines, end = ["onset\tduration\ttrial_type"], N_VOLUMES * T_R
    for k in range(math.ceil(end / BLOCK)):
        lines.append(f"{k * BLOCK:.3f}\t{min(BLOCK, end - k * BLOCK):.3f}\t{('music', 'speech')[k % 2]}")
    return "\n".join(lines) + "\n"


def check_fmri_subject(subject, registry=None):
    """Refuse a subject of whom the release holds no fMRI, and name those it holds."""
    known = fmri_subjects(registry or release_files())
    if subject not in known:
        absent = subject in [f"{number:02}" for number in range(1, 64)]  # 63 people, those without fMRI have iEEG
        what = f"sub-{subject} has no fMRI (iEEG only)" if absent else f"unknown subject {subject!r}"
        raise ParameterError(f"{what} - fMRI subjects: {' '.join(known)}")


def fetch_subject(subject, data_dir, *, base_url=OPENNEURO_URL, progress=None, registry=None, waits=(2, 10)):
    """Download what a subject lacks, check it, and write its sidecar and events.

    A file with the right MD5 is kept. A missing or wrong one is downloaded to ``<name>.part``, continued from
    there after an interruption where the server can, and renamed only when its MD5 is right: a wrong file stays
    as it is until then. Sidecar and events are written where there are none. A complete folder may be read-only.

    Parameters
    ----------
    subject : str
        Two digits, such as ``"09"``.
    data_dir : path
        Folder of the dataset; made where missing.
    base_url : str
        Address that the registry's paths are appended to.
    progress : bool, optional
        Draw progress bars; by default only on a terminal.
    registry : sequence of ReleaseFile, optional
        By default `release_files`.
    waits : sequence of float
        Seconds before each further try of a file; two entries make three tries.

    Returns
    -------
    list of Path
        The files that were missing or wrong before, all right now.

    Raises
    ------
    ParameterError, AccessError, MachineError
        If the subject has no fMRI; if the server refuses, is silent or sends another file; if the disk is in the way.
    """
    registry, data_dir = registry or release_files(), Path(data_dir)
    check_fmri_subject(subject, registry)
    wanted = {data_dir / item.path: item for item in registry if item.subject in (subject, "n/a")}
    try:
        lacking = [path for path, item in wanted.items() if not _is_right(path, item)]
        if lacking:
            data_dir.mkdir(parents=True, exist_ok=True)
            needed = sum(max(0, wanted[path].bytes - _size(Path(f"{path}.part"))) for path in lacking)
            if (free := shutil.disk_usage(data_dir).free) < needed:
                raise MachineError(f"disk full: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free in {data_dir}")
        with requests.Session() as session:
            session.auth = lambda request: request  # the data are public: never send what ~/.netrc holds
            session.headers["Accept-Encoding"] = "identity"  # sizes and Range count plain bytes
            for path in lacking:
                with files.lock(data_dir / ".fetch" / f"{path.name}.lock", wait=600, doing=path.name):
                    if not _is_right(path, wanted[path]):  # else another process has just fetched it
                        _download(session, base_url, path, wanted[path], waits, progress)
        for path in (path for path, item in wanted.items() if item.kind == "bold"):
            stem = path.name.removesuffix("_bold.nii.gz")
            if not (sidecar := path.with_name(f"{stem}_bold.json")).is_file():
                files.write_json(sidecar, {"RepetitionTime": T_R, "TaskName": "film"})
            if not (events := path.with_name(f"{stem}_events.tsv")).is_file():
                files.write_text(events, film_events())
    except OSError as error:
        raise MachineError(f"{error.filename or data_dir}: {error.strerror} - free space or permit writing") from error
    return lacking


def _size(path):
    return path.stat().st_size if path.is_file() else 0


def _is_right(path, item):
    return _size(path) == item.bytes and files.file_md5(path) == item.md5


def _download(session, base_url, path, item, waits, progress):
    """Download one file to its ``.part``, again after passing faults, and rename it when right."""
    url, part = f"{base_url.rstrip('/')}/{item.path}", Path(f"{path}.part")
    host = urlsplit(url).netloc.rpartition("@")[2]  # without a user and password
    if path.exists() or path.is_symlink():
        log.warning("%s is not the file of %s - fetching it again", path, RELEASE)
    path.parent.mkdir(parents=True, exist_ok=True)
    for wait in (*waits, None):
        try:
            fresh = not _size(part)
            if _size(part) < item.bytes:  # else whole, but killed before the rename
                _receive(session, url, part, item.bytes, progress)
            if _is_right(part, item):
                part.replace(path)
                return
            part.unlink()
            if fresh:
                raise AccessError(f"MD5 is not that of {RELEASE}; removed - fetch again, or try another source")
            raise _TryAgain("what it sends does not fit the part fetched before")
        except AccessError as error:
            passing, text = isinstance(error, _TryAgain), f"{path.name} from {host}: {error}"
            if not passing or wait is None:
                raise AccessError(text + " - try later, it goes on from there" * passing) from error
            log.warning("%s - trying again in %g s", text, wait)
            time.sleep(wait)


def _receive(session, url, part, n_bytes, progress):
    """Bring ``part`` to ``n_bytes`` with one request, from where it stands if the server can."""
    have, hide = _size(part), None if progress is None else not progress  # None: tqdm hides off a terminal
    try:
        with session.get(url, headers={"Range": f"bytes={have}-"}, stream=True, timeout=TIMEOUT) as answer:
            status = f"server answers {answer.status_code} {answer.reason}"
            if answer.status_code in (408, 429) or answer.status_code >= 500:
                raise _TryAgain(status)
            if answer.status_code not in (200, 206):
                raise AccessError(f"{status} - check base_url, or try another source")
            span = answer.headers.get("Content-Range", "")  # "bytes 100-299/300"
            size = span.rpartition("/")[2] or answer.headers.get("Content-Length", "")
            if size.isdigit() and int(size) != n_bytes:
                raise AccessError(f"{size} bytes, but {n_bytes} in {RELEASE} - the server holds another release")
            with part.open("ab" if span.startswith(f"bytes {have}-") else "wb") as handle:
                bar = {"total": n_bytes, "initial": handle.tell(), "unit": "B", "unit_scale": True, "disable": hide}
                with tqdm(desc=part.stem, **bar) as shown:
                    for chunk in answer.iter_content(CHUNK):
                        shown.update(handle.write(chunk))
                        if handle.tell() > n_bytes:
                            return  # something else: its MD5 cannot be right
    except requests.RequestException as error:
        passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
        if isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError):
            raise _TryAgain(f"{_cause(error)}, at {_size(part)} of {n_bytes} bytes") from error
        raise AccessError(f"{_cause(error)} - check base_url, the clock, proxy and certificates") from error
    if _size(part) < n_bytes:  # without Content-Length an answer cut short looks whole
        raise _TryAgain(f"cut short at {_size(part)} of {n_bytes} bytes")


def _cause(error):
    """Return the innermost reason of a network error, which requests wraps three deep."""
    while isinstance(inner := error.__cause__ or error.__context__, (OSError, urllib3.exceptions.HTTPError)):
        error = inner
    return getattr(error, "strerror", None) or str(error)
