"""Follow README.md word for word as somebody who has just arrived: a clean checkout, an empty home, nothing installed.

    python3 tests/newcomer.py [--skip "make test"]

Each command of the README is run by bash in its order, in the checkout. What one has to bring lies ready, all of it
SIMULATED: the film's sound (``film.wav``), another one (``other.wav``), a scan of one's own with its sound (``~/mine``,
``story.wav``), and a second subject beside the demo's. Servers are started, heard to answer, and stopped at the end.
Commands about ds003688 are run as they are printed, too; where the dataset cannot be reached they must end with a
documented exit status and one line that says what is missing, and are then run on the demo's SIMULATED subjects in its
place. Ends with a table of every command, and with exit status 1 where one did not work. What they wrote stays there,
the SIMULATED sound in ``data/ds003688`` too: follow the README in a checkout that nothing else is done with.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVERS = {"make triton": "http://127.0.0.1:8000/v2/health/ready", "mlflow server": "http://127.0.0.1:8080/health"}
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # and how packages are reached
SMALL = "--shape 18 22 22"
PATIENCE = 1800  # s for one command
# what stands in for ds003688, which not everybody can reach
SIMULATED = (
    (r"--subject 09", "--subject sim"), (r"--dataset ds003688", "--dataset sim"),
    (r"-p subject 09", "-p subject sim -p dataset sim"), (r"params/ds003688/sub-09\.yaml", "params/sim/sub-sim.yaml"),
    (r"-p feature_source annotations", ""),
)  # fmt: skip


def commands(text):
    """The lines of the README's blocks that are commands, without what a comment says."""
    lines = [line.partition(" #")[0].strip() for block in BLOCKS.findall(text) for line in block.splitlines()]
    return [line for line in lines if line]


class Newcomer:
    """Somebody with a home of their own at a shell.

    Parameters
    ----------
    home : Path
    """

    def __init__(self, home):
        self.env = {
            name: value for name, value in os.environ.items() if name in KEPT or name.startswith(("PIP_", "UV_"))
        }
        self.env["HOME"] = str(home)
        self.prefix, self.servers, self.rows = "", [], []

    def type(self, command):
        """Run a command as bash does after the lines before it: exit status, and what it said at last on stderr."""
        begun = time.perf_counter()
        with tempfile.TemporaryFile("w+") as err:
            script = f"{self.prefix}{command}"
            done = subprocess.run(
                ["bash", "-c", script], cwd=ROOT, env=self.env, stderr=err, stdin=subprocess.DEVNULL, timeout=PATIENCE
            )
            err.seek(0)
            said = [line for line in err.read().splitlines() if line.strip()]
        self.rows.append((command, done.returncode, time.perf_counter() - begun, said[-1] if said else ""))
        return done.returncode, said

    def serve(self, command, address):
        """Start a server and wait until it answers."""
        begun = time.perf_counter()
        with open(os.devnull, "w") as nowhere:
            running = subprocess.Popen(
                ["bash", "-c", f"{self.prefix}{command}"], cwd=ROOT, env=self.env, stdout=nowhere, stderr=nowhere,
                start_new_session=True,
            )  # fmt: skip
        self.servers.append(running)
        while not answers(address) and running.poll() is None and time.perf_counter() - begun < PATIENCE:
            time.sleep(1)
        status = 0 if answers(address) else running.poll() or 1
        self.rows.append((command, status, time.perf_counter() - begun, "answers" if not status else "never answered"))
        return status

    def leave(self):
        """Stop the servers."""
        for one in self.servers:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGTERM)
                one.wait(60)


def answers(address):
    """Whether a server says that it is there."""
    try:
        return urllib.request.urlopen(address, timeout=2).status == 200
    except OSError:
        return False


def bring(newcomer):
    """What the README takes for granted: the film's sound, a scan of one's own with its sound, another sound."""
    home = newcomer.env["HOME"]
    made = f"bold-audio simulate {home}/mine --subject 01 {SMALL}"
    renamed = f"cd {home}/mine && for f in $(find . -name '*task-film*'); do mv $f ${{f/task-film/task-story}}; done"
    sounds = f"cp {home}/mine/stimuli/film.wav {home}/mine/story.wav && cp data/sim/stimuli/film.wav film.wav"
    sounds += " && cp film.wav other.wav"
    second = f"bold-audio simulate data/sim --subject 02 --seed 2 {SMALL}"
    for command in (made, f"({renamed})", sounds, second):
        if newcomer.type(command)[0]:
            sys.exit(f"cannot prepare what a newcomer brings: {newcomer.rows[-1]}")


def follow(newcomer, todo):
    """Run the commands: those that did not work."""
    failed = []
    for command in todo:
        print(f"$ {command}", flush=True)
        address = next((url for name, url in SERVERS.items() if command.startswith(name)), None)
        if address:
            failed += [command] if newcomer.serve(command, address) else []
        elif "activate" in command:
            newcomer.prefix = f"{command}; "
            bring(newcomer)
        else:
            status, said = newcomer.type(command)
            if status and not instead(newcomer, command, status, said):
                failed.append(command)
        print("  -> {1}, {2:.0f} s, {3:.160}".format(*newcomer.rows[-1]), flush=True)
    return failed


def instead(newcomer, command, status, said):
    """Whether a command that needs ds003688 said so in one line, and works on the simulated subject."""
    there = command
    for pattern, simulated in SIMULATED:
        there = re.sub(pattern, simulated, there)
    if there == command or command.startswith("make"):
        return False
    fetch = command.startswith("bold-audio fetch")  # which shows how far it is on stderr, too
    papermill = command.startswith("papermill")  # shows the traceback of the cell, and ends with it
    listed = status == 3 and not said and "--subjects all" in command  # the list of who failed is on stdout
    one_line = status in (2, 3, 4, 6) and said and said[-1].startswith("bold_audio: ") and (len(said) == 1 or fetch)
    told = papermill and re.match(r"(Data|Access|Parameter)Error: ", "".join(said[-1:]))
    if not (one_line or listed or told):
        return False
    print("  -> {1}, {2:.0f} s, {3:.160}".format(*newcomer.rows[-1]), flush=True)
    if fetch:  # what would be fetched is nowhere
        return True
    return newcomer.type(there)[0] == 0


def main():
    """Follow, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip", action="append", default=[], metavar="COMMAND")
    skipped = parser.parse_args().skip
    todo = [one for one in commands((ROOT / "README.md").read_text(encoding="utf-8")) if one not in skipped]
    with tempfile.TemporaryDirectory(prefix="newcomer-") as home:
        newcomer = Newcomer(Path(home))
        try:
            failed = follow(newcomer, todo)
        finally:
            newcomer.leave()
    print("\n| command | exit | s | |\n|---|---|---|---|")
    for command, status, seconds, said in newcomer.rows:
        print(f"| `{command}` | {status} | {seconds:.0f} | {said[:160]} |")
    if failed:
        sys.exit("these did not work as printed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
