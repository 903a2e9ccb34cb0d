"""Public download over HTTPS: several files at a time, each continued where it broke and checked by MD5."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from bold_audio.access import BUSY, cause, passes
from bold_audio.files import AccessError
from bold_audio.locking import lock
from bold_audio.registry import RELEASE, is_right

# The public bucket serves the newest release under plain paths, whichever that is.
# Only the MD5 in the registry tells that a file is the one of v1.0.7.
OPENNEURO_URL = "https://s3.amazonaws.com/openneuro.org/ds003688/"
TIMEOUT = (10, 60)  # s, to connect and between two bytes
CHUNK = 1 << 16  # bytes; what a broken connection can lose at most
log = logging.getLogger(__name__)


class _TryAgain(AccessError):
    """A fault that may pass: no answer, a busy server, a broken connection."""


def download(wanted, data_dir, *, base_url=OPENNEURO_URL, waits=(2, 10), jobs=4, progress=None):
    """Download files to ``<name>.part``, from where they stand, and rename each when its MD5 is right.

    Parameters
    ----------
    wanted : sequence of ReleaseFile
        What is missing or wrong below ``data_dir``; a wrong file stays as it is until the right one is whole.
    data_dir : path
        Folder of the dataset.
    base_url : str
        Address that the registry's paths are appended to.
    waits : sequence of float
        Seconds before each further try of a file; two entries make three tries.
    jobs : int
        Files at a time.
    progress : bool, optional
        Draw a bar with rate and time left; by default only on a terminal.

    Raises
    ------
    AccessError
        If the server refuses, is silent or sends another file; the other files are downloaded first.
    MachineError
        If another process has been downloading the same file for 600 s.
    """
    todo = {Path(data_dir) / item.path: item for item in wanted}
    stop = threading.Event()
    bar = {"total": sum(item.bytes for item in wanted), "initial": sum(size(part_of(path)) for path in todo)}
    hide = None if progress is None else not progress  # None: tqdm hides off a terminal
    with (
        tqdm(desc=RELEASE, unit="B", unit_scale=True, disable=hide, smoothing=0.1, **bar) as shown,
        ThreadPoolExecutor(max(1, min(jobs, len(todo)))) as pool,
    ):
        arrive = _Arrivals(base_url, waits, shown, stop)
        running = [pool.submit(arrive.one, path, item, Path(data_dir)) for path, item in todo.items()]
        try:
            wait(running)
        except BaseException:  # Ctrl-C: the parts stay, to go on from
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for done in running:
        done.result()


def part_of(path):
    """Return where a file is kept until it is whole."""
    return Path(f"{path}.part")


def size(path):
    """Return the size of a file in bytes, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


class _Arrivals:
    """What the downloads of one call share: the address, the waits, the bar, and the wish to stop."""

    def __init__(self, base_url, waits, shown, stop):
        self.base_url, self.waits, self.shown, self.stop = base_url.rstrip("/"), waits, shown, stop

    def one(self, path, item, data_dir):
        """Download one file, unless another process has just done so."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            lock(data_dir / ".fetch" / f"{path.name}.lock", wait=600, doing=path.name),
            requests.Session() as session,
        ):
            if is_right(path, item):
                self.shown.update(item.bytes)
                return
            session.auth = lambda request: request  # the data are public: never send what ~/.netrc holds
            session.headers["Accept-Encoding"] = "identity"  # sizes and Range count plain bytes
            if path.exists() or path.is_symlink():
                log.warning("%s is not the file of %s - fetching it again", path, RELEASE)
            self._until_whole(session, path, item)

    def _until_whole(self, session, path, item):
        """Ask again after passing faults, and rename the part when it is right."""
        url, part = f"{self.base_url}/{item.path}", part_of(path)
        host = urlsplit(url).netloc.rpartition("@")[2]  # without a user and password
        for pause in (*self.waits, None):
            try:
                fresh = not size(part)
                if size(part) < item.bytes:  # else whole, but killed before the rename
                    self._receive(session, url, part, item.bytes)
                if is_right(part, item):
                    part.replace(path)
                    return
                self.shown.update(-size(part))
                part.unlink()
                if fresh:
                    raise AccessError(f"MD5 is not that of {RELEASE}; removed - fetch again, or try another source")
                raise _TryAgain("what it sends does not fit the part fetched before")
            except AccessError as error:
                passing, text = isinstance(error, _TryAgain), f"{path.name} from {host}: {error}"
                if not passing or pause is None or self.stop.is_set():
                    raise AccessError(text + " - try later, it goes on from there" * passing) from error
                log.warning("%s - trying again in %g s", text, pause)
                self.stop.wait(pause)

    def _receive(self, session, url, part, n_bytes):
        """Bring ``part`` to ``n_bytes`` with one request, from where it stands if the server can."""
        have = size(part)
        try:
            with session.get(url, headers={"Range": f"bytes={have}-"}, stream=True, timeout=TIMEOUT) as answer:
                status = f"server answers {answer.status_code} {answer.reason}"
                if answer.status_code in BUSY:
                    raise _TryAgain(status)
                if answer.status_code not in (200, 206):
                    raise AccessError(f"{status} - check base_url, or try another source")
                span = answer.headers.get("Content-Range", "")  # "bytes 100-299/300"
                said = span.rpartition("/")[2] or answer.headers.get("Content-Length", "")
                if said.isdigit() and int(said) != n_bytes:
                    raise AccessError(f"{said} bytes, but {n_bytes} in {RELEASE} - the server holds another release")
                goes_on = span.startswith(f"bytes {have}-")
                if not goes_on:
                    self.shown.update(-have)
                with part.open("ab" if goes_on else "wb") as handle:
                    for chunk in answer.iter_content(CHUNK):
                        self.shown.update(handle.write(chunk))
                        if self.stop.is_set():
                            raise _TryAgain("stopped")
                        if handle.tell() > n_bytes:
                            return  # something else, whose MD5 cannot be right
        except requests.RequestException as error:
            if passes(error):
                raise _TryAgain(f"{cause(error)}, at {size(part)} of {n_bytes} bytes") from error
            raise AccessError(f"{cause(error)} - check base_url, the clock, proxy and certificates") from error
        if size(part) < n_bytes:  # without Content-Length an answer cut short looks whole
            raise _TryAgain(f"cut short at {size(part)} of {n_bytes} bytes")
