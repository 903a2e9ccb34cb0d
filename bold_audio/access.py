"""The token and the WebDAV server it opens: asked before DVC is, because DVC calls every fault a missing file."""

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import urllib3

from bold_audio.files import AccessError

TOKEN_VARIABLE = "YANDEX_WEBDAV_TOKEN"
# Servers differ in the word before the token: Yandex Disk says OAuth, most others Bearer (RFC 6750).
SCHEMES = ("Bearer", "OAuth")
BUSY = frozenset({408, 429, *range(500, 507), *range(508, 600)})  # 507: no room, which waiting does not make
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A WebDAV folder that DVC stores files in.

    Parameters
    ----------
    name : str
        Its name in ``.dvc/config``.
    url : str
        Its address, https (or http on this machine).
    jobs : int
        Files at a time.
    timeout : int
        Seconds to wait for an answer.
    """

    name: str
    url: str
    jobs: int = 4
    timeout: int = 60

    @property
    def host(self):
        """Host and port, for messages."""
        return urlsplit(self.url).netloc


def has_token():
    """Tell whether the variable of the token holds anything."""
    return bool(os.environ.get(TOKEN_VARIABLE, "").strip())


def read_token():
    """Return the token, without white space around it.

    It is read from the environment each time and kept nowhere; no message quotes it.

    Raises
    ------
    AccessError
        If it is not set, or holds what no HTTP header can.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise AccessError(f"{TOKEN_VARIABLE} is not set - export it, or use --source openneuro")
    if not all("!" <= character <= "~" for character in token):
        raise AccessError(f"the token in {TOKEN_VARIABLE} has illegal characters - copy it again")
    return token


@contextlib.contextmanager
def token_hidden():
    """Take the token out of the environment for a while, so that no child process inherits it."""
    held = os.environ.pop(TOKEN_VARIABLE, None)
    try:
        yield
    finally:
        if held is not None:
            os.environ[TOKEN_VARIABLE] = held


def open_remote(remote, token, *, waits=(2, 10), may_lack=False):
    """Ask the server whether it is there and takes the token.

    Parameters
    ----------
    remote : Remote
    token : str
    waits : sequence of float
        Seconds before each further try while the server is busy.
    may_lack : bool
        The folder need not be there yet.

    Returns
    -------
    str
        The ``Authorization`` header that the server takes: the token with its scheme before it.

    Raises
    ------
    AccessError
        With host and cause: refused, no right, busy, no such folder, no connection, another host.
    """
    for scheme in SCHEMES:
        header = f"{scheme} {token}"
        # With its slash: some servers send a folder without one on to that with it.
        answer = _ask("PROPFIND", remote, remote.url + "/", header, waits)
        if answer.status_code != 401:
            break
    if not (may_lack and answer.status_code == 404):
        _judge(answer, remote)
    return header


def make_folder(remote, header, *, waits=(2, 10)):
    """Make the remote's folder where it is missing; DVC makes only what lies inside it.

    Raises
    ------
    AccessError
        If the token may not write there, or the server is full or busy.
    """
    # The folder of the files is made too: that is how the right to write is known before the first upload.
    deepest = f"{remote.url}/files/"
    answer = _ask("PROPFIND", remote, deepest, header, waits)
    if answer.status_code in (404, 409):
        _make(remote, deepest, header, waits)
    else:
        _judge(answer, remote, wish="write")


def _make(remote, url, header, waits):
    """Make a folder, and those above it only where the server says that they are missing: they may be closed to us."""
    answer = _ask("MKCOL", remote, url, header, waits)
    above = url.rstrip("/").rpartition("/")[0] + "/"
    if answer.status_code in (404, 409) and urlsplit(above).path not in ("", "/"):
        _make(remote, above, header, waits)
        answer = _ask("MKCOL", remote, url, header, waits)
    if answer.status_code != 405:  # 405: it has just been made by somebody else
        _judge(answer, remote, wish="write")


def _ask(method, remote, url, header, waits):
    """Send one request, again while the server is busy; a redirect is not followed, or the token might be."""
    for pause in (*waits, None):
        try:
            # Not requests.request: a session with its own auth ignores what ~/.netrc holds for the host.
            with requests.Session() as session:
                session.auth = _Authorization(header)
                answer = session.request(
                    method, url, headers={"Depth": "0"}, timeout=remote.timeout, allow_redirects=False
                )
            trouble = f"server busy ({answer.status_code} {answer.reason})" if answer.status_code in BUSY else None
        except requests.RequestException as error:
            if not passes(error):
                raise AccessError(
                    f"{remote.host}: {cause(error)} - check dvc_url, the clock, proxy and certificates"
                ) from None
            trouble = cause(error)
        if trouble is None:
            return answer
        if pause is None:
            raise AccessError(f"{remote.host}: {trouble} - try later, check dvc_url, or use --source openneuro")
        log.warning("%s: %s - trying again in %g s", remote.host, trouble, pause)
        time.sleep(pause)


class _Authorization(requests.auth.AuthBase):
    """Sets one header; its text shows in no message."""

    def __init__(self, header):
        self._header = header

    def __call__(self, request):
        request.headers["Authorization"] = self._header
        return request


def _judge(answer, remote, *, wish="read"):
    """Turn an answer into nothing, or into the reason why not."""
    code = answer.status_code
    if code in (200, 201, 207):
        return
    reasons = {
        401: f"token refused (401) - check {TOKEN_VARIABLE}",
        403: f"token valid but no right to {wish} (403) - ask the owner of the folder, or make another token",
        404: "no such folder (404) - check dvc_url; 'bold-audio publish' makes it",
        507: "no room left on the server (507) - free some, or take another dvc_url",
    }
    if 300 <= code < 400:
        other = urlsplit(answer.headers.get("Location", "")).netloc or "another path"
        raise AccessError(f"{remote.host}: sends on to {other} ({code}), where the token is not sent - correct dvc_url")
    raise AccessError(
        f"{remote.host}: {reasons.get(code, f'server answers {code} {answer.reason} - is dvc_url a WebDAV folder?')}"
    )


def passes(error):
    """Tell whether a fault of the network may pass by itself."""
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)


def cause(error):
    """Return the innermost reason of a network error, which requests wraps three deep."""
    while isinstance(inner := error.__cause__ or error.__context__, (OSError, urllib3.exceptions.HTTPError)):
        error = inner
    return getattr(error, "strerror", None) or str(error)
