"""Thousands of broken and hostile inputs: does each end in what the whole input gives, or in one plain sentence?

    python benchmarks/fuzz.py [--quick] [--cases 2600] [--seed 0] [--only KIND] [--again 'KIND/HARM/SEED']

Scans, sounds, models, checkpoints, parameters, tables, trees of files and names, as whole files with harm done to them
(``strangers.py``, ``strange_text.py``), are given to the readers that the package uses. Each case runs in a process
with a deadline and a limit of memory. It passes where the reader returns what the whole input gives, where it says in
one line what is wrong, or where nobody could tell: the harm leaves a legal file (a header, plain text, a format without
a checksum, a model signed anew), and only impossible values are looked for. How many cases are of this kind is printed:
in all the others another result would be noticed. All else is a finding, and ends the program with an error: any other
exception, a crash, a hang, gigabytes asked for, another result, words on stderr, a file written outside the outputs, a
process started, code from the input run. ``--count`` runs no case and prints how many there are. Ends with one line of
JSON.
"""

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from strange_text import TEXTS
from strangers import ITS_WORD, MODELS, ROOT, SCANS, SOUNDS

KINDS = SCANS | SOUNDS | MODELS | TEXTS
DEADLINE = 60  # s for one case; on an idle machine most take hundredths
MEMORY = 2**30  # bytes that a case may ask for on top of what the libraries hold
PASSES = ("same", "refused", "undetectable", "accepted")
LONGEST = 1000  # characters of a message
FAR = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


# --- the cases ----------------------------------------------------------------------------


def all_cases(n, seed, kinds=tuple(KINDS)):
    """Cases, as evenly over the kinds and their harms as ``n`` allows: list of dict."""
    cases = []
    for k, kind in enumerate(kinds):
        harms = list(KINDS[kind].harms)
        wanted = [len(part) for part in np.array_split(np.arange(n // len(kinds) + (k < n % len(kinds))), len(harms))]
        for harm, count in zip(harms, wanted, strict=True):
            texts = made_texts(KINDS[kind].texts[harm](), count, seed) if harm in KINDS[kind].texts else [None] * count
            cases += [{"kind": kind, "harm": harm, "seed": seed + i, "text": text} for i, text in enumerate(texts)]
    return cases


def noticed(case):
    """Whether another result would be a finding after this harm, and not as legal as the right one."""
    return case["harm"] not in KINDS[case["kind"]].undetectable


def made_texts(strategy, count, seed):
    """Examples of a hypothesis strategy, the same for the same seed."""
    import hypothesis

    made = []
    checks = list(hypothesis.HealthCheck)
    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=checks,
    )

    def keep(text):
        made.append(text)

    if count:
        settings(hypothesis.seed(seed)(hypothesis.given(strategy)(keep)))()
    return (made * count)[:count]  # a strategy of few values gives each of them again


# --- in the process that reads ------------------------------------------------------------


class Watch:
    """Notices what a reader does outside the folders it may write to."""

    def __init__(self):
        self.allowed, self.seen = (), None
        sys.addaudithook(self)

    def __call__(self, event, args):
        """Python's audit hook."""
        if self.seen is None:
            return
        if event == "open":
            path, _, flags = args
            if not isinstance(path, int) and flags & WRITING:
                self.changed(event, path)
        elif event in CHANGES:
            two = event in ("os.rename", "os.link", "os.symlink")
            within = args[2:] if two and event != "os.symlink" else args[-1:]  # folders that are open, or -1
            for k, path in enumerate(args[: 1 + two]):
                self.changed(event, path, within[min(k, len(within) - 1)])
        elif event in FAR:
            self.seen.append(f"{event} {args!r}"[:200])

    def changed(self, event, path, within=-1):
        """Keep a change that is not below the folders allowed."""
        path = f"/proc/self/fd/{path}" if isinstance(path, int) else os.fsdecode(path)
        if event != "os.truncate" and within not in (None, -1):
            path = os.path.join(os.readlink(f"/proc/self/fd/{within}"), path)
        path = os.path.realpath(path)
        if path != os.devnull and not any(path == one or path.startswith(f"{one}{os.sep}") for one in self.allowed):
            self.seen.append(f"{event} {path!r}"[:200])

    @contextlib.contextmanager
    def over(self, folders):
        """Watch; yields the list of what was seen."""
        self.allowed, self.seen = tuple(os.path.realpath(one) for one in folders), []
        seen = self.seen
        try:
            yield seen
        finally:
            self.seen = None


def same(one, other):
    """Whether two results hold the same, bit for bit."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def asked_for_too_much(error):
    """Whether memory ran out on the way to an error, even where it was made into another."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def judge(kind, case, folder, whole, watch):
    """Do the harm, read, and name the outcome: (outcome, detail)."""
    from bold_audio.files import BoldAudioError

    shutil.copytree(whole["folder"], folder, symlinks=True)
    (folder / "outputs").mkdir(exist_ok=True)
    (folder / "tmp").mkdir()
    name = list(KINDS).index(case["kind"]), list(kind.harms).index(case["harm"])
    given = kind.harms[case["harm"]](np.random.default_rng([case["seed"], *name]), folder, case["text"])
    before = tree(folder)
    with watch.over([folder / "outputs", folder / "tmp"]) as seen:
        try:
            found, refused = kind.read(folder, given), None
        except BoldAudioError as error:
            refused = error
        except BaseException as error:
            import traceback

            if asked_for_too_much(error):
                return "memory", f"{type(error).__name__}: {error}"[:300]
            last = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(one.filename).name}:{one.lineno}" for one in last if "bold_audio" in one.filename]
            return "traceback", f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(ours[::-1][:3])}"
    if seen or tree(folder) != before or (folder / "canary").exists():
        return "written outside", "; ".join(seen) or "files changed"
    if refused is not None:
        if asked_for_too_much(refused):
            return "memory", str(refused)[:300]
        said = str(refused)
        plain = said == " ".join(said.split()) and said.isprintable() and 0 < len(said) <= LONGEST
        return ("refused", said[:300]) if plain else ("message", ascii(said[:300]))
    if same(found, whole["found"]):
        return "same", ""
    if noticed(case):
        changed = [key for key in found if not same(found[key], whole["found"].get(key))] if found else ""
        return "another result", f"differs in {changed}"
    if kind.plain and (wrong := kind.plain(found)):
        return "another result", f"impossible: {wrong}"
    reason = kind.undetectable[case["harm"]]
    return ("accepted" if reason == ITS_WORD else "undetectable"), reason


def tree(folder):
    """What lies in a case's folder besides outputs: name → size and time."""
    found = {}
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [one for one in folders if one not in ("outputs", "tmp")]
        for name in (*folders, *names):
            status = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def serve(home):
    """Read cases as lines of JSON, answer each with a line; the process that `Worker` starts."""
    answers = os.fdopen(os.dup(1), "w")
    heard = (home / f"words-{os.getpid()}").open("w+b")
    os.dup2(heard.fileno(), 1)
    os.dup2(heard.fileno(), 2)
    watch, whole = Watch(), {}
    for n, line in enumerate(sys.stdin):
        case = json.loads(line)
        kind = KINDS[case["kind"]]
        if case["kind"] not in whole:
            whole[case["kind"]] = {"folder": ready(kind, home / case["kind"].replace(" ", "_"))}
            whole[case["kind"]]["found"] = read_whole_input(kind, whole[case["kind"]]["folder"], home / "first")
        limit_memory(MEMORY)
        folder = home / f"case-{os.getpid()}-{n}"
        tempfile.tempdir = str(folder / "tmp")
        heard.seek(0)
        heard.truncate()
        try:
            outcome, detail = judge(kind, case, folder, whole[case["kind"]], watch)
        except BaseException as error:
            outcome, detail = "benchmark", repr(error)[:300]
        sys.stderr.flush()
        sys.stdout.flush()
        limit_memory(None)
        heard.seek(0)
        if outcome in PASSES and (said := heard.read().decode(errors="replace").strip()):
            outcome, detail = "words", ascii(said[-300:])
        shutil.rmtree(folder, ignore_errors=True)
        answers.write(json.dumps({"outcome": outcome, "detail": detail}) + "\n")
        answers.flush()


def ready(kind, folder):
    """The folder of a kind's whole files, made once."""
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        kind.make(part)
        part.rename(folder)
    return folder


def read_whole_input(kind, whole, folder):
    """What the whole files give, from a copy: reading may leave outputs."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    return kind.read(folder, None)


def limit_memory(more):
    """Let this process ask for so many bytes more than it has; None: for all."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (hard if more is None else held + more, hard))


# --- in the process that asks -------------------------------------------------------------


class Worker:
    """A process that reads cases one by one, started again where one kills it."""

    def __init__(self, home):
        self.home, self.process = Path(home), None

    def ask(self, case):
        """The outcome of a case and its detail."""
        if self.process is None:
            self._start()
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        there, _, _ = select.select([self.process.stdout], [], [], DEADLINE + self.patience)
        self.patience = 0
        if not there:
            self.stop()
            return "hang", f"no answer after {DEADLINE} s"
        line = self.process.stdout.readline()
        if line:
            answer = json.loads(line)
            return answer["outcome"], answer["detail"]
        status = self.process.wait()
        self.process = None
        return "crash", f"ended with {status}"

    def _start(self):
        surroundings = os.environ | {
            "BOLD_AUDIO_ROOT": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "always::UserWarning,always::RuntimeWarning",  # each time, not only the first
        }  # fmt: skip
        surroundings.pop("YANDEX_WEBDAV_TOKEN", None)
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(self.home)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings, cwd=self.home
        )
        self.patience = 120  # s more, for the libraries to be loaded and the whole files made

    def stop(self):
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_cases(cases, home, *, say=lambda text: None):
    """Run cases one after the other.

    Returns
    -------
    list of dict
        The cases, each with ``outcome`` and ``detail``.
    """
    worker, done = Worker(home), []
    try:
        for case in cases:
            outcome, detail = worker.ask(case)
            done.append(case | {"outcome": outcome, "detail": detail})
            if outcome not in PASSES:
                say(f"{outcome}: {case['kind']}/{case['harm']}/{case['seed']}: {detail}")
    finally:
        worker.stop()
    return done


def main():
    """Run all cases, print what became of them per kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 cases (a minute)")
    parser.add_argument("--cases", type=int, help="default: 2600")
    parser.add_argument("--seed", type=int, default=0, help="of the harm (0)")
    parser.add_argument("--only", choices=list(KINDS), action="append", help="cases of this kind")
    parser.add_argument("--again", metavar="KIND/HARM/SEED", help="one case")
    parser.add_argument("--count", action="store_true", help="run none, say in how many another result is noticed")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        return serve(options.serve)
    cases = all_cases(options.cases or (300 if options.quick else 2600), options.seed, options.only or tuple(KINDS))
    if options.again:
        kind, harm, seed = options.again.rsplit("/", 2)
        cases = [one for one in cases if (one["kind"], one["harm"], one["seed"]) == (kind, harm, int(seed))]
    told = {"cases": len(cases), "another_result_noticed": sum(map(noticed, cases))}
    print(f"in {told['another_result_noticed']} of {len(cases)} cases another result is noticed", flush=True)
    if options.count:
        print(json.dumps(told))
        return None
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        done = run_cases(cases, home, say=lambda text: print(text, flush=True))
    seconds = time.perf_counter() - started
    for kind in KINDS:
        counts = Counter(one["outcome"] for one in done if one["kind"] == kind)
        if counts:
            said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
            print(f"{kind:24} {sum(counts.values()):5} cases: {said}")
    for kind, harm, reason in sorted(
        {(one["kind"], one["harm"], one["detail"]) for one in done if one["outcome"] == "undetectable"}
    ):
        print(f"undetectable: {kind}, {harm}: {reason}")
    if options.again:
        print(*((one["outcome"], one["detail"], one["text"]) for one in done), sep="\n")
    outcomes = Counter(one["outcome"] for one in done)
    findings = sum(count for outcome, count in outcomes.items() if outcome not in PASSES)
    kinds = Counter(one["kind"] for one in done)
    told |= {"seed": options.seed, "seconds": round(seconds), "kinds": kinds}
    print(json.dumps(told | {name: outcomes[name] for name in PASSES} | outcomes | {"findings": findings}))
    if findings:
        sys.exit(f"{findings} findings")
    return None


if __name__ == "__main__":
    main()
