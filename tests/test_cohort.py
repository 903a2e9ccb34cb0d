"""Many subjects on Dask's workers: the same files as one after the other, whoever is killed."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import psutil
import pytest
from processes import below, free_port, wait_for

from bold_audio import cohort, cohort_table, commands, machine, run, warm
from bold_audio.files import TIME, DataError, ParameterError, write_json
from bold_audio.params import load_params
from bold_audio.simulate import simulate_subject

ROOT = Path(__file__).resolve().parents[1]
QUICK = {
    "delays": [4.0, 5.0], "mlp_delays": [5.0], "history_order": 2, "n_folds": 2, "gap": 4, "skip_initial": 2,
    "regions": {}, "audio_path": "stimuli/film.wav",
}  # fmt: skip
CELL = """
import time
from pathlib import Path
from bold_audio import workflow
from bold_audio.files import write_text
from bold_audio.params import notebook_params
params = notebook_params(globals())
if Path("slow").exists():
    Path(f"{subject}.asleep").touch()
    time.sleep(600)
opened = workflow.open_subject(params)
write_text(opened.path("sum.txt"), f"{float(opened.Y.sum()):.3f}\\n")
"""


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Three SIMULATED subjects of 130 volumes."""
    root = tmp_path_factory.mktemp("people") / "sim"
    for seed, subject in enumerate(("a", "b", "c")):
        simulate_subject(root, subject=subject, seed=seed, shape=(12, 12, 12), n_volumes=130)
    return root


@pytest.fixture
def project(people, tmp_path, monkeypatch):
    """Folder of a project whose first notebook is one cell, with the people's data."""
    for part in ("params", "notebooks"):
        (tmp_path / part).mkdir()
    shutil.copy(ROOT / "params/common.yaml", tmp_path / "params")
    shutil.copytree(people, tmp_path / "data")
    (tmp_path / "params/sim.yaml").write_text(json.dumps(QUICK | {"data_dir": "data", "data_note": "SIMULATED"}))
    names = "subject = 'a'\ndataset = 'sim'"
    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}},
        cells=[nbformat.v4.new_code_cell(names, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(CELL)],
    )
    nbformat.write(made, tmp_path / "notebooks/00_data_download.ipynb")
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(tmp_path))
    return tmp_path


def call(capfd, *words):
    with pytest.raises(SystemExit) as stopped:
        run.main(["run", "--dataset", "sim", "--steps", "00", *words])
    return stopped.value.code or 0, *capfd.readouterr()


def made(project, outputs="outputs"):
    """What the notebooks wrote, by subject."""
    return {path.parent.name: path.read_bytes() for path in (project / outputs).rglob("sum.txt")}


@pytest.mark.thorough
def test_workers_make_what_one_after_the_other_makes_and_only_what_is_missing(project, capfd):
    assert call(capfd, "--subjects", "all", "-p", "outputs_dir", "serial")[0] == 0
    status, out, err = call(capfd, "--subjects", "all", "--workers", "2")
    assert (status, err) == (0, "")
    assert made(project) == made(project, "serial") and len(made(project)) == 3
    assert out.splitlines()[-1] == "3 subjects done, 0 failed"
    assert sorted(line.split()[0] for line in out.splitlines()[:-1]) == ["sub-a:", "sub-b:", "sub-c:"]
    shutil.rmtree(project / "outputs/sim/sub-b")
    status, out, _ = call(capfd, "--subjects", "all", "--workers", "2")
    assert out.splitlines()[-1] == "1 subject done, 0 failed, 2 were done before" and "sub-b" in out
    assert call(capfd, "--subjects", "all", "--workers", "2")[1].startswith("everything is done")


@pytest.mark.slow
def test_subject_that_fails_stops_nobody_and_stands_in_the_table(project, capfd):
    scan = next(project.glob("data/sub-b/**/*_bold.nii.gz"))
    scan.write_bytes(scan.read_bytes()[:1000])
    status, out, _ = call(capfd, "--subjects", "all", "--workers", "2")
    assert status == 3 and sorted(made(project)) == ["sub-a", "sub-c"]
    assert "2 subjects done, 1 failed" in out and "sub-b (exit 3): bold_audio: sub-b: scan damaged" in out


@pytest.mark.thorough
def test_worker_that_is_killed_costs_time_and_nothing_else(project):
    (project / "slow").touch()
    words = ["run", "--dataset", "sim", "--steps", "00", "--subjects", "all", "--workers", "2"]
    command = [sys.executable, "-m", "bold_audio", *words]
    program = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    asleep = wait_for(lambda: list(project.glob("*.asleep")), program)
    one, whose = wait_for(lambda: program_with_lock(project, program.pid), program)
    killed = one.parent().parent()  # the process that forks is between them
    assert killed.pid != program.pid and "spawn_main" in " ".join(killed.cmdline())
    (project / "slow").unlink()
    children = killed.children(recursive=True)
    killed.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "the subject's program and its kernel end with their worker"
    for one in below(program.pid, "ipykernel_launcher"):  # the other sleeper
        one.kill()
    out, _ = program.communicate(timeout=300)
    assert asleep and whose in made(project), "another worker took the task of the one that was killed"
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0 and len(made(project)) == 3, (out, again.stderr)


def program_with_lock(project, pid):
    """A program that works below a process and the subject that it has locked; None before any has."""
    programs = {one.pid: one for one in below(pid, "bold_audio")}
    for path in project.glob("outputs/sim/sub-*/.lock.owner"):
        with suppress(OSError, ValueError):  # it is written in place, so it may be read while it is empty
            if found := programs.get(json.loads(path.read_text())["pid"]):
                return found, path.parent.name
    return None


@pytest.mark.thorough
def test_scheduler_that_is_killed_is_told_and_the_next_finishes_the_rest(project):
    (project / "slow").touch()
    here = {"cwd": project, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    address = "tcp://127.0.0.1:" + str(free_port())
    host, port = ["--host", "127.0.0.1"], address.rpartition(":")[2]
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", *host, "--port", port, "--no-dashboard"]
    scheduler = subprocess.Popen(dask, **here)
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"], **here
    )
    words = ["run", "--dataset", "sim", "--steps", "00", "--subjects", "all"]
    program = subprocess.Popen([sys.executable, "-m", "bold_audio", *words, "--scheduler", address], **here)
    try:
        wait_for(lambda: list(project.glob("*.asleep")), program)
        scheduler.kill()
        _, err = program.communicate(timeout=180)
        assert program.returncode == 4
        assert err.splitlines()[-1].startswith("bold_audio: the scheduler is gone - run the same command again")
    finally:
        for one in (program, worker, scheduler):
            one.kill()
            one.communicate()
    (project / "slow").unlink()
    command = [sys.executable, "-m", "bold_audio", *words, "--workers", "1"]
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0 and len(made(project)) == 3, again.stderr


@pytest.mark.parametrize("option", ["--workers", "--threads"])
def test_nobody_works_for_nobody(capfd, option):
    for number in ("0", "-1", "two", "1.5"):
        status, _, err = call(capfd, "--subjects", "all", f"{option}={number}")
        assert status == 2 and f"must be a whole number from 1 on, got '{number}'" in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_several_people_one_after_the_other_end_with_a_table(project, capfd, monkeypatch):  # R12
    def work(params, *_, **__):
        if params.subject == "b":
            raise DataError("the scan is short - fetch it again")
        return params.subject_path

    monkeypatch.setattr(commands, "run_subject", work)
    status, out, err = call(capfd, "--subjects", "all", "--steps", "00,06", "-p", "outputs_dir", "other one")
    assert status == 3 and err == "bold_audio: sub-b: the scan is short - fetch it again\n"
    assert out.splitlines()[-3:] == [
        "2 subjects done, 1 failed",
        "  sub-b (exit 3): the scan is short - fetch it again",
        "what holds over them: bold-audio group --dataset sim -p outputs_dir 'other one'",
    ]
    assert "bold-audio group" not in call(capfd, "--subjects", "all")[1], "notebook 06 has not run"


def test_seconds_that_nobody_knows_are_not_said():
    assert cohort_table.line_of(cohort.Ended("a", 5, "", float("nan"))) == "sub-a: failed"
    assert cohort_table.line_of(cohort.Ended("a", 0, "", 61.2)) == "sub-a: done in 61 s"


@pytest.mark.slow
def test_scheduler_that_is_not_there_is_one_line(project, capfd):
    status, _, err = call(capfd, "--subjects", "all", "--scheduler", "tcp://127.0.0.1:9")
    assert status == 4 and err == (
        "bold_audio: no Dask scheduler answers at tcp://127.0.0.1:9 - start it: dask scheduler\n"
    )


@pytest.mark.slow
def test_dry_run_shows_what_would_be_run_and_slurms_script(project, capfd, monkeypatch):
    options = ("--slurm-option", "memory", "5GB", "--slurm-option", "queue", "short")
    status, out, _ = call(capfd, "--subjects", "all", "--slurm", "--dry-run", *options)
    assert status == 0 and not (project / "outputs").exists()
    assert out.splitlines()[:3] == [f"sub-{one}: 00_data_download (not done yet)" for one in "abc"]
    assert "#SBATCH -p short" in out and "#SBATCH --mem=5G" in out and "dask" in out
    assert "#SBATCH --mem=4G" in call(capfd, "--subjects", "all", "--slurm", "--dry-run")[1], "without being told"
    monkeypatch.setattr(machine, "memory_needed", lambda files, params: 6.2e9)
    assert "#SBATCH --mem=7G" in call(capfd, "--subjects", "all", "--slurm", "--dry-run")[1], "what a subject takes"
    status, _, err = call(capfd, "--subjects", "all", "--slurm", "--dry-run", "--slurm-option", "memry", "4GB")
    assert status == 2 and "memry" in err


@pytest.mark.slow
def test_scans_of_whom_nothing_is_done_are_not_read_to_know_it(project, monkeypatch):
    people = [load_params(one, "sim") for one in "abc"]
    monkeypatch.setattr("bold_audio.prepare.input_md5", lambda *_, **__: pytest.fail("the scan was read"))
    lacking = cohort.plan(people, ["00_data_download"])
    assert lacking == {one: {"00_data_download": "not done yet"} for one in "abc"}


@pytest.mark.slow
def test_workers_are_as_many_as_fit_into_memory(project, capfd, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 2.9e9)
    monkeypatch.setattr(cohort, "follow", lambda tasks, *_, **__: iter([cohort.Ended("a", 0, "", 1.0)]))
    _, out, _ = call(capfd, "--subjects", "all", "--workers", "4")
    assert out.splitlines()[0] == "2 workers instead of 4: a subject takes up to 1.3 GB"


@pytest.mark.slow
def test_program_ends_with_the_one_that_started_it():
    code = "import time\nfrom bold_audio import warm\nwarm.end_with_parent()\nprint(1, flush=True)\ntime.sleep(600)"
    parent = (
        "import os, subprocess, sys, time\n"
        f"os.environ['{warm.PARENT}'] = str(os.getpid())\n"
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}])\nprint(child.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        child = psutil.Process(int(process.stdout.readline()))
        assert process.stdout.readline() == "1\n"
        process.kill()
        assert psutil.wait_procs([child], timeout=10)[1] == []


@pytest.mark.slow
def test_table_in_a_terminal_lists_who_is_under_way_who_failed_and_who_ended_last(project, monkeypatch):
    monkeypatch.setattr(cohort_table, "SHOWN", 4)
    tasks = [cohort.make_task(load_params(one, "sim"), "00", {}) for one in "abcdefgh"]
    since, begun = datetime.now(UTC), datetime.now().astimezone().strftime(TIME)
    said = [{"started": "2026-01-26T23:10:12+0000"}, {"started": begun, "finished": begun}]  # killed, and interrupted
    said += [{"started": begun}, {"started": "now"}]
    for task, times in zip(tasks[4:], said, strict=True):
        status = {"state": "stopped", "step": "00_data_download", **times}
        write_json(Path(task.folder) / "status.json", status)
    ended = {"d": cohort.Ended("d", 3, "bold_audio: sub-d: scan damaged - fetch it again", 2.0)}  # before the others
    ended |= {one: cohort.Ended(one, 0, "", 60.0) for one in "abc"}
    table = cohort_table._table(tasks, ended, since.replace(microsecond=0))
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[:2] for row in rows] == [
        ("sub-g", "running"), ("sub-h", "running"), ("sub-d", "failed"), ("sub-c", "done"), ("…", "2 more"),
    ]  # fmt: skip
    assert table.title == "4 of 8 subjects have ended, 2 wait"
    assert rows[0][2] == "00_data_download" and re.fullmatch(r"\d+ s", rows[0][3]) and rows[1][3] == ""
    assert rows[2][3:] == ("2 s", "bold_audio: sub-d: scan damaged - fetch it again")


def test_a_program_has_the_threads_it_is_given_and_keeps_its_memory(monkeypatch, tmp_path):
    seen = []

    class Ended:
        wait = staticmethod(lambda: 0)

    monkeypatch.setattr(warm, "start", lambda words, *, env, **options: seen.append(env) or Ended())
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as Dask does for its workers
    cohort.run_task(cohort.Task("01", ("run",), str(tmp_path)), threads=1, root=tmp_path)
    (env,) = seen
    assert "MALLOC_TRIM_THRESHOLD_" not in env
    asked = "import numpy, joblib, threadpoolctl as pools\n"
    asked += "print(joblib.cpu_count(), *(pool['num_threads'] for pool in pools.threadpool_info()))"
    done = subprocess.run([sys.executable, "-c", asked], env=env, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


def test_program_that_is_killed_has_failed_and_says_so(tmp_path, monkeypatch):
    """A signal's status is below 0: the highest of several would be that of whoever ended well."""
    killed = lambda *_, stdout, stderr, **__: subprocess.Popen(["sh", "-c", "kill -9 $$"], stdout=stdout, stderr=stderr)  # noqa: E731
    monkeypatch.setattr(warm, "start", killed)
    ended = cohort.run_task(cohort.Task("a", (), str(tmp_path)), threads=1, root=tmp_path)
    assert ended.status == 5
    assert ended.said == "bold_audio: sub-a: its program was killed (signal 9) - check memory, or run it alone"


@pytest.mark.parametrize(
    "options, said",
    [
        (("--threads", "2"), "--threads counts with --workers, --scheduler or --slurm only"),
        (("--slurm-option", "queue", "short", "--workers", "2"), "--slurm-option counts with --slurm only"),
        (("--workers", "2", "--scheduler", "tcp://127.0.0.1:9"), "give --workers or --scheduler, not both"),
    ],
)
def test_options_that_would_do_nothing_are_refused(capfd, options, said):
    status, _, err = call(capfd, "--subjects", "all", *options)
    assert status == 2 and said in err and len(err.splitlines()) == 1


def test_a_traceback_of_other_programs_is_not_promised():
    with pytest.raises(ParameterError, match="traceback of this program - leave out --workers"):  # itself with one
        run.main(["run", "--subject", "9", "--dataset", "ds003688", "--workers", "2", "--debug"])


def test_one_person_spelt_twice_is_run_once(monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "_run_cohort", lambda options, all_params, *_: seen.extend(all_params) or 0)
    with pytest.raises(SystemExit) as stopped:
        run.main(["run", "--subject", "9", "--subject", "09", "--dataset", "ds003688", "--workers", "2"])
    assert not stopped.value.code and [one.subject for one in seen] == ["09"]
