"""Programs forked from a process that has imported: the same as programs that are started, but for what they wait."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest
from processes import wait_for

from bold_audio import execution, warm
from bold_audio.access import TOKEN_VARIABLE
from bold_audio.simulate import simulate_subject

ROOT = Path(__file__).resolve().parents[1]
LIMITS = dict.fromkeys(warm.READ_AT_IMPORT[:4], "1")  # one thread, so that nothing can be missed when it forks
SAYS = """
import json, os, signal, sys
said = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "name": __name__, "path": sys.path}
said["file"], said["ignored"] = __file__, signal.getsignal(signal.SIGINT) == signal.SIG_IGN
print(json.dumps(said))
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not warm.FORKS, reason="programs are forked on Linux alone"),
]


@pytest.fixture
def folder(tmp_path):
    """Writes modules into a folder and runs them there: status, stdout and stderr."""

    def run(code, *words, env=None, start=warm.start):
        (tmp_path / "said.py").write_text(code)
        with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
            env = os.environ | LIMITS | (env or {})
            status = start(["said", *words], env=env, cwd=tmp_path, stdout=out, stderr=err).wait()
        return status, (tmp_path / "out").read_text(), (tmp_path / "err").read_text()

    return run


def ordinary(words, *, env, cwd, stdout, stderr):
    return subprocess.Popen([sys.executable, "-m", *words], env=env, cwd=cwd, stdout=stdout, stderr=stderr)


def test_a_fork_finds_what_a_program_finds_that_is_started(folder):
    words, env = ["a word", "--and=ü"], {"A_NAME": "a value \udcff", "HOME": "/nowhere"}
    forked, started = (folder(SAYS, *words, env=env, start=one) for one in (warm.start, ordinary))
    assert forked[0] == started[0] == 0 and forked[2] == started[2] == ""
    forked, started = json.loads(forked[1]), json.loads(started[1])
    assert forked == started and forked["argv"] == words and forked["env"]["A_NAME"] == "a value \udcff"


@pytest.mark.parametrize(
    "code, status",
    [
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('a line')", 1),
        ("[][1]", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("import atexit; atexit.register(print, 'at its end'); print(1)", 0),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('last'))).start()", 0),
    ],
)
def test_a_fork_ends_as_a_program_ends_that_is_started(folder, code, status):
    forked, started = (folder(code, start=one) for one in (warm.start, ordinary))
    assert forked[:2] == started[:2] and forked[0] == status
    assert forked[2].splitlines()[-1:] == started[2].splitlines()[-1:]


def test_what_is_imported_is_there_at_once_and_has_started_no_thread(folder):
    code = "import sys; print([name for name in %r if name not in sys.modules])"
    assert folder(code % (warm.IMPORTED,)) == (0, "[]\n", "")
    server = warm._asked[2].pid
    assert psutil.Process(server).num_threads() == 1, "a fork would lack them, with the locks that they hold"


def test_forks_draw_other_numbers(folder):
    code = "import random; import numpy as np; print(random.random(), np.random.random())"
    one, other = (folder(code)[1].split() for _ in range(2))
    assert len({*one, *other}) == 4


def test_threads_may_ask_at_once_and_forget_meanwhile(folder, tmp_path):
    (tmp_path / "ends.py").write_text("raise SystemExit(7)")

    def ask(k):
        if k % 5 == 4:
            warm.forget()
        return warm.start(["ends"], env=os.environ | LIMITS, cwd=tmp_path).wait()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(12))) == [7] * 12


def test_no_fork_can_find_the_token_unless_it_is_given_it(folder, monkeypatch):
    token = "y0_planted-SECRET-token.7Qz"
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    warm.forget()
    code = f"import os; print(os.environ.get({TOKEN_VARIABLE!r})); print(open('/proc/self/environ').read())"
    hidden = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    assert folder(code)[1].startswith(token), "the program of a person may need it"
    assert token not in folder(code, start=lambda words, env, **how: warm.start(words, env=hidden | LIMITS, **how))[1]
    assert token.encode() not in Path(f"/proc/{warm._asked[2].pid}/environ").read_bytes()


def test_another_process_forks_where_imports_would_differ(folder):
    folder("1")
    one = warm._asked[2]
    folder("1", env={"A_NAME": "which no import reads"})
    assert warm._asked[2] is one
    folder("1", env={"OMP_NUM_THREADS": "2"})
    assert warm._asked[2] is not one and one.wait(10) == 0, "the one before ends, as nobody can ask it any more"


@pytest.mark.thorough
def test_code_that_has_changed_is_imported_anew(folder, monkeypatch, tmp_path):
    folder("1")
    one = warm._asked[2]
    (tmp_path / "newer.py").touch()
    monkeypatch.setattr(warm, "__file__", str(tmp_path / "warm.py"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder("1")
    assert warm._asked[2] is not one


def test_the_process_that_forks_may_be_killed(folder):
    folder("1")
    one = warm._asked[2]
    one.kill()
    one.wait(300)
    status, out, _ = folder("import os; print(os.getppid())")
    assert status == 0 and out == f"{warm._asked[2].pid}\n" and warm._asked[2] is not one, "another one forks"


@pytest.mark.thorough
def test_imports_that_fail_leave_programs_that_are_started_as_always(folder, monkeypatch):
    monkeypatch.setitem(warm.ENVIRONMENT, "MPLBACKEND", "no backend of this name")  # which matplotlib refuses
    warm.forget()
    assert folder("import os; print(os.getppid())")[:2] == (0, f"{os.getpid()}\n")


def test_elsewhere_than_on_linux_programs_are_started(folder, monkeypatch):
    monkeypatch.setattr(warm, "FORKS", False)
    code = (
        "import os, sys; from bold_audio import warm; warm.end_with_parent()\n"
        "print('nilearn' in sys.modules, os.getppid())"
    )
    assert folder(code, env={"PYTHONPATH": str(ROOT)}) == (0, f"False {os.getpid()}\n", "")


def test_a_fork_can_ask_for_forks(folder, tmp_path):
    (tmp_path / "below.py").write_text("import os; print(os.getppid())")
    code = (
        "import os, sys; from bold_audio import warm; print(os.getppid(), flush=True)\n"
        "sys.exit(warm.start(['below'], env=os.environ, cwd=os.getcwd()).wait())"
    )
    status, out, _ = folder(code)
    assert status == 0 and out == f"{warm._asked[2].pid}\n" * 2, "the same process forks for both"


def test_forks_end_with_the_program_that_asked_for_them_and_so_does_the_process_that_forks(tmp_path):
    (tmp_path / "sleeps.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    code = (
        "import os, time; from bold_audio import warm; fork = warm.start(['sleeps'], env=os.environ, cwd='.')\n"
        "print(warm._asked[2].pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    env = os.environ | LIMITS | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env) as program:
        below = [psutil.Process(int(program.stdout.readline())) for _ in range(2)]
        program.kill()
        assert psutil.wait_procs(below, timeout=10)[1] == []


def test_signals_reach_a_fork_and_its_group(tmp_path):
    (tmp_path / "sleeps.py").write_text(
        "import subprocess, sys, time\n"
        "below = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('below', 'w').write(str(below.pid)); open('ready', 'w').close(); time.sleep(600)"
    )
    fork = warm.start(["sleeps"], env=os.environ | LIMITS, cwd=tmp_path, own_group=True)
    assert os.getpgid(fork.pid) == fork.pid != os.getpgid(0)
    wait_for((tmp_path / "ready").exists, fork)
    with pytest.raises(subprocess.TimeoutExpired):
        fork.wait(0.1)
    below = psutil.Process(int((tmp_path / "below").read_text()))
    os.killpg(fork.pid, signal.SIGTERM)
    assert fork.wait(10) == -15 and psutil.wait_procs([below], timeout=10)[1] == []
    fork.kill()  # nobody is there any more, and nothing happens
    fork = warm.start(["sleeps"], env=os.environ | LIMITS, cwd=tmp_path)
    assert os.getpgid(fork.pid) == os.getpgid(0), "Ctrl-C in the terminal reaches it"
    fork.kill()
    assert fork.wait(10) == -9


@pytest.mark.thorough
def test_a_notebook_says_the_same_in_a_fork(tmp_path, monkeypatch):
    simulate_subject(tmp_path / "data", shape=(12, 12, 12), n_volumes=300)
    given = {"subject": "sim", "data_dir": str(tmp_path / "data"), "regions": {}, "audio_path": "stimuli/film.wav"}
    given |= {"data_note": "SIMULATED", "gap": 4, "skip_initial": 2, "n_folds": 2}
    said = []
    for forks in (True, False):
        monkeypatch.setattr(warm, "FORKS", forks)
        target = tmp_path / f"{forks}.ipynb"
        given["outputs_dir"] = str(tmp_path / "outputs")
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        execution.execute_file(ROOT / "notebooks/00_data_download.ipynb", target, given, cwd=ROOT)
        cells = nbformat.read(target, as_version=4).cells
        outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
        said.append([{key: value for key, value in one.items() if key != "metadata"} for one in outputs])
    assert said[0] == said[1] and len(said[0]) > 8


def test_somebodys_own_kernel_is_started_as_it_says(tmp_path, monkeypatch):
    kernel = tmp_path / "kernels/python3"
    kernel.mkdir(parents=True)
    words = ["env", "OWN_KERNEL=1", sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "own", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setattr(warm, "start", lambda *_, **__: pytest.fail("a fork in place of their kernel"))
    names = nbformat.v4.new_code_cell("import os; print(os.environ['OWN_KERNEL'])")
    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "own"}}, cells=[names]
    )
    nbformat.write(made, tmp_path / "a.ipynb")
    execution.execute_file(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, cwd=tmp_path)
    assert nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[-1].outputs[0]["text"] == "1\n"
