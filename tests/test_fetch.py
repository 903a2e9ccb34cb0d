"""Downloads against a real HTTP server on loopback that misbehaves on request."""

import hashlib
import json
import math
import os
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from release import BOLD, KINDS, T1W, WORDS

from bold_audio import fetch, openneuro, run
from bold_audio import registry as release_registry
from bold_audio.fetch import fetch_subjects
from bold_audio.files import AccessError, MachineError, ParameterError
from bold_audio.registry import ReleaseFile

SIZES = {BOLD: 300_000, T1W: 2_000, WORDS: 300}
Request = namedtuple("Request", "path first headers")  # first: byte asked for; 0 is the whole file


@pytest.fixture(scope="module")
def content():
    rng = np.random.default_rng(0)
    return {path: rng.bytes(size) for path, size in SIZES.items()}


@pytest.fixture
def registry(content):
    return [ReleaseFile(*KINDS[path], path, len(body), hashlib.md5(body).hexdigest()) for path, body in content.items()]


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; ``server.faults[path]`` lists what to do instead, one entry a request."""

    def do_GET(self):
        path = self.path.lstrip("/")
        first = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].rstrip("-"))
        self.server.requests.append(Request(path, first, self.headers))
        time.sleep(self.server.delay)
        faults = self.server.faults.get(path)
        fault = faults.pop(0) if faults else "none"
        body = self.server.content[path]
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "bit flip":
            body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
        if fault == "other release":
            body += b"more"
        ranged = first and fault != "no range"
        self.send_response(206 if ranged else 200)
        sent = body[first:] if ranged else body
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if fault not in ("cut, no length", "endless"):
            self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if fault == "endless":
            for _ in range(1000):
                self.server.n_endless += self.wfile.write(bytes(100_000))
        self.wfile.write(sent[: len(sent) * 2 // 3] if fault in ("cut", "cut, no length") else sent)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # the client hangs up on an endless answer


@pytest.fixture
def server(content):
    with Server(("127.0.0.1", 0), Handler) as running:
        running.content, running.faults, running.requests = content, {}, []
        running.delay, running.n_endless = 0, 0
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def get(server, registry, tmp_path):
    """Fetch subject 09 from the loopback server into ``tmp_path``, with waits that take no time."""

    def get(**changed):
        usual = {"source": "openneuro", "base_url": server.url, "items": registry, "waits": (0, 0)}
        return fetch_subjects(["09"], tmp_path, **{**usual, **changed}).paths

    return get


def asked(server, path):
    return [request.first for request in server.requests if request.path == path]


def left(folder):
    """Names of the files in a folder tree, without the locks."""
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and ".fetch" not in p.parts
    )


# What arrives


def test_all_files_and_facts_arrive(get, tmp_path, content):
    assert get() == [tmp_path / path for path in content]
    for path, body in content.items():
        assert (tmp_path / path).read_bytes() == body
    stem = BOLD.removesuffix("_bold.nii.gz")
    assert left(tmp_path) == sorted([*content, f"{stem}_bold.json", f"{stem}_events.tsv"])
    assert json.loads((tmp_path / f"{stem}_bold.json").read_text()) == {"RepetitionTime": 0.608, "TaskName": "film"}
    assert (tmp_path / f"{stem}_events.tsv").read_text() == release_registry.film_events()


def test_complete_subject_is_neither_asked_for_nor_written_again(get, server, tmp_path):
    get()
    server.requests.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert get() == []
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_only_what_lacks_is_asked_for_and_own_sidecar_stays(get, server, tmp_path):
    get()
    sidecar = tmp_path / BOLD.replace(".nii.gz", ".json")
    sidecar.write_text('{"RepetitionTime": 0.608, "FlipAngle": 10}')
    (tmp_path / T1W).unlink()
    server.requests.clear()
    assert get() == [tmp_path / T1W]
    assert [request.path for request in server.requests] == [T1W]
    assert "FlipAngle" in sidecar.read_text()


def test_wrong_file_is_replaced_with_a_warning(get, tmp_path, content, caplog):
    (tmp_path / T1W).parent.mkdir(parents=True)
    (tmp_path / T1W).write_bytes(bytes(SIZES[T1W]))
    get()
    assert (tmp_path / T1W).read_bytes() == content[T1W]
    assert f"{tmp_path / T1W} is not the file of ds003688 v1.0.7" in caplog.text


def test_wrong_file_stays_while_the_server_is_down(get, server, tmp_path):
    (tmp_path / T1W).parent.mkdir(parents=True)
    (tmp_path / T1W).write_bytes(b"mine")
    server.faults[T1W] = [503] * 3
    with pytest.raises(AccessError, match="server answers 503 Service Unavailable - try later"):
        get()
    assert (tmp_path / T1W).read_bytes() == b"mine"


def test_broken_link_is_replaced(get, tmp_path, content):
    (tmp_path / T1W).parent.mkdir(parents=True)
    (tmp_path / T1W).symlink_to("../../.git/annex/objects/gone")
    get()
    assert (tmp_path / T1W).read_bytes() == content[T1W]
    assert not (tmp_path / T1W).is_symlink()


# What breaks on the way and passes


@pytest.mark.parametrize("fault", ["cut", "cut, no length"])
def test_cut_body_goes_on_from_where_it_broke(fault, get, server, tmp_path, content):  # D05, D06
    server.faults[BOLD] = [fault]
    get()
    first, second = asked(server, BOLD)
    assert first == 0 and 100_000 < second <= 200_000
    assert (tmp_path / BOLD).read_bytes() == content[BOLD]


def test_next_call_goes_on_after_one_that_gave_up(get, server, tmp_path, content):
    server.faults[BOLD] = ["cut"]
    with pytest.raises(AccessError, match="of 300000 bytes - try later, it goes on from there"):
        get(waits=())
    assert left(tmp_path) == sorted([f"{BOLD}.part", T1W, WORDS])  # one that fails does not stop the others
    get()
    assert asked(server, BOLD)[1] > 100_000
    assert (tmp_path / BOLD).read_bytes() == content[BOLD]


def test_server_without_ranges_starts_over(get, server, tmp_path, content):
    server.faults[BOLD] = ["cut", "no range"]
    get()
    assert len(asked(server, BOLD)) == 2
    assert (tmp_path / BOLD).read_bytes() == content[BOLD]


def test_wrong_part_is_dropped_and_fetched_from_the_start(get, server, tmp_path, content):
    part = tmp_path / f"{BOLD}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    get()
    assert asked(server, BOLD) == [1000, 0]
    assert (tmp_path / BOLD).read_bytes() == content[BOLD]


def test_whole_part_is_only_renamed(get, server, tmp_path, content):
    part = tmp_path / f"{BOLD}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[BOLD])
    get()
    assert asked(server, BOLD) == []
    assert (tmp_path / BOLD).read_bytes() == content[BOLD] and not part.exists()


def test_part_stays_when_somebody_stops(server, registry, tmp_path):
    """Ctrl-C sets the wish to stop; what had come by then is gone on from."""
    stop, shown = threading.Event(), SimpleNamespace(update=lambda n: None)
    stop.set()
    item = next(one for one in registry if one.path == BOLD)
    with pytest.raises(AccessError, match="stopped"):
        openneuro._Arrivals(server.url, (0, 0), shown, stop).one(tmp_path / BOLD, item, tmp_path)
    assert 0 < openneuro.part_of(tmp_path / BOLD).stat().st_size < item.bytes
    assert asked(server, BOLD) == [0]


def test_part_that_is_too_long_is_dropped(get, server, tmp_path, content):
    part = tmp_path / f"{BOLD}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[BOLD] + b"more")
    get()
    assert asked(server, BOLD) == [0]
    assert (tmp_path / BOLD).read_bytes() == content[BOLD]


@pytest.mark.parametrize("status", [503, 429])
def test_busy_server_is_asked_again_after_growing_waits(status, get, server, tmp_path, caplog, monkeypatch):  # D04
    waited = []

    class Event(threading.Event):
        def wait(self, seconds=None):
            waited.append(seconds)

    monkeypatch.setattr(openneuro, "threading", SimpleNamespace(Event=Event))
    server.faults[BOLD] = [status, status]
    get(waits=(1, 5))
    assert asked(server, BOLD) == [0, 0, 0] and (tmp_path / BOLD).is_file()
    assert waited == [1, 5]
    assert caplog.text.count(f"server answers {status}") == 2 and "trying again in 5 s" in caplog.text


def test_two_at_once_fetch_each_file_once(get, server, tmp_path, content):
    server.delay = 0.1
    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(get) for _ in range(2)]:
            one.result()
    assert sorted(request.path for request in server.requests) == sorted(content)
    assert (tmp_path / BOLD).read_bytes() == content[BOLD]


# What stops it: one line that names host and cause, and no file under its final name


@pytest.mark.parametrize(
    ("fault", "requests", "message"),
    [
        (403, 1, "server answers 403 Forbidden - check base_url"),
        (404, 1, "server answers 404 Not Found - check base_url"),
        (503, 3, "server answers 503 Service Unavailable - try later"),
        ("bit flip", 1, "MD5 is not that of ds003688 v1.0.7; removed"),
        ("endless", 1, "MD5 is not that of ds003688 v1.0.7; removed"),
        ("other release", 1, "300004 bytes, but 300000 in ds003688 v1.0.7 - the server holds another release"),
        ("cut, no length", 3, "cut short at"),
        ("cut", 3, "of 300000 bytes - try later"),
    ],
)
def test_fault_that_stays(fault, requests, message, get, server, tmp_path):
    server.faults[BOLD] = [fault] * 9
    with pytest.raises(AccessError) as raised:
        get()
    text = str(raised.value)
    assert type(raised.value) is AccessError and raised.value.exit_code == 4
    assert text.startswith(f"{Path(BOLD).name} from 127.0.0.1:{server.server_port}: ")
    assert message in text and "\n" not in text
    assert len(asked(server, BOLD)) == requests
    assert left(tmp_path) == sorted([T1W, WORDS] + [f"{BOLD}.part"] * ("cut" in str(fault)))
    assert server.n_endless < 50_000_000  # the client hung up, long before 100 MB


def test_connection_refused(get, tmp_path):  # D03
    with Server(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(AccessError, match=rf"from 127\.0\.0\.1:{port}: Connection refused, at 0 of 300000 bytes"):
        get(base_url=f"http://user:secret@127.0.0.1:{port}/")
    assert left(tmp_path) == []


def test_silent_server(get, server, monkeypatch):
    monkeypatch.setattr(openneuro, "TIMEOUT", 0.05)
    server.delay = 0.3
    with pytest.raises(AccessError, match="timed out, at 0 of 300000 bytes"):
        get(waits=())


def test_failed_tls_is_not_tried_again(get, server):  # D03
    with pytest.raises(AccessError, match=r"\[SSL.* - check base_url, the clock, proxy and certificates"):
        get(base_url=server.url.replace("http:", "https:"), waits=(60,))


def test_address_that_is_none(get):
    with pytest.raises(AccessError, match="check base_url"):
        get(base_url="nowhere", waits=(60,))


def test_cause_is_not_that_of_an_error_handled_outside(get, server):
    server.faults[BOLD] = ["cut"]
    try:
        raise AccessError("another source failed") from FileNotFoundError("no token")
    except AccessError:
        with pytest.raises(AccessError, match="IncompleteRead"):
            get(waits=())


def test_full_disk_is_seen_before_the_first_byte(get, server, tmp_path, monkeypatch):  # D08
    part = tmp_path / f"{BOLD}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content[BOLD][:200_000])
    needed = math.ceil((sum(SIZES.values()) - 200_000) * fetch.SPARE)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    with pytest.raises(MachineError, match="disk full: 0 MB needed, 0 MB free in"):
        get()
    assert server.requests == []
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(0, 0, needed))
    get()


def test_folder_that_cannot_be_made(get, registry, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="file.*Not a directory") as raised:
        fetch_subjects(["09"], tmp_path / "file" / "data", base_url="http://127.0.0.1:1", items=registry)
    assert raised.value.exit_code == 5


def test_disk_that_fills_on_the_way(get, server, tmp_path):  # D08
    # /dev/full takes no byte: writing to it is writing to a full disk
    part = tmp_path / f"{BOLD}.part"
    part.parent.mkdir(parents=True)
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    part.symlink_to("/dev/full")
    with pytest.raises(MachineError, match="No space left on device"):
        get()
    assert not (tmp_path / BOLD).exists()


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("01", r"sub-01 has no fMRI \(iEEG only\) - fMRI subjects: 04 07"),
        ("64", r"unknown subject '64' - did you mean 62\? fMRI subjects: 04 07"),
        ("9", "unknown subject '9'"),
        ("n/a", "unknown subject 'n/a'"),
        (9, "unknown subject 9"),
        (["09"], "unknown subject"),
    ],
)
def test_subject_without_fmri(subject, message, tmp_path):
    with pytest.raises(ParameterError, match=message) as raised:
        fetch_subjects([subject], tmp_path / "data", base_url="http://127.0.0.1:1")
    assert raised.value.exit_code == 2 and not (tmp_path / "data").exists()


# What is seen, and what is not sent


def test_progress_is_quiet_off_a_terminal(get, tmp_path, capfd):
    get()
    assert capfd.readouterr() == ("", "")
    (tmp_path / BOLD).unlink()
    get(progress=True)
    shown = capfd.readouterr().err
    assert "ds003688 v1.0.7: 100%" in shown and "B/s" in shown  # rate, and between [ and ] the time left


def test_stored_passwords_are_not_sent(get, server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    get()
    assert {request.headers["Authorization"] for request in server.requests} == {None}


def test_bytes_are_asked_for_as_they_are(get, server):
    get()  # compressed on the way, sizes and Range would count other bytes
    assert {request.headers["Accept-Encoding"] for request in server.requests} == {"identity"}


# The registry against the release's own list


def test_registry_has_the_thirty_subjects():
    numbers = [4, 7, 8, 9, 11, 13, 14, 15, 16, 18, 22, 24, 27, 28, 29, 31, 35]
    numbers += [41, 43, 44, 45, 46, 47, 51, 52, 53, 55, 56, 60, 62]
    expected = [f"{number:02}" for number in numbers]
    assert release_registry.fmri_subjects() == expected
    kinds = [(item.subject, item.kind) for item in release_registry.release_files() if item.subject != "n/a"]
    assert sorted(kinds) == sorted((subject, kind) for subject in expected for kind in ("bold", "T1w"))


@pytest.fixture
def release():
    folder = Path(os.environ.get("BOLD_AUDIO_SHARED", Path(__file__).parents[2] / "shared")) / "ds003688"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


def test_registry_agrees_with_the_release(release):
    listed = dict(line.split("\t", 1) for line in (release / "files.tsv").read_text().splitlines()[1:])
    for item in release_registry.release_files():
        if item.subject == release_registry.SHARED:
            body = (release / item.path).read_bytes()
            assert (item.bytes, item.md5) == (len(body), hashlib.md5(body).hexdigest())
        else:
            assert listed[item.path] == f"{item.bytes}\t{item.md5}"
            assert item.path.startswith(f"sub-{item.subject}/") and item.path.endswith(f"_{item.kind}.nii.gz")
    assert sum(path.endswith("_bold.nii.gz") for path in listed) == len(release_registry.fmri_subjects())


def test_facts_agree_with_the_release(release):
    stem = release / BOLD.removesuffix("_bold.nii.gz")
    assert release_registry.film_events() == Path(f"{stem}_events.tsv").read_text()
    sidecar = json.loads(Path(f"{stem}_bold.json").read_text())
    assert (sidecar["RepetitionTime"], sidecar["TaskName"]) == (release_registry.T_R, "film")


def test_folder_of_the_data_can_be_a_parameter_or_an_option(tmp_path, monkeypatch):
    asked_for = []
    got = SimpleNamespace(paths=[], source=None)
    monkeypatch.setattr(fetch, "fetch_subjects", lambda subjects, folder, **_: asked_for.append(folder) or got)
    for words in (["-p", "data_dir", f"{tmp_path}/a"], ["--data-dir", f"{tmp_path}/b"]):
        with pytest.raises(SystemExit) as stopped:
            run.main(["fetch", "--subject", "09", "--source", "openneuro", *words])
        assert not stopped.value.code
    assert asked_for == [tmp_path / "a", tmp_path / "b"]
