"""Downloads that are killed and started again: is what arrives right, and how much is fetched twice?

    python benchmarks/download.py [--quick] [--files 4] [--kills 6] [--megabytes 120]

A server on loopback plays OpenNeuro's bucket; a process of its own fetches from it as ``bold-audio fetch --source
openneuro`` does, is killed by SIGKILL at random moments, and at last left to finish. Every byte that the server hands
to the network counts. Fails where a file is not right, more than 1.10 times the bytes were sent, or a download ended
before it was killed. Takes seconds with ``--quick``, else about a minute. Ends with one line of JSON.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

LIMIT = 1.10
CHILD = """
import json, sys
from bold_audio import fetch
from bold_audio.registry import ReleaseFile
url, folder, rows = sys.argv[1:]
items = [ReleaseFile(*row) for row in json.loads(rows)]
subjects = [item.subject for item in items]
fetch.fetch_subjects(subjects, folder, source="openneuro", base_url=url, items=items)
"""


class Bucket(BaseHTTPRequestHandler):
    """Serves files with ranges, at a rate that leaves time for a kill, and counts what it sends."""

    def do_GET(self):
        """Send what was asked for in pieces."""
        body = self.server.content[self.path.lstrip("/")]
        first = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].rstrip("-"))
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        for start in range(first, len(body), self.server.piece):
            piece = body[start : start + self.server.piece]
            with self.server.counting:  # before it is sent, so that what a kill cuts off counts too
                self.server.sent += len(piece)
            self.wfile.write(piece)
            time.sleep(0.01)

    def log_message(self, *args):
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """The bucket's server; clients that are killed are not worth a word."""

    def handle_error(self, request, client_address):
        """Say nothing."""


def main():
    """Kill, go on, finish, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two files, three kills")
    parser.add_argument("--files", type=int, help="default: 4")
    parser.add_argument("--kills", type=int, help="default: 6")
    parser.add_argument("--megabytes", type=int, default=120, help="of each file (120)")
    options = parser.parse_args()
    n_files, n_kills = options.files or (2 if options.quick else 4), options.kills or (3 if options.quick else 6)
    rng = np.random.default_rng(0)
    content = {
        f"sub-{k:02}/sub-{k:02}_bold.nii.gz": rng.bytes(options.megabytes * 10**6) for k in range(1, n_files + 1)
    }
    rows = [(path[4:6], "bold", path, len(body), hashlib.md5(body).hexdigest()) for path, body in content.items()]
    total = sum(len(body) for body in content.values())
    with Server(("127.0.0.1", 0), Bucket) as server, tempfile.TemporaryDirectory() as folder:
        server.content, server.sent, server.counting, server.piece = content, 0, threading.Lock(), 1 << 18
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", CHILD, f"http://127.0.0.1:{server.server_port}", folder, json.dumps(rows)]
        surroundings = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        killed_at = []
        for mark in np.sort(rng.uniform(0.05, 0.9, n_kills)) * total:
            running = subprocess.Popen(command, env=surroundings)
            while server.sent < mark and running.poll() is None:
                time.sleep(0.005)
            running.kill()
            if running.wait() != -signal.SIGKILL:
                sys.exit(f"a download ended by itself, with {running.returncode}, before it was killed")
            parts = sum(path.stat().st_size for path in Path(folder).rglob("*.nii.gz*"))
            killed_at.append(round(parts / total, 3))
            print(f"killed with {parts / 1e6:.0f} of {total / 1e6:.0f} MB on disk, {server.sent / 1e6:.0f} MB sent")
        subprocess.run(command, env=surroundings, check=True)
        right = [hashlib.md5((Path(folder) / path).read_bytes()).hexdigest() == md5 for _, _, path, _, md5 in rows]
        left = [path.name for path in Path(folder).rglob("*.part")]
        server.shutdown()
    ratio = server.sent / total
    print(f"{sum(right)} of {n_files} files right after {n_kills} kills; {ratio:.4f} times their bytes were sent")
    result = {"files": n_files, "megabytes_each": options.megabytes, "kills": n_kills, "killed_at": killed_at}
    print(json.dumps(result | {"right": sum(right), "bytes_sent_ratio": round(ratio, 4), "limit": LIMIT}))
    if not all(right) or left or ratio > LIMIT:
        sys.exit("a download is not right, or too much was sent")


if __name__ == "__main__":
    main()
