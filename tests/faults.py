"""The matrix of docs/faults.md: a place with an earlier run in it, and what every fault has to leave of that.

Each row has a test in one of the ``test_faults_*.py``; its id is the row's, so that ``pytest -k S01`` finds it.
"""

import contextlib
import io
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from refusals import ended, tree_hash
from release import TOKEN, traces

from bold_audio import workflow
from bold_audio.access import TOKEN_VARIABLE
from bold_audio.files import BoldAudioError
from bold_audio.params import load_params
from bold_audio.report import write_report
from bold_audio.simulate import simulate_subject

N_ROWS = {"S": 19, "A": 13, "P": 15, "D": 11, "R": 16, "M": 19}
ROWS = []  # of the tests imported so far

N_VOLUMES, T_R = 130, 0.608
RUN = "ses-mri3t_task-film_run-1"
OUTPUTS = "данные é {x} 100%"
NOTE = "SIMULATED <script>document.title = 'hacked'</script>"
QUICK = {
    "delays": [4.0, 5.0, 6.0],
    "mlp_delays": [5.0],
    "max_epochs": 2,
    "history_order": 2,
    "sweep_fwhm": 0,
    "n_folds": 2,
    "gap": 4,
    "skip_initial": 2,
}
LARGE = 1e6  # bytes: files of this size are not copied for each test


def rows(*ids):
    """Make a test that of rows of docs/faults.md; it is given the id as ``row``. ``S01-more`` is a case of S01."""
    ROWS.extend(ids)
    return pytest.mark.parametrize("row", ids)


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def lines(self):
        """Lines on stderr."""
        return self.err.splitlines()


def command_line(command, *arguments, **given):
    """Words of a command; what is given goes in as ``-p``."""
    return [str(w) for w in (command, *arguments, *(w for name, value in given.items() for w in ("-p", name, value)))]


def one_line(said, status, *says, warnings=0):
    """Assert that a command ended with this status and one line that says what is wrong and what to do; return it.

    Other lines are warnings, as many as a row asks for.
    """
    assert said.status == status, said.err
    assert len(said.lines) == 1 + warnings, said.err
    assert all(line.startswith("bold_audio: ") for line in said.lines), said.err
    assert "Traceback" not in said.err + said.out
    line = said.lines[-1]
    assert re.fullmatch(r"bold_audio: \S.* - \S.*", line), line
    for text in says:
        assert text in line, f"{text!r} is not in {line!r}"
    return line


def nothing_lost(before, after, *, subjects=("sim",)):
    """Assert that all files are as they were but those that tell of a failed run of these subjects; return new ones.

    New may be, besides: locks, what the cache holds, parts of files and trainings to go on from, DVC's own files, and
    what describes the outputs as a dataset.
    """
    failed = "|".join(subjects)
    tells = r"(status|done)\.json|\d\d_\w+\.ipynb|report/(index|model_card|\d\d_\w+)\.html"
    tells = rf"[^/]+/[\w-]+/(index\.html|\.subjects\.json|sub-({failed})/({tells}))"
    new = rf"{tells}|(.*/)?\.[^/]*lock(\.owner)?|[^/]+/cache/.*|[^/]+/[\w-]+/(dataset_description\.json|\.bidsignore)"
    new += rf"|[^/]+/[\w-]+/sub-({failed})/report/plotly\.min\.js|(.*/)?\.(fetch|dvc)/.*|.*\.part"
    new += rf"|[^/]+/[\w-]+/sub-({failed})/training/.*"
    lost = {path for path in before if after.get(path) != before[path] and not re.fullmatch(tells, path)}
    assert {path for path in lost if not re.fullmatch(r"(.*/)?\.[^/]*lock(\.owner)?", path)} == set()
    made = after.keys() - before.keys()
    assert {path for path in made if not re.fullmatch(new, path)} == set()
    return made


def no_token(said, paths):
    """Assert that the planted token is neither in what was said nor in files."""
    written = [path.read_bytes() for path in paths]
    for trace in traces(TOKEN):
        assert not [body[:80] for body in (*written, said.out.encode(), said.err.encode()) if trace in body]


@contextlib.contextmanager
def refusal(root, status, says, *, warnings=0, subjects=("sim",)):
    """Assert the contract of docs/faults.md for what is said inside, and what it does to files below ``root``."""
    before, held = tree_hash(root), []
    yield held
    (said,) = held
    one_line(said, status, *([says] if isinstance(says, str) else says), warnings=warnings)
    after = tree_hash(root)
    nothing_lost(before, after, subjects=subjects)
    no_token(said, [root / path for path in after if after[path] != before.get(path)])


class Site:
    """Data of two simulated subjects, outputs and models of an earlier run of both, and the command line.

    Parameters
    ----------
    root : Path
    capfd : pytest's
    """

    def __init__(self, root, capfd):
        self.root, self.capfd = root, capfd
        self.data, self.outputs, self.models = root / "data", root / OUTPUTS, root / "models"
        self.scan = self.data / f"sub-sim/ses-mri3t/func/sub-sim_{RUN}_bold.nii.gz"
        self.events = self.scan.with_name(f"sub-sim_{RUN}_events.tsv")
        self.sidecar = self.scan.with_name(f"sub-sim_{RUN}_bold.json")
        self.sound = self.data / "stimuli/film.wav"
        self.folder = self.outputs / "sim/sub-sim"
        folders = {"data_dir": self.data, "outputs_dir": self.outputs, "models_dir": self.models}
        self.given = {name: str(path) for name, path in folders.items()} | QUICK

    def params(self, **given):
        return load_params(given.pop("subject", "sim"), "sim", **(self.given | given))

    def replace(self, path, content):
        """Put other bytes at a path; large files are shared with other tests."""
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path

    def call(self, command, *arguments, **given):
        """Run ``bold-audio`` in this process."""
        self.capfd.readouterr()
        status = ended(command_line(command, *arguments, **given))
        return Said(status, *self.capfd.readouterr())

    def refuse(self, command, *arguments, status, says, warnings=0, subjects=("sim",), **given):
        """Assert the common contract of docs/faults.md for a command that cannot be done; return its line."""
        with refusal(self.root, status, says, warnings=warnings, subjects=subjects) as said:
            said.append(self.call(command, *arguments, **(self.given | given)))
        return said[0].lines[-1]

    def refuse_call(self, function, *arguments, says, status, subjects=("sim",)):
        """As `refuse`, for a part of a notebook that takes too long as a whole."""
        with refusal(self.root, status, says, subjects=subjects) as said:
            with pytest.raises(BoldAudioError) as raised:
                function(*arguments)
            said.append(Said(raised.value.exit_code, "", f"bold_audio: sub-{subjects[0]}: {raised.value}\n"))

    def refuse_run(self, status, says, *, subject="sim", dataset="sim", steps="00", **options):
        """As `refuse`, for a run."""
        arguments = ("run", "--dataset", dataset, "--subject", subject, "--steps", steps)
        return self.refuse(*arguments, status=status, says=says, subjects=(subject,), **options)

    def open(self, **given):
        """Open the subject as the notebooks do; nothing may be lost by that."""
        before = tree_hash(self.root)
        subject = workflow.open_subject(self.params(**given))
        nothing_lost(before, tree_hash(self.root))
        return subject


def noticed(subject):
    """What notebook 00 says it noticed of scan and sound."""
    return "; ".join((*subject.sound.warnings, *subject.run.files.warnings))


@dataclass(frozen=True)
class Earlier:
    """A finished run, and what the command said; ``nosuch`` was asked for beside it."""

    root: Path
    said: Said


def earlier_run(root):
    """Simulate two subjects; run a notebook for one that is not there and for one that is, export the latter's model.

    Names of folders and notes are of the kind that gets programs into trouble.
    """
    site = Site(root, None)
    for seed, subject in enumerate(("sim", "b")):
        simulate_subject(site.data, subject=subject, seed=seed, shape=(12, 12, 12), n_volumes=N_VOLUMES)
    wanted = ("run", "--dataset", "sim", "--subject", "nosuch", "--subject", "sim", "--steps", "00")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        status = ended(command_line(*wanted, **site.given, data_note=NOTE))
    workflow.ensure_export(workflow.open_subject(site.params()))
    workflow.ensure_quality(workflow.open_subject(site.params(subject="b")))
    write_report(site.params())
    return Earlier(root, Said(status, out.getvalue(), err.getvalue()))


def copy_of(earlier, folder):
    """A copy of an earlier run's files; large ones are the same files."""

    def copy(source, target):
        return os.link(source, target) if os.path.getsize(source) > LARGE else shutil.copy2(source, target)

    shutil.copytree(earlier.root, folder, copy_function=copy)
    about = folder / OUTPUTS / "sim/dataset_description.json"  # names the folder of the data
    about.write_text(about.read_text().replace(str(earlier.root), str(folder)))
    return folder
