"""A subject's notebooks one after the other: what is kept of a run that goes well, that fails, and that is stopped."""

import json
from types import SimpleNamespace

import nbformat
import pytest
from bs4 import BeautifulSoup

from bold_audio import execution, fetch, prepare, runs
from bold_audio.execution import StepError, run_step, run_subject
from bold_audio.files import AccessError, DataError

STEPS = ["00_data_download", "01_mfcc_exploration"]
GOOD = "import ipywidgets\nipywidgets.IntSlider()"
FORESEEN = "from bold_audio.files import DataError\nraise DataError('the scan is short - set allow_short')"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose notebooks have one cell each; function to write them."""
    for part in ("params", "notebooks"):
        (tmp_path / part).mkdir()
    (tmp_path / "params/common.yaml").write_text("")
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(tmp_path))
    monkeypatch.setattr(fetch, "fetch_missing", lambda params: None)
    monkeypatch.setattr(runs, "locate_runs", lambda params: None)
    monkeypatch.setattr(prepare, "input_md5", lambda params, files: {"scan.nii.gz": "d41d8"})

    def write(*sources):
        for step, source in zip(STEPS, sources, strict=True):
            made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
            made.cells = [nbformat.v4.new_markdown_cell(f"# {step}"), nbformat.v4.new_code_cell(source)]
            nbformat.write(made, tmp_path / "notebooks" / f"{step}.ipynb")
        folder = tmp_path / "outputs/sim/sub-sim"
        folder.mkdir(parents=True)
        return SimpleNamespace(subject_path=folder, subject="sim", label="sim", data_note="SIMULATED")

    return write


def status(params):
    return json.loads((params.subject_path / "status.json").read_text())


def text(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").get_text(" ")


@pytest.mark.slow
def test_run_that_goes_well_is_stamped_and_listed(project):
    params, said = project(GOOD, "1 + 1"), []
    index = run_subject(params, STEPS, {}, say=said.append)
    assert [line.split()[1] for line in said] == STEPS
    assert status(params)["state"] == "done" and status(params)["steps"] == STEPS
    executed = nbformat.read(params.subject_path / f"{STEPS[0]}.ipynb", as_version=4)
    stamp = executed.metadata["bold_audio"]
    assert stamp["input_md5"] == {"scan.nii.gz": "d41d8"} and "numpy" in stamp["packages"]
    # The widget's view and state are gone: its kernel is.
    assert executed.cells[-1].outputs == [] and "widgets" not in executed.metadata
    assert executed.cells[-1].execution_count == 1
    assert "MD5 of scan.nii.gz" in text(index.parent / f"{STEPS[0]}.html")
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
def test_kernel_that_dies_says_so_on_its_page(project):
    params = project("import os; os._exit(9)", "1 + 1")
    with pytest.raises(StepError, match="its kernel died - check the memory"):
        run_subject(params, STEPS, {}, say=lambda line: None)
    page = " ".join(text(params.subject_path / f"report/{STEPS[0]}.html").split())
    assert "its kernel died" in page and "What to do: check the memory" in page


@pytest.mark.slow
def test_second_run_that_goes_well_forgets_the_failure(project):
    params = project(FORESEEN, "1 + 1")
    with pytest.raises(StepError):
        run_subject(params, STEPS, {}, say=lambda line: None)
    source = params.subject_path.parents[2] / f"notebooks/{STEPS[0]}.ipynb"
    source.write_text(source.read_text().replace("raise DataError", "print"))
    index = run_subject(params, STEPS, {}, say=lambda line: None)
    for page in (index, index.parent / f"{STEPS[0]}.html"):
        assert BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select_one(".failure") is None
    assert "0 of them failed" in text(index.parents[2] / "index.html")


def test_subject_that_cannot_be_fetched_is_listed_with_the_reason(project, monkeypatch):
    def refuse(params):
        raise AccessError("the server says no - look at the token")

    params = project("1", "1")
    monkeypatch.setattr(fetch, "fetch_missing", refuse)
    with pytest.raises(AccessError):
        run_subject(params, STEPS, {}, say=lambda line: None)
    assert (status(params)["state"], status(params)["step"]) == ("failed", "fetch")
    assert "fetch: the server says no - look at the token" in text(params.subject_path.parent / "index.html")


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
def test_error_that_nobody_foresaw_names_the_notebook_and_its_traceback(project):
    params = project("[][1]", "1")
    with pytest.raises(StepError, match="00_data_download failed with IndexError: .* - the traceback is in ") as failed:
        run_step(STEPS[0], params.subject_path, {})
    assert failed.value.exit_code == 1
