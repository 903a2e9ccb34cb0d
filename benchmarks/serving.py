"""One model in torch, onnxruntime and a real Triton server on loopback: how long, how much memory, how alike.

    python benchmarks/serving.py [--quick]

A network with random weights (20 features, 64 hidden units), exported as any other; all runtimes answer the same
features in one program run, in turns, each after a pause in which the threads of the one before go to sleep (they would
take cores from it). ``voxels``: the runtime makes the volumes; ``coordinates``: it makes 64 numbers for each, and the
client unfolds them; ``shm``: a server on this machine writes voxels into the client's memory. All end with the whole
array of voxels. The peak memory of a client is measured in a process of its own, over what it had before the call. Then
eight clients ask for a minute, and the server is killed and started again in the middle. Ends with one line of JSON,
whose ``max_relative_difference`` is in shares of the largest value; a wrong answer, a client that hangs or crashes, no
right answer after the restart, or runtimes that differ by more than 1e-5 make the exit status 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from resident import resident
from tritonclient.utils import InferenceServerException

from bold_audio import export, served
from bold_audio.files import AccessError, ModelError, file_md5
from bold_audio.mlp import AudioFmriMLP, save_checkpoint
from bold_audio.runtimes import open_predictor
from bold_audio.server import TritonServer, install
from bold_audio.triton import IN_FLIGHT, MESSAGE_BYTES

N_FEATURES, N_VOLUMES, BATCHES = 20, 641, (1, 8, 64)
WAYS = (
    ("torch", None, "voxels"),
    ("onnxruntime", None, "voxels"),
    ("onnxruntime", None, "coordinates"),
    ("triton", "grpc", "voxels"),
    ("triton", "grpc", "coordinates"),
    ("triton", "http", "voxels"),
    ("triton", "http", "coordinates"),
    ("triton", "shm", "voxels"),
)
PAUSE = 0.3  # s
DEFAULT = ("triton", "grpc", "coordinates")


def write_model(folder, n_voxels):
    """A network of this size: exported, and its checkpoint."""
    torch.manual_seed(0)
    net = AudioFmriMLP(N_FEATURES, n_voxels, hidden_dims=[64]).eval()
    torch.nn.init.normal_(net.net[-1].weight)
    torch.nn.init.normal_(net.net[-1].bias)
    save_checkpoint(folder / f"{n_voxels}.ckpt", net, {})
    facts = {"kind": "mlp", "delay": 5.0, "subject": "bench", "n_inputs": N_FEATURES, "n_previous": 0}
    facts |= {"target": "volume", "mask_shape": [n_voxels], "mask_hash": "bench"}
    facts["checkpoint_md5"] = file_md5(folder / f"{n_voxels}.ckpt")
    extra = {"mask": np.ones(n_voxels, bool), "mean_volume": np.zeros(n_voxels)}
    where = {"models_dir": folder / "models", "name": f"bench_{n_voxels}", "version": 1, "source": "bench"}
    export.export_model(served.from_mlp(net), facts, extra=extra, **where)


def open_way(folder, n_voxels, way, urls):
    """A predictor that answers this way."""
    runtime, protocol, returns = way
    if protocol == "shm":
        return SharedMemory(f"bench_{n_voxels}", n_voxels, urls["grpc"])
    address = {"url": urls[protocol], "protocol": protocol} if protocol else None
    where = {"models_dir": folder / "models", "name": f"bench_{n_voxels}", "version": 1}
    return open_predictor(runtime, checkpoint=folder / f"{n_voxels}.ckpt", triton=address, returns=returns, **where)


class SharedMemory:
    """Voxels that a server on this machine writes where the client reads them; asked for by gRPC."""

    def __init__(self, name, n_voxels, url):
        from tritonclient import grpc
        from tritonclient.utils import shared_memory

        self.kit, self.memory, self.name, self.width = grpc, shared_memory, name, n_voxels
        self.client = grpc.InferenceServerClient(url)
        self.key = f"bold_audio_{os.getpid()}_{n_voxels}"
        size = 4 * n_voxels * N_VOLUMES
        self.region = shared_memory.create_shared_memory_region(self.key, self.key, size)
        self.client.register_system_shared_memory(self.key, self.key, size)
        self.rows = max(1, min(MESSAGE_BYTES // (4 * n_voxels), self._max_rows()))

    def _max_rows(self):
        return self.client.get_model_config(self.name, "1").config.max_batch_size

    def __call__(self, X):
        """All requests are on their way at once; each writes its own rows."""
        parts = range(0, len(X), self.rows)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(lambda start: self._request(X[start : start + self.rows], start), parts))
        return self.memory.get_contents_as_numpy(self.region, np.float32, [len(X), self.width])

    def _request(self, X, start):
        given = self.kit.InferInput("features", X.shape, "FP32").set_data_from_numpy(X)
        wanted = self.kit.InferRequestedOutput("voxels")
        wanted.set_shared_memory(self.key, 4 * len(X) * self.width, 4 * start * self.width)
        self.client.infer(self.name, [given], model_version="1", outputs=[wanted])

    def close(self):
        """Give the memory back, as soon as the server has let go of it."""
        for last in (False,) * 50 + (True,):
            try:
                self.client.unregister_system_shared_memory(self.key)
                break
            except InferenceServerException:
                if last:
                    raise
                time.sleep(0.1)
        self.memory.destroy_shared_memory_region(self.region)


def features(n=N_VOLUMES):
    """The same features for everybody."""
    return np.random.default_rng(0).normal(size=(n, N_FEATURES)).astype(np.float32)


def measure(folder, n_voxels, urls, repeats):
    """Seconds per call by way and batch, medians over turns, and the largest difference from torch."""
    X, predictors = features(), {way: open_way(folder, n_voxels, way, urls) for way in WAYS}
    expected = predictors[WAYS[0]](X)
    largest, worst = float(np.abs(expected).max()), 0.0
    for predictor in predictors.values():  # a first call of each, and what it answers
        made = predictor(X)
        worst = max(worst, float(np.abs(made - expected).max()) / largest)
        del made
    del expected
    seconds = {}
    for batch in (*BATCHES, N_VOLUMES):
        for _ in range(repeats):
            for way, predictor in predictors.items():
                time.sleep(PAUSE)
                begun = time.perf_counter()
                predictor(X[:batch])
                seconds.setdefault((way, batch), []).append(time.perf_counter() - begun)
    predictors[WAYS[-1]].close()
    return {key: float(np.median(taken)) for key, taken in seconds.items()}, worst


def show(n_voxels, seconds):
    """Print the table of one size."""
    print(f"\n{N_VOLUMES} volumes x {n_voxels:,} voxels, s per call, by volumes per call")
    print(f"  {'runtime':12s}{'protocol':10s}{'returns':13s}" + "".join(f"{b:>10d}" for b in (*BATCHES, N_VOLUMES)))
    for way in WAYS:
        numbers = "".join(f"{seconds[way, batch]:10.4f}" for batch in (*BATCHES, N_VOLUMES))
        print(f"  {way[0]:12s}{way[1] or '':10s}{way[2]:13s}{numbers}", flush=True)


def peak_over_result(folder, n_voxels, way, urls):
    """Peak memory of a whole run's call, over that before it, in shares of the result; in this process."""
    predictor, X = open_way(folder, n_voxels, way, urls), features()
    predictor(X[:2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident("VmRSS")
    made = predictor(X)
    made.max()  # shared memory counts once it was looked at
    peak = (resident("VmHWM") - before) / made.nbytes
    if hasattr(predictor, "close"):
        predictor.close()
    return peak


def client_peak(folder, n_voxels, way, urls):
    """The same in a fresh process."""
    task = json.dumps({"folder": str(folder), "n_voxels": n_voxels, "way": way, "urls": urls})
    done = subprocess.run([sys.executable, __file__, "--client", task], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def eight_clients(folder, n_voxels, server, seconds, log):
    """Eight clients for so many seconds, the server killed and started again in the middle; how each call ended."""
    X = features(64)
    urls = {protocol: server.url(protocol) for protocol in ("grpc", "http")}
    expected = open_way(folder, n_voxels, WAYS[1], urls)(X)
    ends, stop = dict.fromkeys(("right", "error", "wrong", "crash", "right_after_restart"), 0), threading.Event()
    again = threading.Event()
    counting = threading.Lock()

    def client(way):
        predictor = None
        while not stop.is_set():
            restarted = again.is_set()  # before the call: its answer comes from the second server
            try:
                predictor = predictor or open_way(folder, n_voxels, way, urls)
                made = predictor(X)
                same = made.shape == expected.shape and np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()
                end = "right" if same else "wrong"
            except (AccessError, ModelError):
                end = "error"
            except Exception:
                end = "crash"
            with counting:
                ends[end] += 1
                ends["right_after_restart"] += restarted and end == "right"

    threads = [threading.Thread(target=client, args=(WAYS[3 + i % 4],)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    server.stop(9)
    time.sleep(1)
    server.start(log=log)
    again.set()
    time.sleep(seconds / 2)
    stop.set()
    for thread in threads:
        thread.join(timeout=120)
    return ends | {"hung": sum(thread.is_alive() for thread in threads)}


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small head (a minute)")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        task = json.loads(options.client)
        print(peak_over_result(Path(task["folder"]), task["n_voxels"], tuple(task["way"]), task["urls"]))
        return
    sizes, repeats = ((5000,), 3) if options.quick else ((35_000, 163_840), 7)
    result, worst = {"quick": options.quick}, 0.0
    with tempfile.TemporaryDirectory(prefix="serving-") as base:
        folder = Path(base)
        for n_voxels in sizes:
            write_model(folder, n_voxels)
        with (folder / "log").open("w") as log, TritonServer(folder / "models", folder=install()).start(log=log) as on:
            urls = {protocol: on.url(protocol) for protocol in ("grpc", "http")}
            for n_voxels in sizes:
                seconds, difference = measure(folder, n_voxels, urls, repeats)
                show(n_voxels, seconds)
                worst = max(worst, difference)
                whole = {way: seconds[way, N_VOLUMES] for way in WAYS}
                ratio = whole[DEFAULT] / whole[WAYS[1]]
                peaks = {way[1:]: round(client_peak(folder, n_voxels, way, urls), 2) for way in WAYS[3:]}
                print(f"  Triton by default over onnxruntime {ratio:.2f}; largest relative difference {difference:.1e}")
                print(f"  peak of a client over its result: {peaks}", flush=True)
                if n_voxels == sizes[0]:
                    result |= {"triton_over_onnxruntime": round(ratio, 3)}
                    result |= {"client_peak_over_result": peaks[DEFAULT[1:]]}
            ends = eight_clients(folder, sizes[0], on, 8 if options.quick else 60, log)
            print(f"\n8 clients, the server killed and started again: {ends}")
    result |= {"max_relative_difference": worst, "clients": ends}
    print(json.dumps(result))
    if worst > 1e-5 or any(ends[how] for how in ("wrong", "crash", "hung")) or not ends["right_after_restart"]:
        sys.exit("the runtimes do not agree, or a client did not end as it should: see above")


if __name__ == "__main__":
    main()
