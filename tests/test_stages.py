"""dvc.yaml against what the notebooks really read and write: every stage is run by DVC with its opened files noted."""

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from bold_audio.steps import STEPS

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
# Notes what a process opens, and what it renames to, below $SEEN_ROOT. DVC itself hashes everything and is left out.
# Results that `bold-audio run` itself reads are for the index and the model card, which are outs of none: left out too.
WATCH = """
import os, sys
_root, _notes = os.environ.get("SEEN_ROOT"), os.environ.get("SEEN_NOTES")
def _note(event, given):
    if event == "open" and isinstance(given[0], (str, bytes)):
        how = "w" if (given[1] and set(given[1]) & set("wax+")) or (given[2] or 0) & (os.O_WRONLY | os.O_RDWR) else "r"
        path = given[0]
    elif event == "os.rename":
        how, path = "w", given[1]
    else:
        return
    path = os.path.abspath(os.fsdecode(path))
    program = os.path.basename(sys.argv[0] if hasattr(sys, "argv") else "")
    results = tuple(os.path.join(_root, folder) for folder in ("outputs", "triton_models"))
    if program == "bold-audio" and how == "r" and path.startswith(results):
        return
    if path.startswith(_root + os.sep) and program != "dvc":
        at = os.open(_notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(at, (how + " " + os.path.relpath(path, _root) + "\\n").encode())
        os.close(at)
if _root and _notes:
    sys.addaudithook(_note)
"""
# What several stages write, so that it can be an out of none; and locks.
SHARED = ("provenance.json", "done.json", "status.json", "dataset_description.json", ".bidsignore", "index.html")
SHARED += ("report/model_card.html", "report/plotly.min.js")


class Stages:
    """A project folder of its own whose stages DVC runs one after the other."""

    def __init__(self, root, sim_dir):
        self.root, self.seen = root, {}
        for part in ("params", "notebooks", "bold_audio"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
        for name in ("dvc.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        shutil.copytree(sim_dir, root / "data/sim")
        own = root / "params/sim.yaml"
        own.write_text(own.read_text() + "max_epochs: 2\nmlp_delays: [5, 6]\n")
        self.watch = root.with_name("watch")  # noting what lies here would have no end
        self.watch.mkdir()
        (self.watch / "sitecustomize.py").write_text(WATCH)
        self.dvc("init", "--no-scm", "-q")
        self.dvc("config", "core.analytics", "false")
        self.stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
        self.dvc("commit", "-f", "-q", "simulate")  # the small subject in place of the full-size one

    def dvc(self, *arguments, step=None):
        environment = {k: v for k, v in os.environ.items() if k != "BOLD_AUDIO_ROOT"} | {"DVC_NO_ANALYTICS": "1"}
        environment["PATH"] = f"{SCRIPTS}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = f"{self.watch}{os.pathsep}{self.root}"
        if step is not None:
            environment |= {"SEEN_ROOT": str(self.root), "SEEN_NOTES": str(self.notes(step))}
        command = [str(SCRIPTS / "dvc"), *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-1500:]
        return done.stdout

    def notes(self, step):
        return self.watch / f"{step}.txt"

    def files(self):
        return {p.relative_to(self.root).as_posix() for p in self.root.glob("*/**/*") if p.is_file()}

    def run(self, step):
        """Run a stage alone; note the files read, written and left."""
        before = self.files()
        self.dvc("repro", "--single-item", f"{step}@person0", step=step)
        lines = [line.split(" ", 1) for line in self.notes(step).read_text().splitlines()]
        read = {path for how, path in lines if how == "r"}
        wrote = {path for how, path in lines if how == "w"}
        self.seen[step] = {"read": read, "wrote": wrote, "new": self.files() - before}

    def listed(self, step, kind):
        """Paths of a stage's deps or outs, with the person filled in."""
        (person,) = yaml.safe_load((self.root / "dvc.yaml").read_text())["vars"][0]["people"]
        found = []
        for entry in self.stages[step][kind]:
            path = entry if isinstance(entry, str) else next(iter(entry))
            for name, value in person.items():
                path = path.replace(f"${{item.person.{name}}}", value)
            found.append(path)
        return found


@pytest.fixture(scope="module")
def stages(sim_dir, tmp_path_factory):
    made = Stages(tmp_path_factory.mktemp("stages") / "project", sim_dir)
    for step in STEPS:
        made.run(step)
    return made


def under(path, listed):
    return any(path == one or path.startswith(one + "/") for one in listed)


def private(path):
    """Whether a path is a result that belongs to one stage: not shared, no cache, no lock, no trace of a run."""
    name = Path(path).name
    kept = path.startswith(("outputs/", "triton_models/"))
    return kept and not (path.endswith(SHARED) or "cache" in path or name.startswith(".") or "mlflow" in path)


@pytest.mark.parametrize("step", STEPS)
def test_what_a_stage_leaves_is_what_it_lists(stages, step):
    outs = stages.listed(step, "outs")
    left = {path for path in stages.seen[step]["new"] if private(path)}
    assert {path for path in left if not under(path, outs)} == set()
    assert [out for out in outs if not any(under(path, [out]) for path in left)] == []


@pytest.mark.parametrize("step", STEPS)
def test_what_a_stage_reads_of_others_is_what_it_lists(stages, step):
    deps, outs = stages.listed(step, "deps"), stages.listed(step, "outs")
    seen = stages.seen[step]
    results = {p for p in seen["read"] if private(p) and (stages.root / p).is_file() and p not in seen["wrote"]}
    data = {p for p in seen["read"] if p.startswith("data/") and (stages.root / p).is_file()}
    wanted = {p for p in results | data if not under(p, outs)}
    # The dataset's own description and its table of people are of no stage's data.
    about = {p for p in wanted if p.count("/") == 2 and p.startswith("data/sim/")}
    assert {path for path in wanted - about if not under(path, deps)} == set()


@pytest.mark.parametrize("step", STEPS)
def test_what_a_stage_lists_is_read(stages, step):
    seen = stages.seen[step]["read"]
    assert [dep for dep in stages.listed(step, "deps") if not any(under(path, [dep]) for path in seen)] == []


@pytest.mark.parametrize("step", STEPS)
def test_a_stage_depends_on_its_parameters_and_nothing_else_in_params(stages, step):
    read = {p for p in stages.seen[step]["read"] if p.startswith("params/")}
    assert read == set(stages.listed(step, "params"))


def test_nothing_is_stale_after_a_run_and_a_parameter_makes_every_notebook_stale(stages):
    stages.dvc("repro")  # nothing to do, or it would take minutes and write
    assert json.loads(stages.dvc("status", "--json")) == {}
    common = stages.root / "params/common.yaml"
    kept = common.read_text()
    common.write_text(kept.replace("max_epochs: 60", "max_epochs: 61"))
    try:
        assert set(json.loads(stages.dvc("status", "--json"))) == {f"{step}@person0" for step in STEPS}
    finally:
        common.write_text(kept)


def test_a_changed_sweep_makes_stale_what_comes_after_it_only(stages):
    best = stages.root / "outputs/sim/sub-sim/dt_regions.tsv"
    kept = best.read_text()
    best.write_text(kept + "\n")
    try:
        stale = {name.split("@")[0] for name in json.loads(stages.dvc("status", "--json"))}
        assert stale == {"03_dt_sweep", "04_train", "05_export", "06_inference"}
    finally:
        best.write_text(kept)


def test_the_graph_goes_from_the_scan_to_the_answer(stages):
    dot = stages.dvc("dag", "--dot")
    assert '"simulate" -> "00_data_download@person0"' in dot
    assert '"05_export@person0" -> "06_inference@person0"' in dot
