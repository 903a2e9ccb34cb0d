"""A real Triton server on loopback: the same numbers as onnxruntime, and a clear end where it is absent or wrong."""

import contextlib
import gc
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from processes import wait_for

from bold_audio import export, run, served, triton
from bold_audio.encoding import LinearModel
from bold_audio.files import AccessError, MachineError, ModelError, ParameterError
from bold_audio.mlp import AudioFmriMLP
from bold_audio.runtimes import open_predictor
from bold_audio.server import POLL, TritonServer, install

pytestmark = pytest.mark.thorough

N_FEATURES, N_VOXELS = 6, 50
MLP, LINEAR = "film_sub-1", "film_sub-1_history_sound"
PROTOCOLS = ("grpc", "http")
EXTRA = {"mask": np.ones((5, 5, 2), bool), "mean_volume": np.linspace(900, 1100, N_VOXELS)}
FACTS = {"delay": 5.0, "subject": "1", "n_inputs": N_FEATURES, "mask_shape": [5, 5, 2], "target": "volume"}


def write_mlp(models_dir, version, *, name=MLP, seed=0, n_features=N_FEATURES, **options):
    torch.manual_seed(seed)
    net = AudioFmriMLP(n_features, N_VOXELS, hidden_dims=[8]).eval()
    torch.nn.init.normal_(net.net[-1].weight)
    facts = FACTS | {"kind": "mlp", "n_previous": 0, "n_inputs": n_features}
    where = {"models_dir": models_dir, "name": name, "version": version, "source": f"{seed}"}
    export.export_model(served.from_mlp(net), facts, extra=EXTRA, **where, **options)


def write_linear(models_dir, version, *, seed=0):
    rng = np.random.default_rng(seed)
    weights, phi = rng.normal(size=(N_FEATURES, N_VOXELS)), 0.3 * rng.normal(size=(2, N_VOXELS))
    model = LinearModel(rng.normal(size=N_VOXELS), phi, weights, np.ones(N_VOXELS))
    facts = FACTS | {"kind": "history_sound", "n_previous": 2}
    where = {"models_dir": models_dir, "name": LINEAR, "version": version, "source": f"{seed}"}
    export.export_model(served.from_linear(model), facts, extra=EXTRA, **where)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two models, two versions of each."""
    folder = tmp_path_factory.mktemp("served") / "triton_models"
    for version in (1, 3):
        write_mlp(folder, version, seed=version)
        write_linear(folder, version, seed=version)
    return folder


@pytest.fixture(scope="module")
def server(repository):
    """A running server of the repository; what it says is in its ``said``."""
    running = TritonServer(repository, folder=install())
    running.said = repository.parent / "log"
    with running.said.open("w") as log, running.start(log=log):
        yield running
    assert running.process.poll() is not None


def inputs_of(name, n=40):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, N_FEATURES)).astype(np.float32)
    return (X,) if name == MLP else (X, rng.normal(size=(n, 2, N_VOXELS)).astype(np.float32))


def ask(server, models_dir, name=MLP, *, version=1, protocol="grpc", returns=None, **options):
    address = {"url": server.url(protocol), "protocol": protocol} | options
    return open_predictor("triton", models_dir=models_dir, name=name, version=version, triton=address, returns=returns)


@pytest.mark.parametrize("returns", ["voxels", "coordinates"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("name", [MLP, LINEAR])
def test_server_answers_as_onnxruntime(server, repository, name, version, protocol, returns):
    inputs = inputs_of(name)
    here = open_predictor("onnxruntime", models_dir=repository, name=name, version=version)
    made = ask(server, repository, name, version=version, protocol=protocol, returns=returns)(*inputs)
    expected = here(*inputs)
    assert made.dtype == np.float32
    assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()
    other = open_predictor("onnxruntime", models_dir=repository, name=name, version=4 - version)(*inputs)
    assert np.abs(made - other).max() > 0.1, "the other version is another model"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_of_many_mebibytes_arrive_in_one_message(server, repository, protocol):
    """gRPC's own limit is 4 MiB, and a client that sets any option of its channel falls back to it."""
    model, X = triton.TritonModel(MLP, 1, url=server.url(protocol), protocol=protocol), inputs_of(MLP)[0]
    expected = open_predictor("onnxruntime", models_dir=repository, name=MLP, version=1)(X)
    many = np.tile(X, (triton.MESSAGE_BYTES // (4 * N_VOXELS * len(X)) + 1, 1))
    made = model.infer({"features": many}, "voxels")
    assert made.nbytes > triton.MESSAGE_BYTES
    np.testing.assert_allclose(made, np.tile(expected, (len(many) // len(X), 1)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hundreds_of_large_batches_leave_nothing_open(server, repository, monkeypatch, protocol):
    predictor, X = ask(server, repository, protocol=protocol, returns="voxels"), inputs_of(MLP, n=400)[0]
    monkeypatch.setattr(triton, "MESSAGE_BYTES", 100 * 4 * N_VOXELS)
    here, counts = psutil.Process(), []
    for _ in range(3):
        for _ in range(40):
            predictor(X)
        gc.collect()
        counts.append((here.num_fds(), here.num_threads()))
    # Others in this process may close what they had open; what each batch left open would be 80 more.
    assert all(last <= first for last, first in zip(counts[2], counts[0], strict=True)), counts


@pytest.mark.parametrize("attempt", range(3))
def test_version_replaced_under_a_client_is_never_mixed_with_what_it_was(repository, tmp_path, monkeypatch, attempt):
    """The old version's answer or an error, at whatever moment the server looks at its files."""
    models_dir = shutil.copytree(repository, tmp_path / "models")
    with TritonServer(models_dir, folder=install()) as running:
        predictor, X = ask(running, models_dir), inputs_of(MLP, n=400)[0]
        expected = predictor(X)
        monkeypatch.setattr(triton, "MESSAGE_BYTES", 100 * 4 * N_VOXELS)
        time.sleep(attempt / 3 * POLL)
        write_mlp(models_dir, 1, seed=7, overwrite=True)
        refused, begun = [], time.monotonic()
        while not refused and time.monotonic() - begun < 30:
            try:
                np.testing.assert_allclose(predictor(X), expected, rtol=1e-5)
            except ModelError as error:
                refused.append(str(error))
        assert "was replaced on Triton while it was asked - open it again" in refused[0]
        fresh = open_predictor("onnxruntime", models_dir=models_dir, name=MLP, version=1)(X)

        def opens_again():  # once the server has read config and weights of the same moment
            with contextlib.suppress(ModelError):
                np.testing.assert_allclose(ask(running, models_dir)(X), fresh, rtol=1e-4, atol=1e-3)
                return True

        wait_for(opens_again)


def test_proxy_of_the_environment_is_not_asked_for_this_machine(repository, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with TritonServer(repository, folder=install()) as running:
        for protocol in PROTOCOLS:
            assert ask(running, repository, protocol=protocol)(*inputs_of(MLP)).shape == (40, N_VOXELS)


def test_port_of_another_server_is_not_taken_for_ones_own(server, tmp_path):
    shutil.copytree(server.models_dir, tmp_path / "models")
    for name, port in server.ports.items():
        second = TritonServer(tmp_path / "models", ports={name: port}, folder=install())
        with pytest.raises(MachineError, match=rf"port {port} \({name}\) is taken - stop .* or give --{name}-port"):
            second.start()
        assert second.process is None


def test_models_that_could_not_be_loaded_are_told_with_those_that_could(repository, tmp_path):
    models_dir = shutil.copytree(repository, tmp_path / "models")
    for version in ("1", "3"):
        (models_dir / LINEAR / version / "model.onnx").write_bytes(b"no model")
    with TritonServer(models_dir, folder=install()) as running:
        wait_for(lambda: running.models()[1])
        ready, failed = running.models()
    assert ready == [f"{MLP} version 1", f"{MLP} version 3"]
    assert all(name.startswith(LINEAR) and reason for name, reason in failed.items())


@pytest.mark.parametrize(
    ("url", "protocol", "secure"),
    [
        ("http://a:1", "http", False),
        ("https://a:1", "http", True),
        ("grpcs://a:1", "grpc", True),
        ("a:1", "grpc", False),
    ],
)
def test_address_says_whether_it_is_encrypted_and_never_another_protocol(url, protocol, secure):
    assert triton.TritonModel(MLP, 1, url=url, protocol=protocol).secure is secure
    other = {"http": "grpc", "grpc": "http"}[protocol]
    if "://" in url:
        with pytest.raises(ParameterError, match=f"but triton_protocol is {other} - make them the same"):
            triton.TritonModel(MLP, 1, url=url, protocol=other)


def test_folder_that_is_not_there_is_refused_and_not_made(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["serve", "--models-dir", str(tmp_path / "mistyped")])
    assert stopped.value.code == 2 and "mistyped - run notebook 05, or give" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def serve_command(repository):
    """``bold-audio serve`` in a program of its own, with its ports; its first line is not read yet."""
    ports = TritonServer(repository).ports
    words = ["serve", "--models-dir", str(repository)]
    words += [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    # Where the tests run in a shell's background, Ctrl-C is ignored, and children inherit that.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL); from bold_audio.run import main; main()"
    install()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, *words], **pipes) as process:
        try:
            yield process, ports
        finally:
            process.terminate()  # a test that fails must not wait for it


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_server_ends_with_the_program_that_started_it(repository, how):
    """A closed terminal, Ctrl-C or a program that was killed leaves no server behind that holds its ports."""
    with serve_command(repository) as (process, ports):
        assert "Triton serves" in process.stdout.readline()
        assert f"{MLP} version 1, {MLP} version 3" in process.stdout.readline()
        os.kill(process.pid, how)
        assert process.wait(timeout=60) == {signal.SIGKILL: -9, signal.SIGHUP: 129, signal.SIGINT: 0}[how]
        if how == signal.SIGINT:  # as it was told: no error, nothing to go on with
            assert process.stdout.read().endswith("Triton is stopped\n") and "bold_audio:" not in process.stderr.read()
        wait_for(lambda: all(is_free(port) for port in ports.values()))


def test_serve_says_what_ended_its_server(repository):
    with serve_command(repository) as (process, _):
        assert "Triton serves" in process.stdout.readline()
        [server] = psutil.Process(process.pid).children()
        server.kill()
        assert process.wait(timeout=60) == MachineError.exit_code
        assert "Triton was ended by signal 9 - start it again" in process.stderr.read()


def is_free(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_batches_go_in_parts_and_come_back_in_order(server, repository, monkeypatch, protocol):
    X = inputs_of(MLP, n=1003)[0]
    expected = open_predictor("onnxruntime", models_dir=repository, name=MLP, version=1)(X)
    predictor = ask(server, repository, protocol=protocol, returns="voxels")
    asked = []
    once = triton.TritonModel._request
    monkeypatch.setattr(triton, "MESSAGE_BYTES", 100 * 4 * N_VOXELS)
    monkeypatch.setattr(
        triton.TritonModel, "_request", lambda s, i, o: (asked.append(len(i["features"])), once(s, i, o))[1]
    )
    np.testing.assert_allclose(predictor(X), expected, rtol=1e-5)
    assert sorted(asked) == [1, 3] + [100] * 10  # one row asks again whose answers they were


def test_no_request_is_larger_than_the_server_takes(server, repository, monkeypatch):
    """The config's max_batch_size, which a server refuses to exceed."""
    model = triton.TritonModel(MLP, 1, url=server.url("grpc"))
    limit = model._config()[1]
    assert limit == 64 * 2**20 // (4 * (N_FEATURES + N_VOXELS))
    monkeypatch.setattr(triton.TritonModel, "_config", lambda self: (self.__class__._config_said, 7))
    monkeypatch.setattr(triton.TritonModel, "_config_said", {}, raising=False)
    asked = []
    once = triton.TritonModel._request
    monkeypatch.setattr(
        triton.TritonModel, "_request", lambda s, i, o: (asked.append(len(i["features"])), once(s, i, o))[1]
    )
    ask(server, repository)(inputs_of(MLP, n=20)[0])
    assert max(asked) == 7 and sum(asked) == 20 + export.PROBE_VOLUMES + 1  # a stored input before, a row of it after


def test_new_version_is_served_while_the_server_runs_and_never_half(server, repository):  # M18
    write_mlp(repository, 9, name="film_sub-2", seed=9)
    model = triton.TritonModel("film_sub-2", 9, url=server.url("grpc"))
    wait_for(lambda: model._call("is_model_ready", model.name, model.version))
    X = inputs_of(MLP)[0]
    for version in (10, 11):
        write_mlp(repository, version, name="film_sub-2", seed=version)
        model = triton.TritonModel("film_sub-2", version, url=server.url("grpc"))
        wait_for(lambda model=model: model._call("is_model_ready", model.name, model.version))
        here = open_predictor("onnxruntime", models_dir=repository, name="film_sub-2", version=version)
        made = ask(server, repository, "film_sub-2", version=version)(X)
        np.testing.assert_allclose(made, here(X), rtol=1e-4, atol=1e-5)
    assert "failed to load" not in server.said.read_text()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_version_that_is_not_served_is_named_with_what_is(server, repository, tmp_path, protocol):  # M15
    own = shutil.copytree(repository, tmp_path / "models")
    write_mlp(own, 5, seed=5)
    with pytest.raises(
        ModelError, match=f"{MLP} version 5 is not ready on Triton .* ready are .*{MLP} version 1"
    ) as error:
        ask(server, own, version=5, protocol=protocol)
    assert error.value.exit_code == 6 and "\n" not in str(error.value)
    write_mlp(own, 1, name="never_seen")
    with pytest.raises(ModelError, match="never_seen version 1 is not ready"):
        ask(server, own, "never_seen", protocol=protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_weights_or_shapes_than_the_bundles_are_refused(
    server, repository, tmp_path, monkeypatch, protocol
):  # M16, M19
    own = shutil.copytree(repository, tmp_path / "models")
    write_mlp(own, 1, seed=77, overwrite=True)
    with pytest.raises(ModelError, match=f"serves {MLP} version 1 of bundle .*, this is .* point models_dir"):
        ask(server, own, protocol=protocol)
    monkeypatch.setattr(triton.TritonModel, "_config", lambda self: ({}, 100))  # a server without our config
    with pytest.raises(ModelError, match="answers a stored input with other numbers"):
        ask(server, own, protocol=protocol)
    shutil.rmtree(own / MLP)
    write_mlp(own, 1, seed=1, n_features=N_FEATURES + 1)
    with pytest.raises(ModelError, match="Triton serves .* the bundle says"):
        ask(server, own, protocol=protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_server_is_one_line_that_says_how_to_start_it(repository, protocol, monkeypatch):  # M13
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{held.getsockname()[1]}"
    monkeypatch.setattr(triton, "WAITS", (0.05, 0.1))
    address = {"url": nowhere, "protocol": protocol, "timeout": 2.0}
    with pytest.raises(AccessError, match=f"Triton not reachable at {nowhere} .* start it .make triton") as error:
        open_predictor("triton", models_dir=repository, name=MLP, version=1, triton=address)
    assert error.value.exit_code == 4 and "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_that_never_answers_is_given_up(repository, protocol, monkeypatch):  # M14
    monkeypatch.setattr(triton, "WAITS", (0.05, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"url": f"127.0.0.1:{silent.getsockname()[1]}", "protocol": protocol, "timeout": 0.5}
        ended = []

        def ask_in_vain():
            with pytest.raises(AccessError, match="not reachable"):
                open_predictor("triton", models_dir=repository, name=MLP, version=1, triton=address)
            ended.append(True)

        asking = threading.Thread(target=ask_in_vain, daemon=True)
        asking.start()
        asking.join(timeout=120)
        assert ended, "three deadlines and two waits, not for ever"


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"]
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_that_hangs_up_is_given_up(repository, protocol, answer, monkeypatch):  # M14
    monkeypatch.setattr(triton, "WAITS", (0.05, 0.1))

    waited = []
    monkeypatch.setattr(triton.time, "sleep", waited.append)

    class HangsUp(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1000)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangsUp) as rude:
        threading.Thread(target=rude.serve_forever, daemon=True).start()
        address = {"url": f"127.0.0.1:{rude.server_address[1]}", "protocol": protocol, "timeout": 1.0}
        try:
            with pytest.raises(AccessError, match="not reachable") as error:
                open_predictor("triton", models_dir=repository, name=MLP, version=1, triton=address)
        finally:
            rude.shutdown()
    assert "\n" not in str(error.value)
    assert [wait for wait in waited if wait in triton.WAITS] == list(triton.WAITS), (
        "two more tries, after growing waits"
    )


@pytest.mark.parametrize("name", [MLP, LINEAR])
def test_requests_that_share_a_batch_get_each_its_own_answer(server, repository, name):
    """Clients that ask at once, each for other volumes and another number of them."""
    here = open_predictor("onnxruntime", models_dir=repository, name=name, version=1)
    wanted = [tuple(10 * k + array[: 1 + k % 3] for array in inputs_of(name)) for k in range(8)]
    expected = [here(*one) for one in wanted]
    models = [ask(server, repository, name, returns="voxels") for _ in wanted]

    def often(k):
        return all(np.allclose(models[k](*wanted[k]), expected[k], rtol=1e-3, atol=1e-2) for _ in range(40))

    with ThreadPoolExecutor(len(wanted)) as pool:
        assert all(pool.map(often, range(len(wanted))))


def test_clients_of_a_killed_server_end_right_or_say_so(repository):
    """Eight clients, the server killed and started again under them: right numbers, or a clear error."""
    running = TritonServer(repository, folder=install()).start()
    X = inputs_of(MLP)[0]
    expected = open_predictor("onnxruntime", models_dir=repository, name=MLP, version=1)(X)
    stop, seen = threading.Event(), []

    def client(protocol):
        predictor = None
        while not stop.is_set():
            try:
                predictor = predictor or ask(running, repository, protocol=protocol, timeout=5.0)
                made = predictor(X)
                seen.append("right" if np.allclose(made, expected, rtol=1e-4, atol=1e-4) else "WRONG")
            except (AccessError, ModelError) as error:
                seen.append(str(error))
            except BaseException as error:
                seen.append(f"WRONG: {error!r}")
                raise

    threads = [threading.Thread(target=client, args=(PROTOCOLS[i % 2],)) for i in range(8)]
    try:
        for thread in threads:
            thread.start()
        wait_for(lambda: seen.count("right") > 20)
        running.stop(signal.SIGKILL)
        time.sleep(1.0)
        running.start()
        back = len(seen)
        wait_for(lambda: seen[back:].count("right") > 40)
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
        running.stop()
    assert not any(thread.is_alive() for thread in threads)
    assert not [text for text in seen if text.startswith("WRONG")]
    assert all(text == "right" or "Triton" in text for text in seen)


def test_serve_command_starts_a_server_and_stops_it(repository):
    with serve_command(repository) as (process, ports):
        line = process.stdout.readline()
        assert f"grpc 127.0.0.1:{ports['grpc']}" in line and f"http 127.0.0.1:{ports['http']}" in line
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", ports["grpc"]))
