"""The project's DVC side: entries of files nobody here has yet, the settings of the remote, pull and push.

One ``.dvc`` file lists every file of the release with the MD5 and size of the registry, so that pulling one subject
checks the real content, and files that DVC does not know (sidecars, a sound) may lie beside. DVC is called inside this
process: the token reaches it in memory, never by a file, an argument or the command that ``.dvc/config`` names.
"""

import contextlib
import errno
import logging
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import yaml

from bold_audio import files
from bold_audio.access import BUSY
from bold_audio.files import AccessError, DataError, MachineError
from bold_audio.plain_yaml import read_yaml
from bold_audio.registry import RELEASE, SHARED, ReleaseFile, is_right

ENTRIES, SOUND_ENTRY = "data/ds003688.dvc", "data/ds003688_sound.dvc"
TOKEN_COMMAND = "bold-audio print-token"  # printenv is not there on Windows
LINKS = "reflink,hardlink,copy"  # how cache and data share a file: once on disk where the system can
HEAD = "# Written by 'bold-audio {command}': path, size and MD5 of {what}. DVC reads it.\n"
log = logging.getLogger(__name__)


# What is committed


def dvc_url(url):
    """Return the address as DVC writes it.

    >>> dvc_url("https://webdav.yandex.ru/data")
    'webdavs://webdav.yandex.ru/data'
    """
    scheme, _, rest = url.partition("://")
    return {"https": "webdavs://", "http": "webdav://"}[scheme] + rest.rstrip("/")


def config_text(remote):
    """Return ``.dvc/config`` for a remote: no secret in it, downloads verified, nothing reported to anybody."""
    return f"""[core]
    remote = {remote.name}
    analytics = false
    check_update = false
[cache]
    type = "{LINKS}"
['remote "{remote.name}"']
    url = {dvc_url(remote.url)}
    timeout = {remote.timeout}
    verify = true
    bearer_token_command = {TOKEN_COMMAND}
"""


def entries_text(items, *, command="track", what=f"every file of {RELEASE} used here", **about):
    """Return the ``.dvc`` file, in ``data/``, of rows with ``path``, ``bytes`` and ``md5``."""
    outs = [{"md5": i.md5, "size": i.bytes, "hash": "md5", "path": f"ds003688/{i.path}"} for i in items]
    return HEAD.format(command=command, what=what) + yaml.safe_dump(
        {**about, "outs": outs}, sort_keys=False, width=1000
    )


def track(root, remote, items):
    """Write the settings of the remote and the entries of ``items`` into the project at ``root``.

    Returns
    -------
    list of Path
        The two files, which belong into git.
    """
    written = {Path(root) / ".dvc/config": config_text(remote), Path(root) / ENTRIES: entries_text(items)}
    for path, text in written.items():
        files.write_text(path, text)
    return list(written)


def sound_entry(root):
    """Return the film's sound as `bold_audio.adopt` recorded it, a `ReleaseFile`; None where nobody adopted one.

    Raises
    ------
    DataError
        If the record is damaged.
    """
    path = Path(root) / SOUND_ENTRY
    if not path.is_file():
        return None
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
        (out,) = content["outs"]
        return ReleaseFile(SHARED, "sound", out["path"], out["size"], out["md5"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not the record of a sound - run 'bold-audio adopt-sound' again") from error


# Pull and push


def pull(root, remote, header, wanted, *, waits=(2, 10)):
    """Bring files from the remote into the cache of DVC and from there to their places.

    Parameters
    ----------
    root : path
        The project.
    remote : access.Remote
    header : str
        From `access.open_remote`.
    wanted : dict of path to ReleaseFile
        Files that the entries list. A wrong file stays as it is until the right one has come.
    waits : sequence of float
        Seconds before each further try; within one, DVC goes on where a connection broke.

    Raises
    ------
    AccessError, MachineError
        With the reason, of which DVC itself says only that files are missing.
    """
    from dvc.fs import generic, localfs

    targets, cache = [str(path) for path in wanted], _cache(root)
    kept = {path: Path(cache.oid_to_path(item.md5)) for path, item in wanted.items()}
    for pause in (*waits, None):
        calls = _call(root, remote, header, lambda repo: repo.fetch(targets, jobs=remote.jobs))
        lacking = [path for path, item in wanted.items() if not is_right(kept[path], item)]
        if not lacking:
            break
        damaged = [path for path in lacking if kept[path].is_file()]
        for path in damaged:
            kept[path].unlink()
        reason, passing = _reason(calls, lacking)
        if damaged:
            reason, passing = f"DVC's cache held damaged files, now removed: {_some(damaged)}", True
        if not passing or pause is None:
            raise AccessError(f"{remote.host}: {reason}" + " - try later, or use --source openneuro" * passing)
        log.warning("%s: %s - trying again in %g s", remote.host, reason, pause)
        time.sleep(pause)
    # Not repo.checkout, which removes what lies there first, and does not say why it failed.
    for path in wanted:
        try:
            with files.write_whole(path) as part:
                generic.transfer(localfs, str(kept[path]), localfs, str(part), links=list(cache.cache_types))
        except OSError as error:
            raise MachineError(f"{path}: {error.strerror or error} - free space or permit writing") from error


def _cache(root):
    """DVC's cache of a project: the folder that the user's settings of DVC name, else the one in ``.dvc``."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return repo.cache.local
    except DvcException as error:
        raise MachineError(f"DVC cannot open {root}: {error} - mend DVC's settings, '.dvc/config' and yours") from error


def cached_object(root, md5):
    """Return where DVC's cache keeps the file of an MD5."""
    return Path(_cache(root).oid_to_path(md5))


def push(root, remote, header, wanted, *, waits=(2, 10)):
    """Put files into the cache of DVC and from there on the remote; what is there already is not sent.

    Parameters
    ----------
    root, remote, header, wanted
        As in `pull`; the files must be the right ones.
    waits : sequence of float
        Seconds before each further try.

    Returns
    -------
    int
        Files sent.

    Raises
    ------
    AccessError, MachineError
    """
    from dvc.fs import localfs

    targets, sent = [str(path) for path in wanted], []

    def work(repo):
        # Not repo.commit, which writes the entries anew in a form of its own.
        for path, item in wanted.items():
            if not Path(repo.cache.local.oid_to_path(item.md5)).is_file():
                repo.cache.local.add(str(path), localfs, item.md5, hardlink=True)
        sent.append(repo.push(targets, jobs=remote.jobs))

    for pause in (*waits, None):
        calls = _call(root, remote, header, work)
        if not calls.faults:
            return sum(sent)
        reason, passing = _reason(calls, [], otherwise=f"sending failed ({type(calls.faults[0]).__name__})")
        if not passing or pause is None:
            raise AccessError(f"{remote.host}: {reason} - run the same command again to go on")
        log.warning("%s: %s - trying again in %g s", remote.host, reason, pause)
        time.sleep(pause)


def copies(root, data_dir):
    """Return how often a file lies on disk after a pull: once where cache and data can share it, else twice."""
    cache = Path(_cache(root).path)
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=cache) as one:
            two = Path(data_dir) / f".{Path(one.name).name}"
            two.hardlink_to(one.name)
            two.unlink()
    except OSError:
        return 2
    return 1


def _call(root, remote, header, work):
    """Let DVC work, with its messages and errors collected instead of shown.

    Returns
    -------
    _Heard
        What went wrong, for `_reason`.
    """
    import httpx
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo
    from webdav4.client import ClientError

    settings = {
        "url": dvc_url(remote.url),
        "timeout": remote.timeout,
        "verify": True,
        "custom_auth_header": "Authorization",
        "password": header,
        # DVC would let these win over the header.
        "bearer_token_command": "",
        "token": "",
        "user": "",
    }
    config = {"core": {"remote": remote.name}, "remote": {remote.name: settings}}
    heard = _Heard()
    with heard.instead_of_messages():
        try:
            with Repo(str(root), config=config) as repo, lock_repo(repo):
                for left in Path(repo.cache.local.path).glob("*/.*.tmp"):  # by a process that was killed
                    left.unlink(missing_ok=True)
                work(repo)
        except LockError:
            raise MachineError("another DVC command is at work in this project - wait until it is done") from None
        except sqlite3.Error as error:
            raise MachineError(f"DVC cannot write its notes ({error}) - free space or permit writing") from None
        except (DvcException, ClientError, httpx.HTTPError, OSError) as error:
            heard.faults.append(error)
    for fault in heard.faults:
        if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(root).free / 1e6
            raise MachineError(f"disk full: {fault.strerror}, {free:.0f} MB free in {root} - free some") from None
        # What is missing may be on the remote; of other files with an absolute path this machine speaks.
        if isinstance(fault, OSError) and not isinstance(fault, FileNotFoundError) and _is_local(fault.filename):
            raise MachineError(f"{fault.filename}: {fault.strerror} - permit writing there") from None
    return heard


def _is_local(name):
    return isinstance(name, str) and Path(name).is_absolute()


class _Heard(logging.Handler):
    """What DVC's loggers were given: exceptions, and whether they spoke of files that are not on the remote."""

    def __init__(self):
        super().__init__()
        self.faults, self.missing = [], False

    def emit(self, record):
        """Keep what `_reason` needs."""
        if record.exc_info and record.exc_info[1] is not None:
            self.faults.append(record.exc_info[1])
        self.missing |= "do not exist neither locally" in str(record.msg)

    @contextlib.contextmanager
    def instead_of_messages(self):
        """Listen to DVC, and show none of its messages."""
        loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
        before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers, logger.propagate = [self], False
        try:
            yield
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate


def _reason(heard, lacking, *, otherwise="what arrived was cut short or not of the right MD5; removed"):
    """Return why a transfer failed, in words without addresses, and whether it may pass by itself."""
    import httpx
    from webdav4.client import HTTPError, InsufficientStorage

    for fault in heard.faults:
        if isinstance(fault, HTTPError | httpx.HTTPStatusError):
            code = fault.response.status_code
            if code == 301:
                return (
                    "sends folders on (301), which DVC does not follow: end that (Apache: 'DirectorySlash Off')",
                    False,
                )
            return f"server answers {code} {fault.response.reason_phrase}", code in BUSY
        if isinstance(fault, InsufficientStorage):
            return "no room left on the server (507)", False
        if isinstance(fault, httpx.TransportError):
            return f"connection broke ({type(fault).__name__})", True
    if heard.missing:
        return f"not on the remote: {_some(lacking)} - 'bold-audio publish' puts files there", False
    return otherwise, True


def _some(paths):
    names = [Path(path).name for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
