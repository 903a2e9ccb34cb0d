"""DVC against a real WebDAV server on loopback: what is committed, what travels, and that the token is nowhere."""

import base64
import hashlib
import json
import logging
import os
import subprocess
import sysconfig
import threading
import traceback
from pathlib import Path

import pytest
import yaml
from faults import Said, one_line
from release import (
    BOLD,
    ROOT,
    SUBJECT,
    T1W,
    TOKEN,
    data,
    fill,
    git,
    make_clone,
    nothing_but,
    own_surroundings,
    pattern,
    release_content,
    release_items,
    store,
    traces,
)
from webdav import WebDav, play_openneuro

from bold_audio import access, dvcrepo, execution, fetch, registry, run
from bold_audio.access import TOKEN_VARIABLE, Remote
from bold_audio.fetch import fetch_subjects, publish
from bold_audio.files import AccessError, DataError, MachineError, ParameterError
from bold_audio.params import load_params
from bold_audio.registry import ReleaseFile

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def content():
    return release_content()


@pytest.fixture(scope="module")
def items(content):
    return release_items(content)


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    own_surroundings(monkeypatch, tmp_path)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    running = WebDav(tmp_path / "served", accepts=[f"OAuth {TOKEN}"])
    yield running
    running.close()


@pytest.fixture
def remote(server):
    return Remote("yandex", f"{server.url}/deep/store", jobs=2, timeout=5)


@pytest.fixture
def clone(tmp_path, remote, items, monkeypatch):
    """Function: a clone of the project as git has it, with a small registry; main() works in the last one made."""

    def make(name):
        root = make_clone(tmp_path / name, remote, items)
        monkeypatch.setenv("BOLD_AUDIO_ROOT", str(root))
        return root

    monkeypatch.setattr(registry, "release_files", lambda: tuple(items))
    return make


@pytest.fixture
def here(clone, content, server, items):
    """A clone without data, beside a server on which the objects of all files lie, as `publish` puts them there."""
    store(server.folder / "deep/store", items, content)
    return clone("here")


@pytest.fixture
def get(here, remote, items):
    """Fetch subject 09 by DVC into `here`, with waits that take no time."""

    def get(**changed):
        usual = {"source": "dvc", "remote": remote, "root": here, "items": items, "waits": (0, 0)}
        return fetch_subjects(["09"], **{"data_dir": data(here), **usual, **changed})

    return get


# What is committed


def test_committed_files_are_what_the_command_writes(tmp_path):
    params = load_params("09", "ds003688")
    for path in dvcrepo.track(tmp_path, fetch.remote_of(params), registry.release_files()):
        assert (ROOT / path.relative_to(tmp_path)).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_dvc_knows_every_file_of_the_registry_before_anybody_has_it():
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        outs = {Path(out.fspath): out for stage in repo.index.stages for out in stage.outs}
    for item in registry.release_files():
        out = outs[ROOT / "data/ds003688" / item.path]
        assert (out.hash_info.name, out.hash_info.value, out.meta.size) == ("md5", item.md5, item.bytes)


def test_committed_settings_are_safe():
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        core, ours = repo.config["core"], repo.config["remote"]["yandex"]
    assert (core["analytics"], core["check_update"], ours["verify"]) == (False, False, True)
    assert ours["url"] == "webdavs://webdav.yandex.ru"  # https
    assert not {"token", "password", "user", "ssl_verify"} & set(ours)
    assert ours["bearer_token_command"] == "bold-audio print-token"


def test_only_the_entries_of_data_are_in_git(clone, content):
    root = clone("a")
    fill(root, content)
    (root / "data/.sim.lock").write_text("")
    assert git(root, "status", "--short") == ""
    assert git(root, "ls-files", "data", ".dvc").split() == [
        ".dvc/.gitignore",
        ".dvc/config",
        "data/.gitignore",
        "data/ds003688.dvc",
    ]


# From one clone to another


@pytest.mark.parametrize("scheme", ["Bearer", "OAuth"])
def test_published_from_one_clone_arrives_in_another(scheme, clone, server, remote, content, items, caplog):
    server.accepts = [f"{scheme} {TOKEN}"]
    one = clone("one")
    fill(one, content)
    entries = (one / dvcrepo.ENTRIES).read_bytes()
    assert publish(["09", "13"], data(one), remote=remote, root=one, items=items) == (4, 4)
    assert publish(["09", "13"], data(one), remote=remote, root=one, items=items) == (0, 4)
    assert len(server.asked("PUT")) == 4
    assert all((data(one) / item.path).samefile(dvcrepo.cached_object(one, item.md5)) for item in items)  # on disk once
    two = clone("two")
    fetched = fetch_subjects(["09"], data(two), source="dvc", remote=remote, root=two, items=items)
    assert fetched.source == f"by DVC from {server.host}"
    assert sorted(fetched.paths) == sorted(data(two) / path for path in SUBJECT)
    nothing_but(two, SUBJECT)
    for path in SUBJECT:
        assert (data(two) / path).read_bytes() == content[path]
        assert (data(one) / path).read_bytes() == content[path]
    stem = BOLD.removesuffix("_bold.nii.gz")
    assert json.loads((data(two) / f"{stem}_bold.json").read_text())["RepetitionTime"] == 0.608
    assert (data(two) / f"{stem}_events.tsv").read_text() == registry.film_events()
    for root in (one, two):
        assert git(root, "status", "--short") == ""
        assert (root / dvcrepo.ENTRIES).read_bytes() == entries
    server.requests.clear()
    assert fetch_subjects(["09"], data(two), source="dvc", remote=remote, root=two, items=items).paths == []
    assert server.requests == []
    assert caplog.text == ""


def test_plain_dvc_pulls_with_the_committed_command(here, server, content, monkeypatch):
    server.accepts = [f"Bearer {TOKEN}"]
    scripts = sysconfig.get_path("scripts")
    monkeypatch.setenv("PATH", scripts, prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([f"{scripts}/dvc", "pull", f"data/ds003688/{T1W}"], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (data(here) / T1W).read_bytes() == content[T1W]
    assert TOKEN not in done.stdout + done.stderr


def test_a_file_is_on_disk_once_where_links_work(get, here, items):
    get()
    (item,) = (item for item in items if item.path == BOLD)
    assert dvcrepo.copies(here, data(here)) == 1
    assert (data(here) / BOLD).samefile(dvcrepo.cached_object(here, item.md5))


def test_own_sidecar_and_other_files_stay(get, here):
    sidecar = data(here) / BOLD.replace(".nii.gz", ".json")
    sidecar.parent.mkdir(parents=True)
    sidecar.write_text('{"RepetitionTime": 0.608, "FlipAngle": 10}')
    (sidecar.parent / "notes.txt").write_text("mine")
    get()
    assert "FlipAngle" in sidecar.read_text() and (sidecar.parent / "notes.txt").read_text() == "mine"


def test_wrong_file_stays_until_the_right_one_has_come(get, here, server, items, content, caplog):
    fill(here, {BOLD: b"mine"}, [BOLD])
    server.faults[pattern(items, BOLD)] = ["bit flip"] * 9
    with pytest.raises(AccessError):
        get()
    assert (data(here) / BOLD).read_bytes() == b"mine"
    server.faults.clear()
    get()
    assert (data(here) / BOLD).read_bytes() == content[BOLD]
    assert "is not the file of ds003688 v1.0.7" in caplog.text


def test_a_damaged_cache_is_mended(get, here, items, content):
    get()
    (item,) = (item for item in items if item.path == BOLD)
    stored = dvcrepo.cached_object(here, item.md5)
    before = stored.stat()
    stored.chmod(0o644)
    stored.write_bytes(content[BOLD][:-1] + b"?")  # the data share its bytes
    stored.chmod(before.st_mode)
    os.utime(stored, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that rots changes no time
    get()
    assert (data(here) / BOLD).read_bytes() == content[BOLD] == stored.read_bytes()


def test_the_cache_that_the_users_settings_name_is_used(get, here, items, content, tmp_path):
    """As where many share one: nothing is kept twice, and what is damaged there is mended."""
    (here / ".dvc/config.local").write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n    type = copy\n")
    get()
    assert (data(here) / BOLD).read_bytes() == content[BOLD] and not (here / ".dvc/cache").exists()
    (item,) = (item for item in items if item.path == BOLD)
    stored = tmp_path / "shared/files/md5" / item.md5[:2] / item.md5[2:]
    assert dvcrepo.cached_object(here, item.md5) == stored and not stored.samefile(data(here) / BOLD)
    stored.unlink()
    stored.write_bytes(b"?" * 2_000_000)
    (data(here) / BOLD).unlink()
    get()
    assert (data(here) / BOLD).read_bytes() == content[BOLD] == stored.read_bytes()


def test_a_place_where_no_file_can_be_put_is_told_and_nothing_is_removed(get, here, server, items):
    (data(here) / BOLD / "mine").mkdir(parents=True)
    with pytest.raises(MachineError, match=f"{BOLD}: .* - free space or permit writing"):
        get()
    (item,) = (item for item in items if item.path == BOLD)
    assert (data(here) / BOLD / "mine").is_dir() and registry.is_right(dvcrepo.cached_object(here, item.md5), item)
    assert len(server.asked("GET")) == 3 and not list(data(here).rglob(".*.part"))


@pytest.mark.parametrize("work", ["get", "publish"])
def test_a_cache_that_cannot_be_written_is_told(work, get, here, remote, items, content):
    (item,) = (item for item in items if item.path == BOLD)
    folder = here / ".dvc/cache/files/md5" / item.md5[:2]
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    if work == "publish":
        fill(here, content, SUBJECT)
    with pytest.raises(MachineError, match=rf"{folder}.*: \w.* - (permit writing there|free space)"):
        get() if work == "get" else publish(["09"], data(here), remote=remote, root=here, items=items)


def test_settings_that_dvc_cannot_read_are_told(get, here):
    (here / ".dvc/config.local").write_text("[cache\n")
    with pytest.raises(MachineError, match="DVC cannot open .* - mend DVC's settings") as raised:
        get()
    assert "\n" not in str(raised.value)


def test_an_adopted_sound_travels_with_the_subjects(clone, server, remote, content, items):
    sound = ReleaseFile("n/a", "sound", "stimuli/film.wav", 500, hashlib.md5(content[T1W][:500]).hexdigest())
    one, two = (clone(name) for name in ("one", "two"))
    fill(one, content | {"stimuli/film.wav": content[T1W][:500]}, [*SUBJECT, "stimuli/film.wav"])
    for root in (one, two):
        (root / dvcrepo.SOUND_ENTRY).write_text(dvcrepo.entries_text([sound], meta={"duration": 1.0}))
    assert publish(["09"], data(one), remote=remote, root=one, items=items) == (4, 4)
    fetch_subjects(["09"], data(two), source="dvc", remote=remote, root=two, items=items)
    assert fetch.fetch_sound(remote=remote, root=two) == data(two) / "stimuli/film.wav"
    assert (data(two) / "stimuli/film.wav").read_bytes() == content[T1W][:500]
    assert fetch.fetch_sound(remote=remote, root=two) is None  # it is there
    assert dvcrepo.sound_entry(two).md5 == hashlib.md5((data(two) / "stimuli/film.wav").read_bytes()).hexdigest()


def test_a_missing_subject_is_fetched_where_the_token_is_set(here, server, content, monkeypatch):
    from bold_audio.prepare import ensure_scan

    params = load_params("09", dvc_url=f"{server.url}/deep/store")
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(DataError, match="sub-09 is not there"):
        ensure_scan(params)
    assert server.requests == []
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with pytest.raises(DataError, match="scan is a placeholder"):  # random bytes are no scan
        ensure_scan(params)
    assert (data(here) / BOLD).read_bytes() == content[BOLD]


def test_publish_refuses_what_is_not_complete(clone, server, remote, content, items):
    root = clone("one")
    fill(root, content, [BOLD, T1W])
    (data(root) / T1W).write_bytes(content[T1W][:-1] + b"?")
    with pytest.raises(DataError, match=r"2 of 3 files are missing or not those of ds003688 v1.0.7, such as .*T1w"):
        publish(["09"], data(root), remote=remote, root=root, items=items)
    assert server.requests == []


def test_folders_above_that_nobody_may_read_are_not_asked_for(clone, server, content, items):
    (server.folder / "dav/me").mkdir(parents=True)
    server.faults["(PROPFIND|MKCOL|GET) /(dav/?)?"] = [403] * 99
    remote, root = Remote("yandex", f"{server.url}/dav/me/deep/store"), clone("one")
    fill(root, content)
    for sent in (3, 0):
        assert publish(["09"], data(root), remote=remote, root=root, items=items) == (sent, 3)


def test_a_server_that_sends_folders_on_to_their_name_with_a_slash(get, here, server, remote, content, items):
    """As Apache: fetching works; for publishing DVC would have to follow, which it does not."""
    server.slashes = True
    get()
    assert (data(here) / BOLD).read_bytes() == content[BOLD]
    (item,) = (item for item in items if item.path == BOLD)
    (server.folder / "deep/store/files/md5" / item.md5[:2] / item.md5[2:]).unlink()
    with pytest.raises(
        AccessError, match=r"sends folders on \(301\).*DirectorySlash Off.\) - run the same command again"
    ):
        publish(["09"], data(here), remote=remote, root=here, items=items)


def test_publish_where_the_token_may_only_read(clone, server, remote, content, items):
    root = clone("one")
    fill(root, content)
    server.read_only = True
    with pytest.raises(AccessError, match=rf"{server.host}: token valid but no right to write \(403\)"):
        publish(["09"], data(root), remote=remote, root=root, items=items)
    assert server.asked("PUT") == []


@pytest.mark.parametrize(
    ("status", "message"),
    [(507, "no room left on the server"), (503, "server answers 503"), (207, r"sending failed \(ParseError\)")],
)
def test_publish_to_a_server_that_fails_on_the_way(status, message, clone, server, remote, content, items):
    root = clone("one")
    fill(root, content)
    server.faults["PUT .*"] = [status] * 99
    with pytest.raises(AccessError, match=f"{message}.* - run the same command again"):
        publish(["09"], data(root), remote=remote, root=root, items=items, waits=(0,))
    server.faults.clear()
    assert publish(["09"], data(root), remote=remote, root=root, items=items) == (3, 3)


def test_what_nobody_published_is_named(get, server, items):
    (item,) = (item for item in items if item.path == BOLD)
    (server.folder / "deep/store/files/md5" / item.md5[:2] / item.md5[2:]).unlink()
    with pytest.raises(
        AccessError, match=rf"{server.host}: not on the remote: {Path(BOLD).name} - 'bold-audio publish'"
    ):
        get()


def test_two_dvc_commands_at_once(get, here):
    from dvc.repo import Repo

    with Repo(str(here)) as repo, repo.lock, pytest.raises(MachineError, match="another DVC command is at work"):
        get()


def test_a_folder_that_dvc_does_not_track(get, here, remote, tmp_path):
    elsewhere = tmp_path / "else"
    with pytest.raises(
        ParameterError, match="DVC keeps data/ds003688 of the project, got .*else - leave out data_dir, "
    ):
        get(source="dvc", data_dir=elsewhere)
    with pytest.raises(ParameterError, match="DVC keeps data/ds003688 of the project, got .*else - leave out data_dir"):
        publish(["09"], elsewhere, remote=remote, root=here)
    (here / dvcrepo.ENTRIES).unlink()
    with pytest.raises(DataError, match=r"data/ds003688.dvc is missing - run 'bold-audio track'"):
        get()


# The command line: one line, the right exit status


@pytest.fixture
def command(here, server, capfd):
    """Function: run ``bold-audio`` in `here`; returns its exit status, what it printed and its last line on stderr."""

    def run_it(*arguments, url=None):
        url = url or f"{server.url}/deep/store"
        given = [] if arguments[0] == "print-token" else ["-p", "dvc_url", url, "-p", "dvc_timeout", "5"]
        with pytest.raises(SystemExit) as ended:
            run.main([*arguments, *given])
        said = capfd.readouterr()
        return Said(ended.value.code or 0, said.out, said.err)

    return run_it


def test_fetch_and_publish_by_command(command, here, content, server):
    said = command("fetch", "--subject", "9", "--source", "dvc")
    assert said.status == 0
    assert f"3 files, 2 MB, by DVC from {server.host}" in said.out
    assert f"sub-09: 3 files fetched by DVC from {server.host}; all files checked by MD5" in said.out
    assert (data(here) / BOLD).read_bytes() == content[BOLD]
    assert "nothing was missing" in command("fetch", "--subject", "9").out
    said = command("publish", "--subject", "9", url=f"{server.url}/new/place")
    assert said.status == 0 and f"3 files are at {server.url}/new/place, 3 of them sent now" in said.out


def test_track_by_command(command, here):
    assert command("track", url="https://dav.example.org/film").status == 0
    assert "url = webdavs://dav.example.org/film\n" in (here / ".dvc/config").read_text()
    assert yaml.safe_load((here / dvcrepo.ENTRIES).read_text())["outs"][0]["path"] == f"ds003688/{BOLD}"


@pytest.fixture
def public(content, tmp_path, monkeypatch):
    """A server that plays OpenNeuro's bucket: no token, plain paths."""
    running = play_openneuro(tmp_path / "public", content, monkeypatch)
    yield running
    running.close()


def test_auto_goes_on_to_openneuro_and_says_why(command, here, public, server, content):
    server.accepts = []
    said = command("fetch", "--subject", "09")
    assert said.status == 0 and f"by DVC from {server.host}" in said.out and "fetched from OpenNeuro" in said.out
    assert f"{server.host}: token refused (401)" in said.err and "source auto goes on to openneuro" in said.err
    assert (data(here) / BOLD).read_bytes() == content[BOLD]
    assert {header for _, _, header in public.requests} == {None}  # the token stays with its own host


def test_a_named_source_is_never_changed(command, here, public, server):
    server.accepts = []
    assert "token refused (401)" in one_line(command("fetch", "--subject", "09", "--source", "dvc"), 4)
    assert public.requests == []
    server.requests.clear()
    assert command("fetch", "--subject", "09", "--source", "openneuro").status == 0
    assert server.requests == []


def test_print_token(command, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, f" {TOKEN}\n")
    assert command("print-token").out == f"{TOKEN}\n"
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert command("print-token").status == 4


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://dav.example.org", "must begin with https://"),
        ("ftp://127.0.0.1/x", "must begin with https://"),
        ("https://me:hunter2@dav.example.org/x", "must not hold a user or password"),
        ("https://", "must be the address of a folder"),
        ("https://dav.example.org/a b", "must be the address of a folder"),
        ("https://dav.example.org/x?y=1", "must be the address of a folder"),
    ],
)
def test_address_that_is_not_safe_for_a_token(url, message):
    with pytest.raises(ParameterError, match=f"dvc_url: {message}") as raised:
        load_params("09", dvc_url=url)
    assert "hunter2" not in str(raised.value)


# D10: the token is nowhere but in the environment


def test_traces_are_found_where_a_token_is():  # the test of the test
    for before in ("", "x", "xy", "user:"):
        coded = base64.b64encode(f"{before}{TOKEN} and more".encode())
        assert any(trace in coded for trace in traces(TOKEN))


class Watch(threading.Thread):
    """Reads the command lines of all processes of this machine until told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen, self.stop = set(), threading.Event()

    def run(self):
        while not self.stop.wait(0.01):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


NOTEBOOK = """{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "metadata": {"tags": ["parameters"]},
"outputs": [], "source": "import os\\nsubject = 'sim'\\nprint(dict(os.environ), subject)"}], "metadata": {"kernelspec":
{"display_name": "Python 3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}"""


def test_the_token_is_nowhere_afterwards(command, here, server, content, tmp_path, monkeypatch, capfd, caplog):  # D10
    caplog.set_level(logging.DEBUG)
    watch, said, tracebacks = Watch(), [], []
    watch.start()
    for arguments, accepts in (
        (["fetch", "--subject", "09", "--source", "dvc"], None),
        (["publish", "--subject", "09"], None),
        (["fetch", "--subject", "13", "--source", "dvc"], []),  # refused
    ):
        server.accepts = accepts
        said.append(command(*arguments))
    for faults in ({"PROPFIND .*": [401] * 9}, {"GET .*": [403] * 9}, {"GET .*": ["bit flip"] * 9}):
        server.accepts, server.faults = None, faults
        monkeypatch.setattr(dvcrepo.time, "sleep", lambda seconds: None)
        with pytest.raises(AccessError) as raised:  # --debug: the whole traceback, with all that led to it
            run.main(
                ["fetch", "--subject", "13", "--source", "dvc", "--debug", "-p", "dvc_url", f"{server.url}/deep/store"]
            )
        tracebacks += traceback.format_exception(raised.value)
    (here / "notebooks/99_env.ipynb").write_text(NOTEBOOK)
    (tmp_path / "outputs").mkdir()
    executed = execution.execute("99_env", tmp_path / "outputs", {"subject": "sim"})
    from bold_audio.report import write_page

    write_page(executed, tmp_path / "outputs" / "env.html")
    assert "BOLD_AUDIO_ROOT" in executed.read_text()  # the environment was printed
    assert os.environ[TOKEN_VARIABLE] == TOKEN  # and is whole again
    watch.stop.set()
    watch.join()
    assert [one.status for one in said] == [0, 0, 4] and (data(here) / BOLD).read_bytes() == content[BOLD]
    assert any(header and TOKEN in header for *_, header in server.requests)  # it did travel
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) > 30
    everything = [*written.values(), *watch.seen, caplog.text.encode(), capfd.readouterr().err.encode()]
    everything += [(one.out + one.err).encode() for one in said] + [line.encode() for line in tracebacks]
    hits = [body[:80] for body in everything for trace in traces(TOKEN) if trace in body]
    assert hits == []


def test_the_header_that_was_found_shows_the_token_to_nobody(server, remote):  # D10
    header = access.open_remote(remote, TOKEN, may_lack=True)
    assert header == f"OAuth {TOKEN}"
    assert TOKEN not in repr(access._Authorization(header)) + str(vars(remote))
