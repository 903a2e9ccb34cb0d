"""docs/faults.md, access: token, network and server, by a small release on a real WebDAV server on loopback."""

import re
import signal
from collections import namedtuple

import pytest
from faults import Said, command_line, no_token, refusal, rows
from processes import wait_for
from refusals import ended
from release import (
    BOLD,
    SUBJECT,
    TOKEN,
    child,
    data,
    make_certificate,
    make_clone,
    own_surroundings,
    pattern,
    release_content,
    release_items,
    scan_begun,
    store,
)
from webdav import WebDav, play_openneuro

from bold_audio import access, dvcrepo, fetch, registry
from bold_audio.access import TOKEN_VARIABLE, Remote

pytestmark = pytest.mark.slow
FETCH = ("fetch", "--subject", "09", "--source", "dvc")


@pytest.fixture(scope="module")
def content():
    return release_content()


@pytest.fixture(scope="module")
def items(content):
    return release_items(content)


class Place:
    """A clone of the project without data, a WebDAV server that holds them, and the command line in the clone."""

    def __init__(self, root, server, items, content, capfd):
        self.server, self.items, self.content, self.capfd = server, items, content, capfd
        self.remote = Remote("yandex", f"{server.url}/store", jobs=2, timeout=5)
        self.root = make_clone(root, self.remote, items)
        store(server.folder / "store", items, content)

    def call(self, *arguments, url=None):
        """Run ``bold-audio`` in this process."""
        given = {"dvc_url": url or self.remote.url, "dvc_timeout": 5}
        self.capfd.readouterr()
        status = ended(command_line(*(arguments or FETCH), **given))
        return Said(status, *self.capfd.readouterr())

    def refuse(self, *says, status=4, warnings=0, url=None):
        """Assert the contract of docs/faults.md for a fetch that cannot be done; no data may be there after it."""
        with refusal(self.root, status, says, warnings=warnings) as said:
            said.append(self.call(url=url))
        assert not (data(self.root) / BOLD).exists()
        return said[0]

    def arrived(self, said, *, warnings=0):
        """Assert that a fetch ended well and the data are whole."""
        assert (said.status, len(said.lines)) == (0, warnings), said.err
        assert all((data(self.root) / path).read_bytes() == self.content[path] for path in SUBJECT)
        no_token(said, [path for path in self.root.rglob("*") if path.is_file()])

    def spoil(self, faults):
        """Let the server do this instead of giving the scan, one entry a request."""
        self.server.faults[pattern(self.items, BOLD)] = faults


@pytest.fixture
def place(tmp_path, items, content, monkeypatch, capfd):
    own_surroundings(monkeypatch, tmp_path)
    for module in (access, dvcrepo):
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(registry, "release_files", lambda: tuple(items))
    (tmp_path / "served").mkdir()
    server = WebDav(tmp_path / "served", accepts=[f"OAuth {TOKEN}"])
    made = Place(tmp_path / "clone", server, items, content, capfd)
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(made.root))
    yield made
    server.close()


@pytest.fixture
def public(content, tmp_path, monkeypatch):
    """A server that plays OpenNeuro's bucket, or another host that should not see the token."""
    running = play_openneuro(tmp_path / "public", content, monkeypatch)
    yield running
    running.close()


@rows("D01-unset", "D01-empty", "D01-blank")
def test_no_token(place, row, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE)
    if row != "D01-unset":
        monkeypatch.setenv(TOKEN_VARIABLE, {"D01-empty": "", "D01-blank": " \n"}[row])
    place.refuse(f"{TOKEN_VARIABLE} is not set - export it, or use --source openneuro")
    assert place.server.requests == []


@rows("D01-auto")
def test_auto_says_what_it_chose(place, public, row, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE)
    said = place.call("fetch", "--subject", "09")
    place.arrived(said)
    assert "3 files, 2 MB, from OpenNeuro" in said.out and place.server.requests == []


@rows("D02-401", "D02-403")
def test_token_that_is_refused(place, row):
    place.server.faults["PROPFIND .*"] = [int(row[4:])] * 9
    says = "token refused (401)" if row == "D02-401" else "token valid but no right to read (403)"
    place.refuse(f"{place.server.host}: {says}")


@rows("D03-refused", "D03-DNS")
def test_server_that_is_not_there(place, row):
    host, url = place.server.host, None
    if row == "D03-refused":
        place.server.close()
    else:
        host, url = "nowhere.invalid", "https://nowhere.invalid/x"
    said = place.refuse(f"{host}: ", "check dvc_url", url=url, warnings=2)
    why = "Connection refused - try later" if row == "D03-refused" else "resol|not known"
    assert re.search(why, said.lines[-1])
    assert all("trying again in" in line for line in said.lines[:-1])


@rows("D03-TLS")
def test_certificate_that_nobody_signed(place, row, tmp_path):
    from cheroot.ssl.builtin import BuiltinSSLAdapter

    make_certificate(tmp_path / "tls.pem")
    server = WebDav(tmp_path, ssl=BuiltinSSLAdapter(str(tmp_path / "tls.pem"), str(tmp_path / "tls.pem")))
    try:
        place.refuse(f"{server.host}: ", "certificate verify failed", "check dvc_url", url=server.url)
        assert server.requests == []
    finally:
        server.close()


@rows("D04-busy twice")
def test_busy_server_is_asked_again(place, row):
    place.server.faults["PROPFIND .*"] = [503, 429]
    said = place.call()
    place.arrived(said, warnings=2)
    assert "server busy (503 Said So) - trying again in 2 s" in said.lines[0]
    assert "server busy (429 Said So) - trying again in 10 s" in said.lines[1]


@rows("D04-file busy twice")
def test_busy_server_is_asked_for_a_file_again(place, row):
    place.spoil([503, 429])
    said = place.call()
    place.arrived(said, warnings=2)
    assert all(f"{place.server.host}: server answers {status}" in said.err for status in (503, 429))


@rows("D04-503", "D04-429", "D04-file 503", "D04-file 429")
def test_server_that_stays_busy(place, row):
    status, where = int(row[-3:]), "GET .*" if "file" in row else "PROPFIND .*"
    place.server.faults[where] = [status] * 99
    said = f"answers {status}" if "file" in row else f"busy ({status} Said So)"
    place.refuse(f"{place.server.host}: server {said}", " - try later", warnings=2)
    assert len(place.server.asked("GET")) == (3 * len(SUBJECT) if "file" in row else 0)


@rows("D05-once", "D06-cut once", "D06-bit flip once")
def test_broken_download_is_tried_again(place, row):
    place.spoil([{"D05-once": "cut", "D06-cut once": "cut, no length", "D06-bit flip once": "bit flip"}[row]])
    place.arrived(place.call(), warnings=1)


@rows("D05-always", "D06-cut always", "D06-bit flip always")
def test_broken_download_that_stays(place, row):
    place.spoil(
        [{"D05-always": "cut", "D06-cut always": "cut, no length", "D06-bit flip always": "bit flip"}[row]] * 99
    )
    place.refuse(f"{place.server.host}: ", "try later", warnings=2)
    item = next(item for item in place.items if item.path == BOLD)
    assert not dvcrepo.cached_object(place.root, item.md5).exists()


@rows("D07")
def test_killed_fetch_is_completed_by_the_next(place, row):
    place.spoil(["slow"])
    killed = child(place.root, place.remote, place.items)
    begun = wait_for(lambda: scan_begun(place.root, place.items), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait(300)
    assert any(path.exists() for path in begun)  # DVC does not clean up after a kill
    assert not (data(place.root) / BOLD).exists()
    place.arrived(place.call())
    assert list((place.root / ".dvc").rglob("*.tmp")) == []


@rows("D08-before", "D08-on the way")
def test_full_disk(place, row, monkeypatch):
    if row == "D08-before":
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(0, 0, 2_000_000))
        place.refuse("disk full: 2 MB needed, 2 MB free in ", status=5)
        monkeypatch.setattr(dvcrepo, "copies", lambda root, data_dir: 2)
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(0, 0, 3_000_000))  # enough for one copy
        place.refuse("disk full: ", status=5)
        assert place.server.asked("GET") == []
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        place.refuse("disk full: ", status=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@rows("D09-folder", "D09-file")
def test_server_that_sends_on_to_another_host(place, public, row):
    if row == "D09-folder":
        place.server.faults["PROPFIND .*"] = [("redirect", f"{public.url}/x")] * 99
        place.refuse(f"{place.server.host}: sends on to {public.host} (302), where the token is not sent")
    else:
        place.spoil([("redirect", f"{public.url}/{BOLD}".replace("127.0.0.1", "localhost"))])
        place.arrived(place.call())
    assert {header for *_, header in public.requests} == (set() if row == "D09-folder" else {None})


@rows("D10")
def test_token_is_nowhere(place, row, tmp_path):
    said = [place.call(), place.call("publish", "--subject", "09")]
    place.server.accepts = []
    said += [place.call("fetch", "--subject", "13", "--source", "dvc")]
    assert [one.status for one in said] == [0, 0, 4]
    assert any(header and TOKEN in header for *_, header in place.server.requests), "it did travel"
    for one in said:
        no_token(one, [path for path in tmp_path.rglob("*") if path.is_file()])


@rows("D11-white space", "D11-newline", "D11-space", "D11-non-ASCII", "D11-DEL", "D11-quotes")
def test_token_as_it_is_copied(place, row, monkeypatch):
    token = {"white space": f" {TOKEN}\r\n", "newline": "sec\nret", "space": "sec ret", "non-ASCII": "sécret"}
    token = (token | {"DEL": "sec\x7fret", "quotes": "“secret”"})[row[4:]]
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    if row == "D11-white space":
        place.arrived(place.call())
        sent = {header for *_, header in place.server.requests if header}
        assert sent == {f"{how} {TOKEN}" for how in ("Bearer", "OAuth")}
        return
    said = place.refuse(f"the token in {TOKEN_VARIABLE} has illegal characters - copy it again")
    assert not any(part in said.err + said.out for part in ("sec", "ret", "cret"))
    assert place.server.requests == []
