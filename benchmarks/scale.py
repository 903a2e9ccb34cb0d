"""Many people: how fast, how much memory, disk and network, is anybody lost or done twice, and where does it break?

    python benchmarks/scale.py [--quick] [--only throughput,people,engine,whole,group] [--folder FOLDER]
                               [--earlier FILE]

Everybody is SIMULATED. Five parts, each of which can be run alone:

- ``throughput``: 6 people at an eighth of the full size (641 volumes of 20 × 32 × 32) through all steps, by
  ``bold-audio run --subjects all`` with ``--workers 1`` and then 2, each into an empty folder of the same name, so that
  all files of both can be compared as ``crash.py`` compares them. Asks for an idle machine of two cores.
- ``people``: 1,000 tiny people, each with a scan of its own, through notebook 00 with ``--workers 2``. A startup file
  of IPython, which the product knows nothing of, adds a line to a log in every kernel that executes a person's
  notebook: who has no line is lost, who has two is doubled; ``done.json`` and the program's own lines are counted, too.
  ``overhead_s_per_task`` is wall time × workers / people less the step's own seconds (median of ``done.json``): start
  of the person's program, its imports, looking at scan and sound, report, and what Dask takes.
- ``engine``: up to 10,000 tasks through a Dask scheduler and two workers in processes of their own, whose Python is
  ``/bin/true``: what handing out, fetching and following cost without any work. Bytes are what all three write into
  their connections.
- ``whole``: one person of full size through all steps, alone, with one thread: seconds, peak memory, disk.
- ``group``: notebook 07, executed by papermill, over 10,000 folders: those of ``whole`` with other numbers and other
  maps, in the formats of the product; the scans of 30 of them are there for the ceiling. Once, which also makes each
  person's map in the template, and again: the second is what a limit is set on.

From these a table for 30, 1,000 and 10,000 people of full size is computed. ``--quick`` does each part in miniature
(two people, 6, 200 tasks, 50 folders). ``--folder`` keeps what was made and takes what is there. ``--earlier`` takes
parts that are not run now from the last lines of earlier runs. Linux alone. Ends with one line of JSON; exit status 1
where somebody is lost or doubled, results differ, or a limit is passed.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
from common import SCRIPTS, words_of
from crash import GIVEN, SMALL
from distributed import Client
from output_trees import differences
from resident import resident, share_of_memory

from bold_audio import cohort, machine
from bold_audio.files import project_root, read_json
from bold_audio.group import MODELS
from bold_audio.group_maps import MADE_FROM
from bold_audio.params import load_params
from bold_audio.simulate import simulate_subject
from bold_audio.steps import STEPS

PARTS = ("whole", "engine", "group", "people", "throughput")  # in the order in which they run
FULL = {"shape": (40, 64, 64), "n_volumes": 641}
EIGHTH = FULL | {"shape": (20, 32, 32)}
TINY = {"shape": (14, 16, 16), "n_volumes": 130}
TINY_GIVEN = GIVEN | {"gap": 4, "skip_initial": 2}
LEAST_THROUGHPUT = 1.7  # of two workers over one, on two cores
MOST_SECONDS, MOST_MEMORY = {"people": 1800, "group_again": 300}, 4e9
NUMBERS = {"inference_regions": "gain", "out_of_fold": "r_median", "dt_regions": "delay"}  # what is changed, by table
COMPARED = 30  # people whose scans lie in the data for the ceiling
COUNTER = '''
"""Adds a line to a log in each kernel that executes a person's notebook."""

import os


def count(result):
    if result.info.raw_cell.startswith("# Parameters"):
        with open(os.environ["SCALE_LOG"], "a") as log:
            log.write(get_ipython().user_ns["subject"] + "\\n")


get_ipython().events.register("post_run_cell", count)
'''
PRELOAD = '''
"""Keeps how many bytes this process has written into Dask's connections; a worker's Python is one that does nothing."""

import os
import sys

from distributed.comm import tcp

write, total = getattr(tcp.TCP.write, "plain", tcp.TCP.write), 0  # Dask reads this file twice
kept = os.open(os.path.join(os.environ["SCALE_BYTES"], str(os.getpid())), os.O_CREAT | os.O_WRONLY)


async def counted(self, *args, **options):
    global total
    n = await write(self, *args, **options)
    total += n
    os.pwrite(kept, f"{total:20d}".encode(), 0)
    return n


counted.plain, tcp.TCP.write = write, counted


def dask_setup(server):
    if type(server).__name__ == "Worker":
        sys.executable = "/bin/true"
'''


# --- what is watched ----------------------------------------------------------------------


class Watch:
    """Peak memory of a program and of what it starts, by kind and together, while the block lasts.

    Forks share what they have not changed: by kind it counts for each, together once.

    Parameters
    ----------
    pid : int
    """

    # by name and command line; a fork has the name alone
    KINDS = (("ipykernel_launc", "kernel"), ("bold_audio |", "person's program"), ("spawn_main", "worker"))

    def __init__(self, pid):
        self.program, self.peaks, self.over = psutil.Process(pid), Counter(), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _look(self):
        while not self.over.wait(0.5):
            with contextlib.suppress(psutil.Error, OSError):
                self._note("program", self.program.pid)
                together = share_of_memory(self.program)
                for one in self.program.children(recursive=True):
                    with contextlib.suppress(psutil.Error, OSError):
                        words = f"{one.name()} | {' '.join(one.cmdline())}"
                        self._note(next((kind for part, kind in self.KINDS if part in words), "other"), one.pid)
                        together += share_of_memory(one)
                self.peaks["together"] = max(self.peaks["together"], together)

    def _note(self, kind, pid):
        self.peaks[kind] = max(self.peaks[kind], resident("VmHWM", pid))


def run(command, *, watched=True, **options):
    """Run a command to its end: its lines, its seconds and the machine's of processors, and peaks of memory by kind.

    Watching takes time of a processor, so where two runs are compared nobody watches.

    Raises
    ------
    SystemExit
        If it fails.
    """
    begun, before, root = time.perf_counter(), psutil.cpu_times(), project_root()
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, **options)
    watch = Watch(program.pid)
    with program, watch if watched else contextlib.nullcontext():
        out, _ = program.communicate()
    if program.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:300]} ended with {program.returncode}: {out[-2000:]}")
    spent = psutil.cpu_times()
    processors = sum(getattr(spent, name) - getattr(before, name) for name in ("user", "nice", "system"))
    return out.splitlines(), (time.perf_counter() - begun, processors), dict(watch.peaks)


def folders(root):
    """Parameters that say where a run reads and writes."""
    made = {"data_dir": root / "data", "outputs_dir": root / "work/outputs", "models_dir": root / "work/models"}
    return {name: str(path) for name, path in made.items()}


def mb(n_bytes):
    """Bytes in megabytes."""
    return round(n_bytes / 1e6, 1)


def disk(path):
    """Bytes of all files below a folder."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def simulate_people(root, labels, size):
    """Simulate the people that are missing, two at a time."""
    missing = [label for label in labels if not list(root.glob(f"sub-{label}/*/func/*_bold.nii.gz"))]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(functools.partial(_simulate, root, size), missing, range(len(missing)), chunksize=4))


def _simulate(root, size, label, seed):
    simulate_subject(root, subject=label, seed=seed, **size)


# --- the parts ----------------------------------------------------------------------------


def throughput(root, *, n, size, given, steps):
    """The same people with one worker and with two: seconds of both, and how their files differ."""
    simulate_people(root / "data", [f"{k:02}" for k in range(n)], size)
    seconds = {}
    command = [SCRIPTS / "bold-audio", "run", "--subjects", "all", "--dataset", "sim", "--steps", steps]
    for workers in (1, 2):
        shutil.rmtree(root / "work", ignore_errors=True)
        shutil.rmtree(root / f"workers-{workers}", ignore_errors=True)
        words = ["--workers", str(workers), *words_of(folders(root) | given)]
        _, (seconds[workers], processors), _ = run([*command, *words], watched=False)
        each = f"{processors / n:.0f} s of a processor each, all that this machine did"
        print(f"{n} people, {workers} workers: {seconds[workers]:.0f} s; {each}")
        (root / "work").rename(root / f"workers-{workers}")
    said, unfinished = differences(root / "workers-1", root / "workers-2")
    print(f"files that differ: {len(said)}; {'; '.join(said[:8])}")
    return {
        "throughput_2_over_1": round(seconds[1] / seconds[2], 2),
        "seconds_1": round(seconds[1]),
        "seconds_2": round(seconds[2]),
        "differing_files": len(said) + unfinished,
    }


def _in_mb(peaks):
    return ", ".join(f"{kind} {mb(peak):.0f} MB" for kind, peak in sorted(peaks.items()))


def people(root, *, n, step):
    """Tiny people through one step with two workers: who was lost or doubled, and what each costs."""
    labels = [f"{k:05}" for k in range(n)]
    begun = time.perf_counter()
    simulate_people(root / "data", labels, TINY)
    print(f"{n} tiny people are there after {time.perf_counter() - begun:.0f} s")
    startup, log = root / "ipython/profile_default/startup", root / "kernels.log"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "count.py").write_text(COUNTER)
    log.write_text("")
    shutil.rmtree(root / "work", ignore_errors=True)
    environment = os.environ | {"IPYTHONDIR": str(root / "ipython"), "SCALE_LOG": str(log)}
    words = ["run", "--subjects", "all", "--dataset", "sim", "--steps", step[:2], "--workers", "2"]
    command = [SCRIPTS / "bold-audio", *words, *words_of(folders(root) | TINY_GIVEN)]
    lines, (seconds, processors), peaks = run(command, env=environment)
    said = Counter(line.split(":")[0].removeprefix("sub-") for line in lines if ": done in" in line)
    executed, outputs = Counter(log.read_text().split()), root / "work/outputs/sim"
    entries = {label: read_json(outputs / f"sub-{label}/done.json", default={}).get(step, {}) for label in labels}
    done = {label: entry["seconds"] for label, entry in entries.items() if "finished" in entry}
    lost = [one for one in labels if not (one in done and executed[one] and said[one])]
    doubled = [one for one in labels if executed[one] > 1 or said[one] > 1]
    own, (again, _) = float(np.median(list(done.values()) or [np.nan])), run(command, env=environment)[1]
    overhead = seconds * 2 / n - own
    print(f"{n} people: {seconds:.0f} s, {2 * seconds / n:.2f} s of a worker each, of it the step {own:.2f} s")
    print(f"{processors / n:.2f} s of a processor each, all that this machine did, load {os.getloadavg()[0]:.1f}")
    print(f"{len(lost)} lost, {len(doubled)} doubled; again, when all is done: {again:.1f} s; {_in_mb(peaks)}")
    return {
        "people": n,
        "people_s": round(seconds),
        "people_again_s": round(again, 1),
        "lost": len(lost),
        "doubled": len(doubled),
        "step_s": round(own, 2),
        "processor_s_per_task": round(processors / n, 2),
        "overhead_s_per_task": round(overhead, 2),
        "memory_mb": {kind: mb(peak) for kind, peak in peaks.items()},
    }


def engine(root, *, sizes):
    """What Dask and following cost for so many tasks, without any work: list of dict."""
    return [_engine(root / f"engine-{n}", n) for n in sizes]


def _engine(root, n):
    counted = root / "bytes"
    counted.mkdir(parents=True, exist_ok=True)
    (root / "preload.py").write_text(PRELOAD)
    environment = os.environ | {"SCALE_BYTES": str(counted)}
    known = root / "scheduler.json"
    known.unlink(missing_ok=True)
    here = {"env": environment, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    scheduler = [SCRIPTS / "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    worker = [SCRIPTS / "dask", "worker", "--nthreads", "1", "--no-dashboard", "--no-nanny", "--scheduler-file", known]
    preload = ["--preload", root / "preload.py"]
    with contextlib.ExitStack() as stack:
        started = []
        for command in ([*scheduler, "--scheduler-file", known], worker, worker):
            started.append(subprocess.Popen([*command, *preload], **here))
            stack.callback(started[-1].wait)
            stack.callback(started[-1].kill)
            while not known.is_file():
                if started[0].poll() is not None:
                    raise SystemExit(f"the scheduler ended with {started[0].returncode} as it started")
                time.sleep(0.1)
        watches = [stack.enter_context(Watch(one.pid)) for one in started]
        paths = [str(Path(__file__).parent), str(root), os.environ.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        code = "import preload, scale, sys; scale.hand_out(*sys.argv[1:])"
        lines, _, peaks = run([sys.executable, "-c", code, read_json(known)["address"], str(n)], env=environment)
    sent = sum(int(path.read_text()) for path in counted.iterdir())
    seconds, made = json.loads(lines[-1])["seconds"], json.loads(lines[-1])["ended"]
    row = {"tasks": n, "ended": made, "seconds": round(seconds, 1), "bytes_per_task": round(sent / n)}
    row |= {"client_mb": mb(peaks["program"]), "scheduler_mb": mb(watches[0].peaks["program"])}
    row |= {"worker_mb": mb(max(one.peaks["program"] for one in watches[1:]))}
    print(f"engine alone: {row}")
    return row


def hand_out(address, n):
    """Give a scheduler so many tasks by the product's own functions, and follow them to their end."""
    first = load_params("00000", "sim")
    known = [first.model_copy(update={"subject": f"{k:05}"}) for k in range(int(n))]
    tasks = [cohort.make_task(params, "00-06", {"data_dir": "/data/people", "outputs_dir": "out"}) for params in known]
    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)
    begun, ended = time.perf_counter(), Counter()
    with cohort.open_executor(2, scheduler=address) as executor:
        for one in cohort.follow(tasks, executor, threads=1, root=project_root()):
            if one is not None:
                ended[one.subject] += one.status == 0
    made = sum(count == 1 for count in ended.values())
    print(json.dumps({"seconds": time.perf_counter() - begun, "ended": made}))


def whole(root, *, size, given):
    """One person through all steps, alone, with one thread: seconds by step, peak memory, disk by folder."""
    simulate_people(root / "data", ["sim"], size)
    shutil.rmtree(root / "work", ignore_errors=True)
    environment = os.environ | dict.fromkeys(machine.THREADS, "1")
    words = ["run", "--subject", "sim", "--dataset", "sim", *words_of(folders(root) | given)]
    lines, (seconds, _), peaks = run([SCRIPTS / "bold-audio", *words], env=environment)
    print("\n".join(lines))
    outputs = root / "work/outputs"
    parts = {"outputs": outputs / "sim/sub-sim", "cache": outputs / "cache", "models": root / "work/models"}
    parts |= {"MLflow": outputs / "mlflow", "scan": root / "data/sub-sim"}
    held = {name: disk(path) for name, path in parts.items()}
    print(
        f"one person: {seconds:.0f} s, {_in_mb(peaks)}; disk: {', '.join(f'{k} {mb(v)} MB' for k, v in held.items())}"
    )
    return {
        "whole_s": round(seconds, 1),
        "whole_memory_mb": mb(peaks["together"]),
        "disk_mb": {name: mb(value) for name, value in held.items()},
    }


def group(root, like, *, n):
    """Notebook 07 over many folders made from one person's: seconds and peak memory, at first and again."""
    shutil.rmtree(root, ignore_errors=True)
    labels = [f"{k:05}" for k in range(n)]
    source = like / "work/outputs/sim/sub-sim"
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(functools.partial(copy_person, source, root / "work/outputs/sim"), labels, chunksize=20))
    for label in labels[:COMPARED]:
        link_as(like / "data/sub-sim", root / "data" / f"sub-{label}", label)
    for name in ("participants.tsv", "stimuli"):
        (root / "data" / name).symlink_to(like / "data" / name)
    given = [word for pair in folders(root).items() for word in ("-p", *pair)]
    command = [SCRIPTS / "papermill", "notebooks/07_group.ipynb", root / "07_group.ipynb", "--no-progress-bar", *given]
    command += ["--no-log-output", "-p", "subject", labels[0], "-p", "dataset", "sim"]
    made = {"folders": n}
    for name in ("group", "group_again"):
        _, (seconds, _), peaks = run(command, stderr=subprocess.DEVNULL)
        made |= {f"{name}_s": round(seconds, 1), f"{name}_memory_mb": mb(peaks["kernel"])}
        print(f"notebook 07 over {n} people: {seconds:.0f} s, {_in_mb(peaks)}")
    said = read_json(root / "work/outputs/sim/group/summary.json")
    print("\n".join(said["sentences"]))
    return made | {"group_people": len(said["people"]), "notebook_mb": mb((root / "07_group.ipynb").stat().st_size)}


def copy_person(source, folder, label):
    """A SIMULATED person's outputs under another name, with other numbers: what notebook 07 reads of them."""
    rng, made, known = np.random.default_rng(int(label)), folder / f"sub-{label}", read_person(source)
    made.mkdir(parents=True)
    steps = known["steps"]
    for entry in steps.values():
        entry["parameters"]["subject"] = label
        entry["input_md5"] = {name: f"{label} of {name}" for name in entry["input_md5"]}  # else they are one person
    (made / "provenance.json").write_text(json.dumps(steps, indent=1))
    for name, column in NUMBERS.items():
        table = known[name].copy()
        table[column] += rng.normal(0, 0.01, len(table)).round(6)
        table.to_csv(made / f"{name}.tsv", sep="\t", index=False, na_rep="n/a")
    for path in known["linked"]:
        os.link(path, made / path.name.replace("sub-sim", f"sub-{label}"))
    for name, (values, affine) in known["maps"].items():
        values = values + rng.normal(0, 0.01, values.shape).astype(np.float32)
        image = nib.Nifti1Image(np.clip(values, 0, 1) if "stat-p_" in name else values, affine)
        image.header["descrip"] = b"SIMULATED"
        image.set_sform(affine, code=1)
        nib.save(image, made / name.replace("sub-sim", f"sub-{label}"))


@functools.cache
def read_person(source):
    """What `copy_person` changes and links of a person's outputs."""
    linked = [*source.glob("status.json"), *source.glob("*_xfm.nii.gz"), *source.glob("*-quality_timeseries.tsv")]
    known = {"steps": read_json(source / "provenance.json"), "linked": linked}
    known |= {name: pd.read_csv(source / f"{name}.tsv", sep="\t") for name in NUMBERS}
    wanted = [(model, MADE_FROM.get(stat, stat)) for model, stat in MODELS.values()]
    paths = [path for model, stat in wanted for path in source.glob(f"*_desc-{model}_stat-{stat}_statmap.nii.gz")]
    images = {path.name: nib.load(path) for path in paths[:2]}  # the evidence, and the gain that is asked for
    return known | {"maps": {name: (one.get_fdata(dtype=np.float32), one.affine) for name, one in images.items()}}


def link_as(source, target, label):
    """A person's data once more under another name; no byte is copied."""
    for path in (one for one in source.rglob("*") if one.is_file()):
        made = target / path.relative_to(source).with_name(path.name.replace("sub-sim", f"sub-{label}"))
        made.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, made)


# --- what follows from them ---------------------------------------------------------------


def on_paper(found):
    """What cohorts of full size take, from what one person, the engine and tiny people took: DataFrame."""
    each = found["whole_s"] + found["overhead_s_per_task"]
    held = sum(found["disk_mb"][name] for name in ("outputs", "cache", "models", "MLflow"))
    engines = {row["tasks"]: row for row in found["engine"]}
    rows = []
    for n in (30, 1000, 10_000):
        engine = engines[min(engines, key=lambda size: abs(size - n))]
        row = {"people": n} | {f"hours, {w} workers": round(math.ceil(n / w) * each / 3600, 1) for w in (2, 16, 256)}
        row |= {"scans, GB": round(n * found["disk_mb"]["scan"] / 1e3, 1), "made, GB": round(n * held / 1e3, 1)}
        row |= {"scheduler, MB": engine["scheduler_mb"], "a worker with its person, GB": _worker_gb(found, engine)}
        rows.append(row | {"network, MB": mb(n * engine["bytes_per_task"])})
    return pd.DataFrame(rows)


def _worker_gb(found, engine):
    return round((found["whole_memory_mb"] + engine["worker_mb"]) / 1e3, 1)


def parts_of(text):
    """Parts as ``--only`` names them: a list."""
    parts = text.split(",")
    if wrong := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(PARTS)}")
    return parts


def main():
    """Run the parts that are asked for, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each part in miniature (4 min)")
    parser.add_argument("--only", type=parts_of, default=list(PARTS), metavar="PARTS", help="some parts, by commas")
    parser.add_argument("--folder", type=Path, help="keep what is made there (default: a temporary folder)")
    parser.add_argument("--earlier", type=Path, metavar="FILE", help="last lines of earlier runs, one below the other")
    options = parser.parse_args()
    quick, parts, found = options.quick, options.only, {}
    for line in options.earlier.read_text().splitlines() if options.earlier else ():
        found |= json.loads(line)
    found |= {"quick": quick, "simulated": True}
    print("Everybody is SIMULATED", flush=True)
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-"))
        root = Path(folder).resolve()
        small = {"size": SMALL, "given": GIVEN}
        if "whole" in parts:
            found |= whole(root / "whole", **(small if quick else {"size": FULL, "given": {}}))
        if "engine" in parts:
            found["engine"] = engine(root, sizes=(200,) if quick else (30, 1000, 10_000))
        if "group" in parts:
            found |= group(root / "group", root / "whole", n=50 if quick else 10_000)
        if "people" in parts:
            found |= people(root / "people", n=6 if quick else 1000, step=STEPS[0])
        if "throughput" in parts:
            cut = {"n": 6, "size": EIGHTH, "given": {}, "steps": "00-06"}
            cut |= small | {"n": 2, "steps": "00,02"} if quick else {}
            found |= throughput(root / "throughput", **cut)
    if {"whole_s", "engine", "overhead_s_per_task"} <= set(found):
        print(on_paper(found).to_string(index=False))
    print(json.dumps(found | {"load": round(os.getloadavg()[0], 1)}))
    if missed := failures(found):
        sys.exit(f"not as asked: {', '.join(missed)}")


def failures(found):
    """What does not hold of what was asked, in words; times count only where the machine is asked for them."""
    missed = [name for name in ("lost", "doubled", "differing_files") if found.get(name)]
    missed += ["tasks of the engine" for row in found.get("engine", []) if row["ended"] != row["tasks"]]
    missed += ["people of the group"] * (found.get("group_people", 0) != found.get("folders", 0))
    if found["quick"]:
        return missed
    missed += ["throughput_2_over_1"] * (found.get("throughput_2_over_1", 9) < LEAST_THROUGHPUT)
    missed += [f"seconds of {name}" for name, most in MOST_SECONDS.items() if found.get(f"{name}_s", 0) > most]
    return missed + ["memory of group"] * (found.get("group_memory_mb", 0) > mb(MOST_MEMORY))


if __name__ == "__main__":
    main()
