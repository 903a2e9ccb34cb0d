"""A subject's models from training to the repository and back: the same rows, one subject's own, and new sound."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import soundfile
from refusals import in_process

from bold_audio import bundle, done, film, models, serving, workflow
from bold_audio.files import DataError, ModelError, ParameterError
from bold_audio.new_sound import predict_sound
from bold_audio.params import load_params
from bold_audio.schema import MODEL_KINDS
from bold_audio.server import TritonServer, install
from bold_audio.simulate import simulate_subject

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]

QUICK = {"delays": [4.0, 5.0, 6.0], "mlp_delays": [5.0], "max_epochs": 10, "history_order": 2, "sweep_fwhm": 0}


@pytest.fixture
def subject(small_params):
    """Function: the small simulated subject with these parameters."""
    return lambda **given: workflow.open_subject(small_params(**(QUICK | given)))


@pytest.fixture(scope="module")
def known(sim_dir, tmp_path_factory):
    """Function: the same with its network exported, for tests that only ask what is there."""
    folder = tmp_path_factory.mktemp("known")
    folders = {"data_dir": str(sim_dir), "outputs_dir": str(folder / "outputs"), "models_dir": str(folder / "models")}

    def made(**given):
        return workflow.open_subject(load_params("sim", **(folders | QUICK | given)))

    workflow.ensure_export(made())
    return made


def exported_row(one, kind, **options):
    version, _ = workflow.ensure_export(one, kind)
    return workflow.served_row(one, workflow.open_exported(one, kind, version=version, **options))


def predicted(one, row):
    return [
        models.predict_row(one, row, one.split.test, kind, fitted_on=one.split.train)
        for kind in ("one_step", "open_loop")
    ]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("target", ["whitened", "difference", "volume"])
def test_exported_network_is_the_row_of_the_trained_one(subject, target, runtime):
    one = subject(target=target)
    model, facts, _, _ = workflow.ensure_mlp(one)
    history = workflow.fit_linear_rows(one, facts["delay"], names=("history",))["history"]
    trained = workflow.trained_row(one, model, facts, history=history)
    for returns in ("voxels", "coordinates"):
        row = exported_row(one, "mlp", runtime=runtime, returns=returns)
        assert row.reference == trained.reference
        for made, expected in zip(predicted(one, row), predicted(one, trained), strict=True):
            np.testing.assert_allclose(made, expected, rtol=1e-5)


@pytest.mark.parametrize("components", [0, 2])
def test_exported_history_sound_is_the_row_of_the_table(subject, components):
    one = subject(history_components=components)
    found = workflow.ensure_sweep(one)
    name = "history_sound"
    fitted = workflow.fit_linear_rows(one, found.delay, follows=found.follows, names=(name,))[name]
    for returns in ("voxels", "coordinates"):
        row = exported_row(one, name, returns=returns)
        assert row.reference == "history"
        for made, expected in zip(predicted(one, row), predicted(one, fitted), strict=True):
            np.testing.assert_allclose(made, expected, rtol=2e-5)


def test_network_with_previous_volumes_is_exported_with_them(subject):
    one = subject(target="difference", mlp_history=2, mlp_history_components=3)
    model, facts, _, _ = workflow.ensure_mlp(one)
    trained = workflow.trained_row(one, model, facts)
    made, expected = (predicted(one, row)[0] for row in (exported_row(one, "mlp"), trained))
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_exported_once_and_again_when_something_changes(subject):
    one = subject()
    first = [workflow.ensure_export(one, kind) for kind in MODEL_KINDS]
    assert [version for version, _ in first] == [1, 1] and all(d <= 1e-5 for _, d in first)
    assert [workflow.ensure_export(one, kind) for kind in MODEL_KINDS] == [(1, None)] * 2
    recorded = json.loads(one.path("provenance.json").read_text())["export_mlp"]
    one.path("provenance.json").write_text("{}")  # killed between the export and its record
    workflow.ensure_export(one, "mlp")
    again = json.loads(one.path("provenance.json").read_text())["export_mlp"]
    assert recorded["max_difference"] == first[MODEL_KINDS.index("mlp")][1]
    assert again | {"finished": ""} == recorded | {"finished": ""}
    other = subject(history_order=3)
    assert workflow.ensure_export(other, "mlp")[0] == 2
    with pytest.raises(ModelError, match="version 1 exists"):
        workflow.ensure_export(subject(history_order=3, model_version=1), "mlp")
    again = subject(history_order=3, model_version=1, overwrite_model=True)
    assert workflow.ensure_export(again, "mlp")[0] == 1
    assert {p.name for p in (one.params.resolve(one.params.models_dir)).iterdir()} == {
        "sim_sub-sim",
        "sim_sub-sim_history_sound",
    }


@pytest.mark.thorough
def test_other_shapes_are_exported_beside_and_each_is_opened_by_its_own_run(subject):
    small, large = subject(n_mfcc=5), subject()
    for one, name in ((large, "sim_sub-sim"), (small, "sim_sub-sim_2"), (large, "sim_sub-sim")):
        for kind, ending in (("mlp", ""), ("history_sound", "_history_sound")):
            assert workflow.ensure_export(one, kind)[0] == 1
            predictor = workflow.open_exported(one, kind)
            assert predictor.facts["model_name"] == name.replace("sim_sub-sim", f"sim_sub-sim{ending}")
            assert len(serving.network_inputs(one, predictor.facts)) == len(one.Y)
    with pytest.raises(ModelError, match="choose another model_name"):
        workflow.ensure_export(subject(n_mfcc=5, model_name="sim_sub-sim"), "mlp")
    files = set(done.snapshot(small.params))
    assert any("sim_sub-sim_2/1/model.onnx" in path for path in files)


@pytest.mark.thorough
def test_damaged_version_is_exported_again_and_overwriting_writes_no_further_one(subject):
    one = subject()
    workflow.ensure_export(one)
    folder = one.params.resolve(one.params.models_dir) / "sim_sub-sim"
    assert workflow.ensure_export(subject(overwrite_model=True)) == (1, None)  # it is there, and whole
    (folder / "1/bundle.npz").write_bytes(b"")
    assert workflow.ensure_export(one)[0] == 2
    (folder / "2/bundle.npz").write_bytes(b"")
    again = subject(overwrite_model=True)
    assert workflow.ensure_export(again)[0] == 1 and workflow.open_exported(again, version=1)
    assert bundle.versions_in(folder) == [1, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_fft": 1024}, "n_fft 2048, here it is 1024"),
        ({"hop_length": 256}, "hop_length 512, here it is 256"),
        ({"sample_rate": 22050}, "sample_rate 44100, here it is 22050"),
        ({"response": "delay"}, "response hrf, here it is delay"),
        ({"detrend": True}, "detrend False, here it is True"),
        ({"confounds": ["drift"]}, "confounds [], here it is ['drift']"),
        ({"smoothing_fwhm": 8.0}, "smoothing_fwhm 0.0, here it is 8.0"),
        ({"audio_onset": 1.0}, "onset of the sound (s) [0.0], here it is [1.0]"),
    ],
)
def test_model_is_not_given_what_was_made_in_another_way(known, change, says):
    other = known(**change, allow_other_subject=True)  # the mask may have changed with it; it is not what is refused
    with pytest.raises(ModelError) as refused:
        serving.network_inputs(other, workflow.open_exported(other).facts)
    assert f"the model was made with {says} - set what it was made with, or train" in str(refused.value)


def test_all_runtimes_are_laid_side_by_side(subject):
    one = subject()
    exported = {kind: workflow.ensure_export(one, kind) for kind in MODEL_KINDS}
    table = workflow.compare_runtimes(one, exported, runtimes=["torch", "onnxruntime"])
    assert len(table) == 2 * 2 * 2 and set(table["model"]) == set(MODEL_KINDS)
    assert table["difference"].max() <= 1e-5 and (table["seconds"] > 0).all()


def test_calls_are_timed_by_the_volumes_that_are_really_in_them(subject):
    one = subject()
    version, _ = workflow.ensure_export(one, "mlp")
    predictor = workflow.open_exported(one, "mlp", version=version)
    n = len(one.split.test)
    table = workflow.time_calls(one, predictor, sizes=(1, 8, n + 50), repeats=2)
    assert list(table.index) == [1, 8, n] and table.index.name == "volumes per call"


# --- another person's model ---------------------------------------------------------------


@pytest.fixture
def other_params(small_params, sim_dir, tmp_path):
    """Function: parameters of a second person in a head of the same grid, with the first one's models."""
    folder = tmp_path / "two"
    for label, seed in (("sim", 0), ("b", 5)):
        simulate_subject(folder, subject=label, seed=seed, shape=(18, 22, 22))
    params = small_params(data_dir=str(folder), **QUICK)
    name = params.exported_name
    return params, lambda **given: params.model_copy(update={"subject": "b", "model_name": name} | given)


def test_another_persons_model_is_refused_unless_asked_for(other_params):  # M04
    params, of_b = other_params
    workflow.ensure_export(workflow.open_subject(params), "mlp")
    b = workflow.open_subject(of_b())
    predictor = workflow.open_exported(b, "mlp", version=1)
    with pytest.raises(
        ModelError, match="trained on sub-sim with mask .*, this is sub-b .* or set allow_other_subject"
    ):
        workflow.served_row(b, predictor)
    b = workflow.open_subject(of_b(allow_other_subject=True))
    history = workflow.fit_linear_rows(b, 5.0, names=("history",))["history"]
    row = workflow.served_row(b, predictor, history=history)
    made, past = (predicted(b, one)[0] for one in (row, history))
    mine, theirs = b.run.mask, predictor.bundle.arrays["mask"]
    both = theirs[mine]
    assert 0 < both.sum() < len(both), "the two heads differ"
    assert np.array_equal(made[:, ~both], past[:, ~both]), "where the model has no voxel, the past alone"
    assert np.abs(made[:, both] - past[:, both]).max() > 0.1
    s = np.zeros((len(b.Y), mine.sum()), np.float32)
    X = serving.network_inputs(b, predictor.facts)
    inside = np.isfinite(X).all(axis=1)
    s[np.ix_(inside, both)] = (predictor(X[inside]) - predictor.bundle.arrays["sound_level"])[:, mine[theirs]]
    test = b.split.test
    expected = past + s[test]
    for lag, phi in enumerate(history.phi, start=1):
        expected -= phi.astype(np.float32) * s[test - lag]
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_another_persons_whole_volumes_cannot_be_carried_over(other_params):
    params, of_b = other_params
    workflow.ensure_export(workflow.open_subject(params), "history_sound")
    b = workflow.open_subject(of_b(allow_other_subject=True))
    with pytest.raises(ModelError, match="predicts whole volumes of the voxels it was fitted on"):
        workflow.served_row(b, workflow.open_exported(b, "history_sound", version=1))


# --- new sound ----------------------------------------------------------------------------


@pytest.fixture
def other_sound(tmp_path):
    """Half a minute of noise that swells and fades."""
    rng, rate = np.random.default_rng(8), 44100
    t = np.arange(30 * rate) / rate
    path = tmp_path / "other film.wav"
    soundfile.write(path, 0.2 * rng.normal(size=len(t)) * (0.2 + np.sin(2 * np.pi * t / 9) ** 2), rate)
    return path


def test_new_sound_is_the_mean_volume_and_what_the_network_says(subject, other_sound):
    one = subject(response="delay")
    workflow.ensure_export(one)
    predictor = workflow.open_exported(one)
    volumes, heard, _ = predict_sound(predictor, other_sound)
    assert len(volumes) == int(30 / 0.608) and heard.sum() == len(volumes) - int(np.ceil(5.0 / 0.608))
    mean = one.Y[one.split.train].mean(axis=0)
    np.testing.assert_allclose(volumes[~heard], np.tile(mean, ((~heard).sum(), 1)), rtol=1e-6)
    arrays = predictor.bundle.arrays
    # The film itself, heard again: what the network said of the run's own volumes.
    again, heard, _ = predict_sound(predictor, one.params.audio_files[0])
    rows = np.arange(100, 140)
    expected = mean + predictor(serving.network_inputs(one, predictor.facts)[rows]) - arrays["sound_level"]
    assert heard[rows].all()
    np.testing.assert_allclose(again[rows], expected, rtol=1e-5)


def test_new_sound_for_history_sound_lives_on_its_own_predictions(subject, other_sound):
    one = subject(response="delay")
    workflow.ensure_export(one, "history_sound")
    predictor = workflow.open_exported(one, "history_sound")
    volumes, heard, _ = predict_sound(predictor, other_sound)
    fitted, _ = models.fit_subject(
        one, predictor.facts["delay"], follows=workflow.ensure_sweep(one).follows, names=("history_sound",)
    )["history_sound"]
    first = int(np.argmax(heard))
    assert first >= 2
    k = first + 10
    X = other_features(predictor.facts, other_sound, len(volumes))
    expected = fitted.intercept + X[k] @ fitted.weights + sum(p * volumes[k - 1 - i] for i, p in enumerate(fitted.phi))
    np.testing.assert_allclose(volumes[k], expected, rtol=1e-5)


def other_features(facts, path, n_volumes):
    from bold_audio import features, pairing

    settings = {name: facts[name] for name in ("sample_rate", "n_mfcc", "n_fft", "hop_length")}
    sound = features.mfcc_features(path, **settings)
    design = pairing.make_design(sound, np.arange(n_volumes) * facts["t_r"], facts["t_r"])
    return (design.at(facts["delay"]) - np.array(facts["feature_mean"])) / np.array(facts["feature_scale"])


def test_predict_command_writes_a_run_that_says_it_is_no_scan(subject, other_sound, tmp_path, capsys):
    one = subject(response="delay")
    workflow.ensure_export(one)
    given = [w for n in ("data_dir", "outputs_dir", "models_dir") for w in ("-p", n, getattr(one.params, n))]
    out = tmp_path / "made.nii.gz"
    options = ["--subject", "sim", "--model-version", 1, "--sound", other_sound, "--out", out, *given]
    status, said = in_process(capsys, "predict", *options)
    assert status == 0 and "without a scan" in said.out and "are the mean volume" in said.out
    image = nib.load(out)
    volumes, _, _ = predict_sound(workflow.open_exported(one), other_sound)
    assert np.allclose(image.affine, one.run.affine) and image.header.get_zooms()[3] == pytest.approx(0.608)
    data = image.get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(data[one.run.mask].T, volumes)
    assert not data[~one.run.mask].any()
    about = json.loads((tmp_path / "made.json").read_text())
    assert "no scan" in about["Description"] and about["Sound"] == "other film.wav" and about["Delay"] == 5.0
    status, said = in_process(capsys, "predict", *options[:3], 7, *options[4:])
    assert status == 6 and "no model sim_sub-sim version 7" in said.err
    status, said = in_process(capsys, "predict", "--subject", "sim", "--sound", tmp_path / "none.wav", *given)
    assert status == 3 and "no sound file at" in said.err


def test_new_sound_of_a_lower_rate_than_the_models_is_refused_not_heard_otherwise(known, other_sound, tmp_path):
    y, rate = soundfile.read(other_sound)
    soundfile.write(tmp_path / "slow.wav", y[::4], rate // 4)
    with pytest.raises(DataError, match="slow.wav holds 11025 samples a second .* give the sound with 44100 or more"):
        predict_sound(workflow.open_exported(known()), tmp_path / "slow.wav")


def test_new_sound_unlike_any_in_train_is_told(subject, tmp_path, capsys):
    one = subject(response="delay")
    workflow.ensure_export(one)
    predictor = workflow.open_exported(one)
    *_, warnings = predict_sound(predictor, one.params.audio_files[0])
    assert warnings == []
    soundfile.write(tmp_path / "another.wav", film.film_sound(150, seed=5003), film.SAMPLE_RATE)
    assert predict_sound(predictor, tmp_path / "another.wav")[2] == []  # ordinary, with moments that are far
    y, rate = soundfile.read(one.params.audio_files[0])
    soundfile.write(tmp_path / "stops.wav", np.r_[y[: 20 * rate], np.zeros(20 * rate)], rate)
    *_, warnings = predict_sound(predictor, tmp_path / "stops.wav")
    assert any(
        "standard deviations from the mean of train: the model was never given such sound" in w for w in warnings
    )
    given = [w for n in ("data_dir", "outputs_dir", "models_dir") for w in ("-p", n, getattr(one.params, n))]
    status, said = in_process(capsys, "predict", "--subject", "sim", "--sound", tmp_path / "stops.wav", *given)
    assert status == 0 and "stops.wav: " in said.out and "never given such sound" in said.out
    (made,) = (one.params.subject_path / "new_sounds").glob("*.nii.gz")
    assert made.name == "sub-sim_task-stops_desc-mlpV1NewSound_bold.nii.gz"
    about = json.loads(made.with_name(made.name.replace(".nii.gz", ".json")).read_text())
    assert about["BundleHash"] == predictor.facts["bundle_hash"] and about["Warnings"] == warnings


@pytest.mark.thorough
@pytest.mark.parametrize("how", [{}, {"response": "fir", "sound_lags": 2}, {"response": "delay", "target": "volume"}])
def test_client_of_the_documentation_gives_what_the_package_gives(subject, how):
    """The code of docs/serving.md as it stands there, against a real server."""
    one = subject(**how)
    files, models_dir = one.run.files, one.params.resolve(one.params.models_dir)
    (written,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(encoding="utf-8"), re.DOTALL)
    for kind in MODEL_KINDS:
        workflow.ensure_export(one, kind)
    with TritonServer(models_dir, folder=install()) as running:
        for kind in MODEL_KINDS:
            predictor, code = workflow.open_exported(one, kind), written
            changes = {"ds003688_sub-09": predictor.facts["model_name"], "127.0.0.1:8001": running.url("grpc")}
            for old, new in (changes | {"triton_models": str(models_dir)}).items():
                assert old in code
                code = code.replace(old, new)
            exec(code, client := {})
            X = client["features_of"](one.params.audio_files[0], len(one.Y), onset=files.onset)
            heard = np.isfinite(expected := serving.network_inputs(one, predictor.facts)).all(axis=1)
            assert np.array_equal(np.isfinite(X).all(axis=1), heard)
            np.testing.assert_allclose(X[heard], expected[heard], atol=1e-4)
            Y = client["volumes_of"](files.bold)
            assert np.array_equal(Y, one.Y)
            row = workflow.served_row(one, predictor)
            volumes = models.predict_row(one, row, one.split.test, "one_step", fitted_on=one.split.train)
            for k, expected in zip(one.split.test[:3], volumes, strict=False):
                if kind == "history_sound":
                    previous = np.stack([Y[k - lag] for lag in range(1, predictor.facts["n_previous"] + 1)])[None]
                    made = client["ask"](X[k : k + 1], previous)[0]
                elif predictor.facts["target"] == "whitened":
                    made = client["predict_whitened"](Y, X, k)
                else:
                    made = client["ask"](X[k : k + 1])[0]
                np.testing.assert_allclose(made, expected, rtol=1e-4)


def test_sound_too_short_to_be_heard_is_refused(subject, tmp_path):
    one = subject(response="delay")
    workflow.ensure_export(one)
    soundfile.write(tmp_path / "short.wav", 0.1 * np.random.default_rng(0).normal(size=3 * 44100), 44100)
    with pytest.raises(DataError, match="no volume is covered by 3.0 s of sound at a delay of 5 s"):
        predict_sound(workflow.open_exported(one), tmp_path / "short.wav")


def test_model_of_annotations_hears_no_sound_file(known, other_sound):
    predictor = workflow.open_exported(known())
    facts = predictor.facts | {"feature_source": "annotations"}
    told = type(predictor)(bundle.Bundle(predictor.bundle.folder, facts, predictor.bundle.arrays), predictor.run)
    with pytest.raises(ParameterError, match="the model hears annotations, not a sound file"):
        predict_sound(told, other_sound)
