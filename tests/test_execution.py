"""A subject's notebooks one after the other: what is kept of a run that goes well, that fails, and that is stopped."""

import functools
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from bold_audio import done, execution, fetch, locking, prepare, runs, steps, warm
from bold_audio.execution import StepError, run_step, run_subject
from bold_audio.files import AccessError, DataError, ParameterError, file_md5, project_root
from bold_audio.params import load_params
from bold_audio.simulate import simulate_subject

ROOT = Path(__file__).resolve().parents[1]

STEPS = ["00_data_download", "01_mfcc_exploration"]
GOOD = "import ipywidgets\nipywidgets.IntSlider()"
FORESEEN = "from bold_audio.files import DataError\nraise DataError('the scan is short - set allow_short')"


QUICK = {
    "delays": [4.0, 5.0],
    "mlp_delays": [5.0],
    "history_order": 2,
    "n_folds": 2,
    "gap": 4,
    "skip_initial": 2,
    "regions": {},
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A SIMULATED subject of 130 volumes, in a BIDS tree."""
    root = tmp_path_factory.mktemp("scans") / "sim"
    simulate_subject(root, subject="sim", shape=(12, 12, 12), n_volumes=130)
    return root


@pytest.fixture
def project(scans, tmp_path, monkeypatch):
    """A project whose notebooks have one cell each; function to write them, which gives the subject's parameters."""
    for part in ("params", "notebooks"):
        (tmp_path / part).mkdir()
    shutil.copy(ROOT / "params/common.yaml", tmp_path / "params")
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(tmp_path))
    shutil.copytree(scans, tmp_path / "data")

    def write(*sources):
        for step, source in zip(STEPS, sources, strict=True):
            made = nbformat.v4.new_notebook(
                metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            )
            made.cells = [nbformat.v4.new_markdown_cell(f"# {step}"), nbformat.v4.new_code_cell(source)]
            nbformat.write(made, tmp_path / "notebooks" / f"{step}.ipynb")
        given = QUICK | {"data_dir": str(tmp_path / "data"), "outputs_dir": str(tmp_path / "outputs")}
        return load_params("sim", "sim", audio_path="stimuli/film.wav", data_note="SIMULATED", **given)

    return write


def status(params):
    return json.loads((params.subject_path / "status.json").read_text())


def text(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").get_text(" ")


@pytest.mark.slow
def test_run_that_goes_well_is_stamped_and_listed(project):
    params, said = project(GOOD, "1 + 1"), []
    index = run_subject(params, STEPS, {}, say=said.append)
    assert [line.split(": ")[1].split("  ")[0] for line in said] == [execution.OPENING, *STEPS]
    assert status(params)["state"] == "done" and status(params)["steps"] == STEPS
    executed = nbformat.read(params.subject_path / f"{STEPS[0]}.ipynb", as_version=4)
    stamp = executed.metadata["bold_audio"]
    scan = next(params.data_path.glob("sub-sim/**/*_bold.nii.gz"))
    assert stamp["input_md5"][scan.name] == file_md5(scan) and "numpy" in stamp["packages"]
    assert executed.metadata["papermill"]["output_path"].endswith(f"sub-sim/{STEPS[0]}.ipynb")
    # The widget's view and state are gone: its kernel is.
    assert executed.cells[-1].outputs == [] and "widgets" not in executed.metadata
    assert executed.cells[-1].execution_count == 1
    assert f"MD5 of {scan.name}" in text(index.parent / f"{STEPS[0]}.html")
    assert all(step in text(index) for step in STEPS) and "done" in text(index.parents[2] / "index.html")


@pytest.mark.slow
def test_failed_step_is_kept_told_and_stops_the_rest(project):
    params = project(FORESEEN, "1 + 1")
    with pytest.raises(StepError, match="^the scan is short - set allow_short$") as failed:
        run_subject(params, STEPS, {}, say=lambda line: None)
    assert failed.value.exit_code == DataError.exit_code
    kept = status(params)
    assert (kept["state"], kept["step"]) == ("failed", STEPS[0])
    assert kept["error"] == "the scan is short - set allow_short"
    assert not (params.subject_path / f"{STEPS[1]}.ipynb").exists()
    report = params.subject_path / "report"
    for page in (report / f"{STEPS[0]}.html", report / "index.html"):
        assert "What to do: set allow_short" in " ".join(text(page).split())
    assert f"{STEPS[0]}: the scan is short - set allow_short" in text(params.subject_path.parent / "index.html")


@pytest.mark.slow
def test_kernel_that_dies_before_it_answers_says_so_too(project, monkeypatch):
    def die(*_):
        raise RuntimeError("Kernel died before replying to kernel_info")

    params = project("1", "1")
    monkeypatch.setattr(execution, "execute", die)
    with pytest.raises(StepError, match="its kernel died - check the memory") as failed:
        run_step(STEPS[0], params.subject_path, {})
    assert failed.value.exit_code == 5


@pytest.mark.slow
def test_second_run_that_goes_well_forgets_the_failure(project):
    params = project(FORESEEN, "1 + 1")
    with pytest.raises(StepError, match="the scan is short"):
        run_subject(params, STEPS, {}, say=lambda line: None)
    source = params.subject_path.parents[2] / f"notebooks/{STEPS[0]}.ipynb"
    source.write_text(source.read_text().replace("raise DataError", "print"))
    index = run_subject(params, STEPS, {}, say=lambda line: None)
    for page in (index, index.parent / f"{STEPS[0]}.html"):
        assert BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select_one(".failure") is None
    assert "0 of them failed" in text(index.parents[2] / "index.html")


@pytest.mark.slow
def test_subject_that_cannot_be_fetched_is_listed_with_the_reason(project, monkeypatch):
    def refuse(params):
        raise AccessError("the server says no - look at the token")

    params = project("1", "1")
    monkeypatch.setattr(fetch, "fetch_missing", refuse)
    with pytest.raises(AccessError, match="the server says no"):
        run_subject(params, STEPS, {}, say=lambda line: None)
    assert (status(params)["state"], status(params)["step"]) == ("failed", execution.OPENING)
    assert "scan and sound: the server says no - look at the token" in text(params.subject_path.parent / "index.html")


@pytest.mark.slow
def test_steps_whose_inputs_are_the_same_are_left_alone_and_only_what_depends_on_a_change_is_made_again(project):  # R13
    params, said = project("1", "2"), []

    def again(params, **options):
        said.clear()
        run_subject(params, STEPS, {}, say=said.append, **options)

    again(params)
    executed = {step: (params.subject_path / f"{step}.ipynb").stat().st_mtime_ns for step in STEPS}
    scan = next(params.data_path.glob("sub-sim/**/*_bold.nii.gz"))
    os.utime(scan)  # another time, the same bytes
    again(params.model_copy(update={"lr": 0.5, "dvc_jobs": 2}))  # which neither step looks at
    assert [line for line in said if "nothing that it was made from has changed" in line] == said and len(said) == 2
    assert executed == {step: (params.subject_path / f"{step}.ipynb").stat().st_mtime_ns for step in STEPS}

    def why(line):
        return line.rpartition("(")[2].rstrip(")")

    again(params.model_copy(update={"history_order": 1, "n_mfcc": 12}))
    assert [why(line) for line in said[1:]] == ["parameter history_order, n_mfcc changed"] * 2
    (params.subject_path / f"report/{STEPS[1]}.html").unlink()
    again(params.model_copy(update={"history_order": 1, "n_mfcc": 12}))
    assert "is done" in said[0] and why(said[2]) == f"report/{STEPS[1]}.html is gone" and len(said) == 3
    params = project("1", "3")
    again(params.model_copy(update={"history_order": 1, "n_mfcc": 12}))
    assert "is done" in said[0] and why(said[2]) == "notebook changed"
    events = next(params.data_path.glob("sub-sim/**/*_events.tsv"))
    events.write_text(events.read_text() + "\n")
    again(params.model_copy(update={"history_order": 1, "n_mfcc": 12}))
    assert [why(line) for line in said[1:]] == [f"file {events.name} changed"] * 2
    again(params.model_copy(update={"history_order": 1, "n_mfcc": 12}), force=True)
    assert [why(line) for line in said[1:]] == ["asked for"] * 2


@pytest.mark.slow
def test_step_that_fails_is_not_done_and_is_made_again(project):
    params, said = project("1", "1"), []
    run_subject(params, STEPS, {}, say=said.append)
    params = project(FORESEEN, "1")
    for _ in range(2):
        with pytest.raises(StepError, match="the scan is short"):
            run_subject(params, STEPS, {}, say=said.append)
    listed = json.loads((params.subject_path / "done.json").read_text())
    assert [step for step, entry in listed.items() if "finished" in entry] == [STEPS[1]]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"00_data_download": 3}', '{"00_data_download": {"files": 2}}'])
def test_a_damaged_list_of_what_is_done_makes_everything_again(tmp_path, content):
    (tmp_path / "done.json").write_text(content)
    assert done.why_again(tmp_path, STEPS[0], {"parameters": {}, "inputs": {}}) == done.NOT_DONE


@pytest.mark.slow
def test_step_that_was_stopped_and_begins_again_stands_on_what_it_had_written(project):
    wrote = "from pathlib import Path\nmade = Path('outputs/sim/sub-sim/made.tsv')\n"
    params = project(wrote + "made.touch()\nmade.write_text('1')\n" + FORESEEN, "1")
    with pytest.raises(StepError, match="the scan is short"):
        run_subject(params, STEPS[:1], {}, say=lambda line: None)
    params = project(wrote + "assert made.is_file()", "1")  # as everything that is made once
    run_subject(params, STEPS[:1], {}, say=lambda line: None)
    assert "made.tsv" in json.loads((params.subject_path / "done.json").read_text())[STEPS[0]]["files"]


def test_pages_that_every_run_writes_at_its_end_are_no_files_of_a_step(tmp_path):
    # A run that a killed kernel ended writes them too, and the next run must not take them for its step's.
    params = load_params("sim", outputs_dir=str(tmp_path / "outputs"), models_dir=str(tmp_path / "models"))
    for name in ("status.json", "report/index.html", "report/model_card.html", "report/06_inference.html"):
        path = params.subject_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert set(done.snapshot(params)) == {"report/06_inference.html"}


@pytest.mark.slow
def test_run_that_is_interrupted_is_stopped_and_not_failed(project, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    params = project("1", "1")
    monkeypatch.setattr(execution, "run_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_subject(params, STEPS, {}, say=lambda line: None)
    assert (status(params)["state"], status(params)["step"]) == ("stopped", STEPS[0])
    assert "stopped" in text(params.subject_path.parent / "index.html")


@pytest.mark.slow
def test_fault_of_the_report_does_not_hide_that_of_the_step(project, caplog):
    params = project(FORESEEN, "1")
    damaged = params.subject_path / f"{STEPS[1]}.ipynb"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("no notebook")
    with pytest.raises(StepError, match="the scan is short - set allow_short") as failed:
        run_subject(params, STEPS[:1], {}, say=lambda line: None)
    assert failed.value.exit_code == DataError.exit_code and status(params)["state"] == "failed"
    (said,) = (record.getMessage() for record in caplog.records if record.name == "bold_audio.execution")
    assert said.startswith("and then: ") and f"{damaged.name} is no notebook" in said


@pytest.mark.slow
def test_who_stops_a_run_does_not_wait_for_the_index_of_all_subjects(project, monkeypatch, caplog):
    def interrupt(*_):
        raise KeyboardInterrupt

    params = project("1", "1")
    monkeypatch.setattr(execution, "run_step", interrupt)
    held = params.subject_path.parent / locking.DATASET_LOCK
    with locking.lock(held, doing="the index"), pytest.raises(KeyboardInterrupt):  # for 600 s it would wait
        run_subject(params, STEPS, {}, say=lambda line: None)
    assert "is locked by" in caplog.text and status(params)["state"] == "stopped"


@pytest.mark.slow
def test_fault_that_nobody_foresaw_has_failed_with_its_name(project, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    params = project("1", "1")
    monkeypatch.setattr(execution, "run_step", full)
    with pytest.raises(OSError, match="no space"):
        run_subject(params, STEPS, {}, say=lambda line: None)
    assert status(params)["state"] == "failed" and status(params)["error"] == "OSError: no space left on device"


@pytest.mark.slow
def test_stop_that_comes_while_the_kernel_is_started_ends_the_kernel(tmp_path, monkeypatch):
    """Nobody has its number yet; without a word it would work to the notebook's end."""
    really, started = warm.start, []

    def start(*words, **options):
        started.append(really(*words, **options))
        raise_in_main()
        time.sleep(0.5)  # the main thread hears it, and finds nothing to kill
        return started[0]

    raise_in_main = functools.partial(signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)
    monkeypatch.setattr(warm, "start", start)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import time\ntime.sleep(600)")])
    nbformat.write(notebook, tmp_path / "source.ipynb")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # those who run the tests may hear or ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            execution.execute_file(tmp_path / "source.ipynb", tmp_path / "made.ipynb", {}, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].wait(300) == -signal.SIGKILL


@pytest.mark.slow
def test_error_that_nobody_foresaw_names_the_notebook_and_its_traceback(project):
    params = project("[][1]", "1")
    with pytest.raises(StepError, match="00_data_download failed with IndexError: .* - the traceback is in ") as failed:
        run_step(STEPS[0], params.subject_path, {})
    assert failed.value.exit_code == 1


@pytest.mark.slow
def test_kernel_that_is_closed_while_it_answers_says_nothing(project):
    params = project("import logging\nassert logging.getLogger('tornado.general').level == logging.CRITICAL", "1")
    run_step(STEPS[0], params.subject_path, {})


def test_who_joins_the_dataset_makes_nobody_elses_results_stale(project):
    params = project("x = 1", "x = 2")
    table, files = params.data_path / "participants.tsv", runs.locate_runs(params)
    before = done.made_from(params, files, STEPS)
    table.write_text(
        table.read_text() + "\t".join(["sub-07", *["n/a"] * table.read_text().splitlines()[0].count("\t")])
    )
    assert done.made_from(params, files, STEPS) == before
    table.write_text("participant_id\tlanguage_dominance\nsub-sim\tR\n")
    assert done.made_from(params, files, STEPS)[STEPS[0]]["inputs"] != before[STEPS[0]]["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"mlflow_uri": "http://127.0.0.1:8080", "mlflow_experiment": "film", "mlflow_required": True}, {"04"}),
        ({"runtime": "triton", "triton_url": "127.0.0.1:8001"}, {"05", "06"}),
        ({"lr": 0.5}, {"04", "05", "06"}),
        ({"chunk_voxels": 16}, set()),
    ],
)
def test_a_parameter_makes_those_steps_stale_that_use_it(project, change, stale):
    params = project("x = 1", "x = 2")
    shutil.copytree(ROOT / "notebooks", project_root() / "notebooks", dirs_exist_ok=True)
    files = runs.locate_runs(params)
    before, after = (done.made_from(one, files, steps.STEPS) for one in (params, params.model_copy(update=change)))
    assert {step[:2] for step in steps.STEPS if before[step] != after[step]} == stale


@pytest.mark.parametrize("where", ["data", "project", "home"])
@pytest.mark.parametrize("what", ["mask", "region"])
def test_another_mask_under_the_same_name_makes_results_stale_wherever_it_lies(
    project, tmp_path, monkeypatch, where, what
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = "~/mine.nii.gz" if where == "home" else "masks/mine.nii.gz"
    params = project("x = 1", "x = 2")
    params = params.model_copy(update={"mask": given} if what == "mask" else {"regions": {"a": {"mask": given}}})
    roots = {"data": params.data_path / "masks", "project": project_root() / "masks", "home": tmp_path / "home"}
    path, files = roots[where] / "mine.nii.gz", runs.locate_runs(params)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"one")
    before = done.made_from(params, files, STEPS)
    assert done.made_from(params, files, STEPS) == before
    path.write_bytes(b"other")
    assert done.made_from(params, files, STEPS)[STEPS[0]]["inputs"] != before[STEPS[0]]["inputs"]


def test_the_mask_image_is_among_the_inputs_that_results_are_named_after(project):
    """`Subject.result_key` is made of these: tables of the voxels of another mask are not read again."""
    params = project("x = 1", "x = 2").model_copy(update={"mask": "mine.nii.gz"})
    files = runs.locate_runs(params)
    with pytest.raises(ParameterError, match="got 'mine.nii.gz' - no such file"):
        prepare.input_md5(params, files)
    (params.data_path / "mine.nii.gz").write_bytes(b"one")
    assert prepare.input_md5(params, files)["mine.nii.gz"] == file_md5(params.data_path / "mine.nii.gz")
    assert "mine.nii.gz" not in prepare.input_md5(params.model_copy(update={"mask": "brain"}), files)
