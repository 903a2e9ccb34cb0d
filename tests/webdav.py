"""A real WebDAV server on loopback that wants a token and misbehaves on request."""

import re
import threading
from pathlib import Path
from time import sleep  # by its own name: tests replace time.sleep, and "slow" must stay slow

from cheroot import wsgi
from wsgidav.wsgidav_app import WsgiDAVApp

from bold_audio import openneuro

OPEN = {"http_authenticator": {"domain_controller": None}, "simple_dc": {"user_mapping": {"*": True}}}


class WebDav:
    """WsgiDAV behind a gate.

    ``accepts`` are the Authorization headers let in (None: all). ``faults`` maps "METHOD pattern" to a list of what to
    do instead, one entry a request: a status, "cut", "cut, no length", "bit flip", "slow", or ("redirect", address).
    """

    def __init__(self, folder, *, accepts=None, ssl=None):
        self.folder, self.accepts, self.faults, self.requests = Path(folder), accepts, {}, []
        self.read_only, self.slashes = False, False  # slashes: a folder without one is sent on to that with it
        self.app = WsgiDAVApp(
            {"provider_mapping": {"/": str(folder)}, "verbose": 1, "logging": {"enable": False}, **OPEN}
        )
        self.server = wsgi.Server(("127.0.0.1", 0), self._gate)
        self.server.ssl_adapter = ssl
        self.server.error_log = lambda *args, **kwargs: None
        self.server.shutdown_timeout = 1
        self.server.prepare()
        self.host = f"127.0.0.1:{self.server.bind_addr[1]}"
        self.url = f"{'https' if ssl else 'http'}://{self.host}"
        threading.Thread(target=self.server.serve, daemon=True).start()

    def close(self):
        self.server.stop()

    def asked(self, method):
        return [path for m, path, _ in self.requests if m == method]

    def _gate(self, environ, start):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path, environ.get("HTTP_AUTHORIZATION")))
        fault = self._fault(f"{method} {path}")
        if isinstance(fault, int):
            return _say(start, fault)
        if isinstance(fault, tuple):
            return _say(start, 302, ("Location", fault[1]))
        if self.accepts is not None and environ.get("HTTP_AUTHORIZATION") not in self.accepts:
            return _say(start, 401)
        if self.read_only and method in ("PUT", "MKCOL", "DELETE", "MOVE"):
            return _say(start, 403)
        if self.slashes and not path.endswith("/") and (self.folder / path.lstrip("/")).is_dir():
            return _say(start, 301, ("Location", f"{self.url}{path}/"))
        if fault is None:
            return self.app(environ, start)
        body = (self.folder / path.lstrip("/")).read_bytes()
        first = int(re.sub(r"\D", "", environ.get("HTTP_RANGE", "0")))
        headers = [] if fault == "cut, no length" else [("Content-Length", str(len(body) - first))]
        if fault == "bit flip":
            body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
        if first:
            headers.append(("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}"))
        start("206 Partial Content" if first else "200 OK", [*headers, ("Connection", "close")])
        return _sent(body[first:], fault)

    def _fault(self, request):
        for pattern, faults in self.faults.items():
            if faults and re.fullmatch(pattern, request):
                return faults.pop(0)
        return None


def _sent(body, fault):
    """Yield the body in pieces; an error in the middle closes the connection."""
    end = len(body) // 2 if fault.startswith("cut") else len(body)
    for k in range(0, end, 200_000):
        yield body[k : min(k + 200_000, end)]
        sleep(0.2 if fault == "slow" else 0)
    if fault == "cut":
        raise ConnectionError("the test breaks the connection")


def _say(start, status, *headers):
    start(f"{status} Said So", [("Content-Length", "0"), *headers])
    return [b""]


def play_openneuro(folder, content, monkeypatch):
    """A server that plays OpenNeuro's bucket: no token, plain paths; whoever asked for it closes it."""
    for path, body in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    running = WebDav(folder)
    monkeypatch.setattr(openneuro, "OPENNEURO_URL", running.url)
    return running
