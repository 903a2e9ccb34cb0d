"""A subject's predictions kept for viewers, and the page that opens them."""

import json
from pathlib import Path

import numpy as np
import pytest

from bold_audio import files, prepare, viewed, viewer, workflow
from bold_audio import params as params_module
from bold_audio.files import DataError

NAMES = ("copy_previous", "sound", "history", "history_sound")
DELAY = 5.75  # s; between the two that were planted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject(sim_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    given = {"data_dir": str(sim_dir), "outputs_dir": str(folder), "models_dir": str(folder / "models")}
    return prepare.open_subject(params_module.load_params("sim", **given))


@pytest.fixture(scope="module")
def rows(subject):
    return workflow.fit_linear_rows(subject, DELAY, names=NAMES)


@pytest.fixture(scope="module")
def kept(subject, rows):
    return viewed.keep_predictions(subject, rows)


def test_kept_predictions_are_those_of_the_rows(subject, rows, kept):
    assert list(kept["predictions"]) == [(name, kind) for name in NAMES for kind in ("one_step", "open_loop")]
    assert np.array_equal(kept["volumes"], subject.split.test)
    for (name, kind), values in kept["predictions"].items():
        made = workflow.predict_row(subject, rows[name], subject.split.test, kind, fitted_on=subject.split.train)
        assert isinstance(values, np.memmap)
        assert np.array_equal(values, made.astype(np.float32))
    copied = kept["predictions"]["copy_previous", "one_step"]
    assert np.array_equal(copied, subject.Y[subject.split.test - 1])
    again = viewed.kept_predictions(subject)
    assert np.array_equal(again["predictions"]["sound", "one_step"], kept["predictions"]["sound", "one_step"])


def test_predictions_of_another_scan_are_refused(subject, kept):
    path = viewed.kept_folder(subject.params) / viewed.ABOUT
    about = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(about) | {"made_of": "other"}))
        with pytest.raises(
            DataError, match="of another scan or parameters, or another version made them - run notebook 06"
        ):
            viewed.kept_predictions(subject)
        path.unlink()
        with pytest.raises(DataError, match="no predictions are kept - run notebook 06"):
            viewed.kept_predictions(subject)
    finally:
        path.write_text(about)


@pytest.mark.parametrize("module", ["choices", "encoding", "mlp", "models", "ridge", "serving", "viewed"])
def test_predictions_by_other_code_are_refused(subject, kept, monkeypatch, module):
    path, read = Path(viewed.__file__).with_name(f"{module}.py"), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda one: read(one) + (b"CHANGED = 1\n" if one == path else b""))
    with pytest.raises(DataError, match="another version made them - run notebook 06"):
        viewed.kept_predictions(subject)


@pytest.mark.parametrize("other", [{"confounds": ["drift"]}, {"n_mfcc": 5}, {"history_components": 3}])
def test_predictions_of_other_parameters_are_refused(subject, kept, other):
    """Of the same scan, mask and test volumes: cleaned otherwise, with other features, by another model."""
    opened = prepare.open_subject(subject.params.model_copy(update=other))
    assert opened.Y.shape == subject.Y.shape and np.array_equal(opened.split.test, subject.split.test)
    with pytest.raises(DataError, match="of another scan or parameters"):
        viewed.kept_predictions(opened)
    again = prepare.open_subject(subject.params.model_copy(update={"runtime": "torch"}))  # changes no result
    assert viewed.kept_predictions(again)["predictions"].keys() == kept["predictions"].keys()


def test_what_notebook_06_always_writes_can_be_looked_at(subject, kept, monkeypatch):
    moved = viewed.kept_folder(subject.params)
    monkeypatch.setattr(viewed, "kept_folder", lambda params: moved / "nowhere")
    made = np.asarray(kept["predictions"]["history_sound", "open_loop"])
    facts = {"kind": "history_sound", "prediction": "open_loop", "parameters": subject.params.model_dump()}
    facts["input_md5"] = subject.input_md5
    files.write_json(subject.path("provenance.json"), {"inference": facts})
    path = subject.path("y_test_pred.npy")
    try:
        np.save(path, made)
        found = viewed.kept_predictions(subject)
        assert list(found["predictions"]) == [("history_sound", "open_loop")]
        assert np.array_equal(found["predictions"]["history_sound", "open_loop"], made)
        assert np.array_equal(found["volumes"], subject.split.test)
        (one,) = viewed.kept_subjects(subject.params)
        assert params_module.load_params(one["subject"], one["dataset"], **one["given"]) == subject.params
        np.save(path, made[1:])
        with pytest.raises(DataError, match="y_test_pred.npy is of another scan"):
            viewed.kept_predictions(subject)
        np.save(path, made)
        for other in ({"parameters": facts["parameters"] | {"n_mfcc": 5}}, {"input_md5": {"film.wav": "another"}}):
            files.write_json(subject.path("provenance.json"), {"inference": facts | other})
            with pytest.raises(DataError, match="y_test_pred.npy is of another scan or parameters"):
                viewed.kept_predictions(subject)
    finally:
        path.unlink()
        subject.path("provenance.json").unlink()


def test_the_viewer_of_a_subject_has_its_sound_and_says_simulated(subject, kept):
    shown = viewer.subject_viewer(subject, kept)
    assert shown.about["sound"] is True
    assert "SIMULATED" in shown.about["title"] + shown.about["note"]
    assert shown.about["models"] == list(NAMES)
    track = shown._sound.track
    assert (track.onset, track.duration) == (subject.run.files.onset, pytest.approx(389.7, abs=0.1))


def test_the_page_opens_what_was_kept(subject, kept, monkeypatch):
    monkeypatch.setattr(viewer, "load_params", lambda *given, **more: subject.params)
    page = viewer.app()
    choice, said, shown = page.children
    assert [name for name, _ in choice.options] == ["sim, sub-sim"]
    assert said.value == ""
    assert shown.children[0].about["models"] == list(NAMES)
    # What was not in the parameter files is kept, so that the same subject is opened.
    (one,) = viewed.kept_subjects(subject.params)
    assert params_module.load_params(one["subject"], one["dataset"], **one["given"]) == subject.params


def test_the_page_says_what_to_do_where_nothing_was_kept(monkeypatch, small_params):
    monkeypatch.setattr(viewer, "load_params", lambda *_: small_params())
    assert "run <code>make demo</code>" in viewer.app().value


@pytest.mark.parametrize("error", [DataError("the scan is gone - fetch it"), FileNotFoundError("sound-one_step.npy")])
def test_the_page_says_why_a_subject_cannot_be_opened(subject, kept, monkeypatch, error):
    monkeypatch.setattr(viewer, "load_params", lambda *_, **__: subject.params)

    def broken(_):
        raise error

    monkeypatch.setattr(viewer.viewed, "kept_predictions", broken)
    _, said, shown = viewer.app().children
    assert said.value.endswith(str(error)) and not shown.children
