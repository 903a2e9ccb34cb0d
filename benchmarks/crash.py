"""Kill a run at any moment and run it again: does it end with the files of a run that nobody killed?

    python benchmarks/crash.py [--quick] [--kills 20] [--every 1] [--steps 00-06] [--seed 0]

A tiny SIMULATED subject. First, moments drawn over the time that a whole run takes: the run is begun in empty folders
and killed (SIGKILL), in turns the program with all its descendants, the program alone, so that its kernel goes on for
a second, and the kernel alone. Then, step by step, every write: an audit hook in the program and in its kernels, which
the product knows nothing of, counts what changes a name or opens a file for writing below outputs and models, and ends
both processes at the n-th; a file that was about to be opened is left as opening leaves it, so empty where it is new.
After each the same command is run again and must end with status 0 and the reference's files:

- the same names, nothing half-written among them, and locks that are free;
- the same bytes, but for what tells the time of day or how long it took: such JSON is compared without times, notebooks
  and pages by their cells, texts and figures without seconds, MLflow's store by finished runs, parameters and metrics.

The hook does not see what C code and SQLite write, but their files get their names by calls that it sees, and
MLflow's store is looked at where it is opened. ``--every K`` takes each K-th write. Linux alone. With the kills comes
the exact 95 % interval of their share: 20 of 20 say at least .83. Ends with one line of JSON; the exit status is 1
where anything was not equal, or where a run that nothing killed failed.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import psutil
from output_trees import differences

from bold_audio.simulate import simulate_subject
from bold_audio.steps import chosen_steps

SMALL = {"shape": (12, 14, 14), "n_volumes": 300}
GIVEN = {
    "delays": [4, 5, 6], "mlp_delays": [5], "max_epochs": 10, "history_order": 2, "n_folds": 2, "gap": 8,
    "regions": {}, "alphas": [16, 1024, 65536], "n_mfcc": 8, "hop_length": 2048,
}  # fmt: skip
PROGRAM = common.SCRIPTS / "bold-audio"
WAYS = ("all", "program", "kernel")
KERNEL = "ipykernel_launc"  # as the system cuts names
MISSES = 20  # moments in a row at which nothing was there to be killed
PATIENCE = 600  # s that a run may take on a busy machine
HOOK = '''
"""Counts writes below some folders, in this process and the kernels that it starts, and ends both at one of them."""

import fcntl
import importlib.util
import os
import signal
import sys
from importlib.machinery import PathFinder

HERE = os.path.dirname(os.path.abspath(__file__))
ROOTS, COUNTER, LAST = os.environ["CRASH_ROOTS"].split(os.pathsep), os.environ["CRASH_COUNTER"], os.environ["CRASH_AT"]
PARENT = int(os.environ.setdefault("CRASH_PROGRAM", str(os.getpid())))
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# event: (where its path stands, where the number of the folder stands that the path is in)
EVENTS = {"os.rename": (1, 3), "os.remove": (0, 1), "os.mkdir": (0, 2), "os.rmdir": (0, 1), "os.link": (1, 3)}
EVENTS |= {"os.symlink": (1, 2), "os.truncate": (0, None), "open": (0, None), "sqlite3.connect": (0, None)}


def count(event, given):
    if event not in EVENTS or (event == "open" and not given[2] & CHANGES):
        return
    place, inside = EVENTS[event]
    path = os.fsdecode(given[place]) if isinstance(given[place], (str, bytes, os.PathLike)) else ""
    if inside is not None and given[inside] not in (-1, None) and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{given[inside]}"), path)
    path = os.path.abspath(path.removeprefix("file:"))
    if not any(path.startswith(root + os.sep) for root in ROOTS):
        return
    with open(COUNTER, "ab") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        counter.write(b"|")
        counter.flush()
        if counter.tell() != int(LAST):
            return
    with open(f"{COUNTER}.at", "w") as said:
        said.write(f"{event} {path}")
    if event == "open":
        os.open(path, given[2], 0o666)
    if os.getpid() != PARENT:
        os.kill(PARENT, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(count)
found = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path or ".") != HERE])
if found:
    found.loader.exec_module(importlib.util.module_from_spec(found))
'''


class Site:
    """A simulated subject, the outputs and models of its runs, and the program.

    Parameters
    ----------
    root : Path
    steps : str
        As on the command line.
    """

    def __init__(self, root, steps="00-06"):
        self.root, self.steps = Path(root), chosen_steps(steps)
        self.work, self.data, self.log = self.root / "work", self.root / "data", self.root / "log"
        self.references = {}
        self.counter, hook = self.root / "counter", self.root / "hook"
        simulate_subject(self.data, subject="sim", **SMALL)
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        folders = {"data_dir": self.data, "outputs_dir": self.work / "outputs", "models_dir": self.work / "models"}
        given = {name: str(path) for name, path in folders.items()} | GIVEN
        self.given = common.words_of(given)
        paths = [str(hook), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "CRASH_ROOTS": os.pathsep.join(str(folders[name]) for name in ("outputs_dir", "models_dir")),
            "CRASH_COUNTER": str(self.counter),
        }

    def put(self, state=None):
        """Put a copy of earlier outputs and models in place, or none."""
        shutil.rmtree(self.work, ignore_errors=True)
        if state is not None:
            shutil.copytree(state, self.work, symlinks=True)

    def start(self, steps, *, at=0):
        """Begin a run of these steps, which the hook ends at write number ``at``; 0: at none."""
        self.counter.write_bytes(b"")
        numbers = ",".join(step[:2] for step in steps)
        command = [str(PROGRAM), "run", "--subject", "sim", "--dataset", "sim", "--steps", numbers, *self.given]
        with self.log.open("w") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment | {"CRASH_AT": str(at)}, cwd=self.root
            )

    def finish(self, steps, orphans=()):
        """Run these steps to their end, while kernels of a killed program may go on.

        Returns
        -------
        said : list of str
            What is wrong with how it ended.
        seconds, outlived : float
            That it took, and that the kernels went on for.
        """
        begun, program = time.perf_counter(), self.start(steps)
        _, left = psutil.wait_procs(orphans, timeout=PATIENCE)
        outlived = time.perf_counter() - begun if orphans else 0.0
        status = program.wait(PATIENCE)
        said = ["a kernel without a program did not end"] if left else []
        if status:
            said.append(f"status {status}: {self.log.read_text()[-400:].strip()}")
        return said, time.perf_counter() - begun, outlived

    def reference(self, steps, before=None):
        """What these steps make of an earlier state when nobody kills them: a copy of it, the writes, the seconds."""
        if tuple(steps) not in self.references:
            self.put(before)
            said, seconds, _ = self.finish(steps)
            if said:
                raise SystemExit(f"a run that nobody killed failed: {said}")
            copy = Path(shutil.copytree(self.work, self.root / f"reference-{len(self.references)}", symlinks=True))
            self.references[tuple(steps)] = copy, self.counter.stat().st_size, seconds
        return self.references[tuple(steps)]

    def kill_all(self):
        """Kill what runs here."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("CRASH_COUNTER") == str(self.counter):
                    process.kill()


def kill(program, way):
    """Kill a running program in one of `WAYS`, once it has a kernel where the kernel is to be killed.

    Returns
    -------
    killed : int
        Processes; 0 where all had ended before.
    orphans : list of psutil.Process
        Kernels that go on.
    """
    killed, below, kernels = 0, [], []
    try:
        running = psutil.Process(program.pid)
    except psutil.NoSuchProcess:
        return 0, []
    while program.poll() is None and not kernels:
        with contextlib.suppress(psutil.Error):
            below = running.children(recursive=True)
            kernels = [one for one in below if one.name() == KERNEL]
        if way != "kernel":
            break
        time.sleep(0.02)
    for process in {"all": [running, *below], "program": [running], "kernel": kernels}[way]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            killed += 1
    return killed, kernels if way == "program" else []


# --- what is done -------------------------------------------------------------------------


def killed_at_moments(site, n, *, rng, say=print):
    """Kill whole runs at drawn moments and run them again.

    Returns
    -------
    dict
        ``kills``, ``kills_equal``, ``mlflow_unfinished``, ``kernel_outlived`` (the longest that a kernel which was left
        alone went on for, s).
    """
    reference, _, whole = site.reference(site.steps)
    say(f"reference: {whole:.0f} s")
    counts, missed = {"kills": 0, "kills_equal": 0, "mlflow_unfinished": 0, "kernel_outlived": 0.0}, 0
    while counts["kills"] < n:
        moment, way = rng.uniform(0, whole), WAYS[counts["kills"] % len(WAYS)]
        site.put()
        program = site.start(site.steps)
        try:
            ended_by_itself(site, program.wait(moment))
            whole = moment  # the machine has less to do than before, and the run had ended: another moment
            continue
        except subprocess.TimeoutExpired:
            killed, orphans = kill(program, way)
        ended = program.wait(PATIENCE)
        if not killed:
            ended_by_itself(site, ended)
        if ended == 0 or not killed:  # it had ended by itself, or had no kernel any more: another moment
            psutil.wait_procs(orphans, timeout=PATIENCE)
            missed += 1
            if missed > MISSES:
                raise SystemExit(f"{missed} times in a row nothing was there to be killed")
            continue
        missed = 0
        said = [] if ended == (5 if way == "kernel" else -signal.SIGKILL) else [f"status {ended} when killed"]
        wrong, seconds, outlived = site.finish(site.steps, orphans)
        more, unfinished = differences(reference, site.work)
        said += wrong + more
        counts["kills"] += 1
        counts["kills_equal"] += not said
        counts["mlflow_unfinished"] += unfinished
        counts["kernel_outlived"] = round(max(counts["kernel_outlived"], outlived), 2)
        say(f"  {way} killed at {moment:5.1f} s, again in {seconds:5.1f} s: {'; '.join(said[:6]) or 'equal'}")
    return counts


def ended_by_itself(site, status):
    """Fail where a run that nothing killed did: that is a finding, not another moment to draw."""
    if status:
        raise SystemExit(f"a run that nobody killed ended with {status}: {site.log.read_text()[-400:].strip()}")


def killed_at_writes(site, *, choose, say=print):
    """Kill each step at its writes and run it again.

    Parameters
    ----------
    site : Site
    choose : callable
        Number of writes of a step → which of them, from 1.

    Returns
    -------
    dict
        ``writes`` of all steps together, ``writes_tried``, ``writes_equal``.
    """
    before, rows = None, []
    for step in site.steps:
        reference, n, seconds = site.reference([step], before)
        points = choose(n)
        say(f"{step}: {n} writes in {seconds:.0f} s, {len(points)} of them tried")
        equal = 0
        for point in points:
            site.put(before)
            ended = site.start([step], at=point).wait(PATIENCE)
            site.kill_all()
            at = site.counter.with_name("counter.at")
            where = at.read_text() if at.is_file() else "nowhere"
            at.unlink(missing_ok=True)
            # A run that nothing killed would be equal, too.
            said = [] if ended == -signal.SIGKILL and where != "nowhere" else [f"not killed: status {ended}"]
            said += site.finish([step])[0]
            said += differences(reference, site.work)[0]
            equal += not said
            where = where.replace(f"{site.work}/", "")
            say(f"  {step} at {point:3d} ({where}): {'; '.join(said[:6]) or 'equal'}")
        rows.append((step, n, len(points), equal))
        before = reference
    say(f"\n{'step':22s} writes  tried  equal")
    for step, n, tried, equal in rows:
        say(f"{step:22s} {n:6d} {tried:6d} {equal:6d}")
    return {name: sum(row[k] for row in rows) for k, name in ((1, "writes"), (2, "writes_tried"), (3, "writes_equal"))}


def main():
    """Kill, run again, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one kill and three writes of notebook 04 alone (2 min)")
    parser.add_argument("--kills", type=int, default=20, help="of whole runs, at drawn moments (20)")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="each K-th write; 0: none")
    parser.add_argument("--steps", default="00-06", help="as of bold-audio run (00-06)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and writes (0)")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.steps = 1, "04"
    rng, begun, every = random.Random(options.seed), time.perf_counter(), options.every

    def choose(n):
        return sorted(rng.sample(range(1, n + 1), 3)) if options.quick else range(rng.randint(1, every), n + 1, every)

    print("A SIMULATED subject", flush=True)
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        site = Site(folder, options.steps)
        made = {"quick": options.quick, "simulated": True}
        try:
            if options.kills:
                made |= killed_at_moments(site, options.kills, rng=rng)
            if every:
                made |= killed_at_writes(site, choose=choose)
        finally:
            site.kill_all()
    if made.get("kills"):
        low, high = common.interval(made["kills_equal"], made["kills"])
        print(f"kills that ended equal: {made['kills_equal']} of {made['kills']} ({low:.2f} to {high:.2f})")
    print(json.dumps(made | {"seconds": round(time.perf_counter() - begun)}))
    if (made.get("kills"), made.get("writes_tried")) != (made.get("kills_equal"), made.get("writes_equal")):
        sys.exit("a run that was killed did not end as one that was not: see above")


if __name__ == "__main__":
    main()
