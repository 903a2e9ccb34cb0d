"""The exported model: whole or absent, the same numbers as torch, and refused where it does not fit."""

import hashlib
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from refusals import Bomb
from tritonclient.grpc import model_config_pb2

from bold_audio import export, served
from bold_audio.bundle import (
    check_fits,
    facts_hash,
    find_same_model,
    fitting_name,
    folders_of,
    mask_fingerprint,
    next_version,
    open_bundle,
    versions_in,
)
from bold_audio.encoding import LinearModel
from bold_audio.export import export_model
from bold_audio.files import ModelError, ParameterError, file_md5, read_json, write_json
from bold_audio.locking import EXPORT_LOCK, lock
from bold_audio.mlp import AudioFmriMLP, mlp_output, save_checkpoint
from bold_audio.runtimes import Predictor, open_predictor
from bold_audio.space import Space, SpatialHistory

pytestmark = pytest.mark.slow

NAME = "ds003688_sub-09"
N_FEATURES, N_VOXELS = 5, 30
MASK = np.zeros((4, 4, 4), bool)
MASK.flat[:N_VOXELS] = True
FACTS = {"kind": "mlp", "delay": 4.5, "subject": "09", "n_inputs": N_FEATURES, "n_previous": 0, "mask_hash": "a1b2"}
FACTS |= {"target": "difference", "mask_shape": [4, 4, 4]}
EXTRA = {"mask": MASK, "mean_volume": np.linspace(800, 1200, N_VOXELS)}
FILES = {"model.onnx", "best_dt.txt", "bundle.json", "bundle.npz"}


def network(**given):
    """A network with some weights, which an untrained one has not in its last layer."""
    net = AudioFmriMLP(N_FEATURES, N_VOXELS, **given).eval()
    torch.nn.init.normal_(net.net[-1].weight)
    torch.nn.init.normal_(net.net[-1].bias)
    return net


def linear_model(order=2, *, space=False):
    """A linear model with some weights, as `encoding.fit_linear` makes them."""
    rng = np.random.default_rng(3)
    found = None
    if space:
        parts = Space(*(rng.normal(size=size).astype(np.float32) for size in ((N_VOXELS,), (N_VOXELS, 2))))
        found = SpatialHistory(parts, rng.normal(size=(2, N_VOXELS)).astype(np.float32))
    phi, weights = 0.3 * rng.normal(size=(order, N_VOXELS)), rng.normal(size=(N_FEATURES, N_VOXELS))
    return LinearModel(rng.normal(size=N_VOXELS), phi, weights, np.ones(N_VOXELS), found)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return network(hidden_dims=[8, 4], dropout=0.5)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("training") / "best.ckpt"
    save_checkpoint(path, model, FACTS)
    return path


@pytest.fixture(scope="module")
def exported(model, checkpoint, tmp_path_factory):
    """A repository with version 1; tests that change it take ``models_dir``, a copy."""
    repository = tmp_path_factory.mktemp("triton_models")
    write_version(model, repository, 1, checkpoint_md5=file_md5(checkpoint))
    return repository


@pytest.fixture
def models_dir(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "triton_models")


def contents(folder):
    """Every path below a folder but locks, hidden ones too, with what it holds."""
    return {
        str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
        if not p.name.endswith("lock")
    }


def opened(models_dir, checkpoint="nowhere", *, runtime="onnxruntime", version=1, **options):
    return open_predictor(runtime, models_dir=models_dir, name=NAME, version=version, checkpoint=checkpoint, **options)


def write_version(model, models_dir, version, *, overwrite=False, source="a training", extra=EXTRA, **facts):
    network = served.from_mlp(model) if isinstance(model, AudioFmriMLP) else served.from_linear(model)
    where = {"models_dir": models_dir, "name": NAME, "version": version}
    return export_model(network, FACTS | facts, extra=extra, source=source, overwrite=overwrite, **where)


# --- writing ------------------------------------------------------------------------------


def test_exporting_says_nothing(model, tmp_path, capfd):
    write_version(model, tmp_path, 1)
    assert capfd.readouterr() == ("", "")


def test_version_holds_model_delay_and_bundle_and_nothing_else(exported, checkpoint):
    folder = exported / NAME / "1"
    known = {NAME, f"{NAME}/config.pbtxt", f"{NAME}/1"} | {f"{NAME}/1/{name}" for name in FILES}
    assert set(contents(exported)) == known
    assert (folder / "best_dt.txt").read_text() == "4.5\n"
    facts = read_json(folder / "bundle.json")
    assert FACTS.items() <= facts.items()
    assert (facts["model_name"], facts["model_version"]) == (NAME, 1)
    assert (facts["n_inputs"], facts["n_voxels"], facts["n_coordinates"], facts["opset"]) == (
        N_FEATURES,
        N_VOXELS,
        4,
        18,
    )
    assert facts["checkpoint_md5"] == file_md5(checkpoint)
    assert facts["onnx_md5"] == file_md5(folder / "model.onnx")
    assert facts["arrays_md5"] == file_md5(folder / "bundle.npz")


def test_existing_version_is_refused_and_left_as_it_is(model, models_dir):
    before = contents(models_dir)
    with pytest.raises(ModelError, match=f"{NAME} version 1 exists - choose another .* or set overwrite_model"):
        write_version(model, models_dir, 1, delay=6.0)
    assert contents(models_dir) == before


def test_existing_version_is_replaced_when_told_to(model, models_dir):
    write_version(model, models_dir, 1, delay=6.0, overwrite=True)
    assert opened(models_dir).facts["delay"] == 6.0
    assert set(contents(models_dir / NAME)) == {"config.pbtxt", "1", *(f"1/{name}" for name in FILES)}


def test_any_version_number_and_the_next_one(model, models_dir):
    assert next_version(models_dir, "other") == 1
    assert next_version(models_dir, NAME) == 2
    folder, _ = write_version(model, models_dir, 41)
    assert folder == models_dir / NAME / "41"
    assert next_version(models_dir, NAME) == 42
    assert opened(models_dir, version=None).facts["model_version"] == 41
    (models_dir / NAME / "100").write_text("a file, but the number is taken")
    (models_dir / NAME / "200-old").mkdir()
    assert next_version(models_dir, NAME) == 101


def test_folders_that_are_no_versions_are_not_looked_at(model, models_dir):
    for name in ("1.bak", "02", "copy of 1", "0"):
        shutil.copytree(models_dir / NAME / "1", models_dir / NAME / name)
    write_version(model, models_dir, next_version(models_dir, NAME))
    assert versions_in(models_dir / NAME) == [1, 2] and find_same_model(models_dir, NAME, "a training") == 1
    assert "bundle_hash_2" in (models_dir / NAME / "config.pbtxt").read_text()


def test_the_version_asked_for_is_found_before_others_of_the_same_source(model, models_dir):
    for version in (5, 12):
        write_version(model, models_dir, version)
    found = {asked: find_same_model(models_dir, NAME, "a training", version=asked) for asked in (None, 1, 5, 12, 3)}
    assert found == {None: 1, 1: 1, 5: 5, 12: 12, 3: 1}


def test_models_of_other_shapes_have_names_of_their_own(models_dir):
    own, other = ({"features": N_FEATURES}, N_VOXELS), ({"features": N_FEATURES + 2}, N_VOXELS)
    assert fitting_name(models_dir, NAME, *own) == NAME
    assert fitting_name(models_dir, NAME, *other) == f"{NAME}_2"
    assert fitting_name(models_dir, NAME, *other, replaced=1) == NAME
    net = AudioFmriMLP(N_FEATURES + 2, N_VOXELS, hidden_dims=[4]).eval()
    facts = FACTS | {"n_inputs": N_FEATURES + 2}
    where = {"extra": EXTRA, "source": "s", "models_dir": models_dir, "name": f"{NAME}_2", "version": 1}
    export_model(served.from_mlp(net), facts, **where)
    assert fitting_name(models_dir, NAME, *other) == f"{NAME}_2"
    assert fitting_name(models_dir, NAME, {"features": N_FEATURES}, 7) == f"{NAME}_3"
    (models_dir / f"{NAME}_history_sound").mkdir()
    assert [path.name for path in folders_of(models_dir, NAME)] == [NAME, f"{NAME}_2"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("returns", ["voxels", "coordinates"])
def test_previous_volumes_come_as_rows_or_stacked_and_in_no_other_shape(tmp_path, runtime, returns):
    write_version(linear_model(), tmp_path, 1, kind="history_sound", n_previous=2)
    predictor, rng = opened(tmp_path, runtime=runtime, returns=returns), np.random.default_rng(5)
    X, previous = rng.normal(size=(4, N_FEATURES)), rng.normal(size=(4, 2, N_VOXELS))
    expected = predictor(X, previous)
    assert np.array_equal(predictor(X, previous.reshape(4, -1)), expected)
    assert np.array_equal(predictor(X[:1], previous[:1].reshape(1, -1)), predictor(X[:1], previous[:1]))
    for wrong in (previous.transpose(0, 2, 1), previous[:, :1], previous[:3], previous.ravel()):
        with pytest.raises(ModelError, match=r"previous volumes of shape \(4, 2, 30\), got .* nearest first"):
            predictor(X, wrong)
    assert predictor(X[:0], previous[:0]).shape == (0, N_VOXELS)
    assert predictor.coordinates(X[:0], previous[:0].reshape(0, 2 * N_VOXELS)).shape[0] == 0


def test_two_who_export_at_once_have_a_version_each(model, models_dir):
    home = models_dir / NAME
    with ThreadPoolExecutor(1) as pool:
        with lock(home / EXPORT_LOCK):
            waiting = pool.submit(write_version, model, models_dir, None)
            time.sleep(0.5)
            shutil.copytree(home / "1", home / "2")  # the other's
        folder, _ = waiting.result()
    assert folder == home / "3" and read_json(folder / "bundle.json")["model_version"] == 3


def test_version_made_from_the_same_is_found_again(model, models_dir):
    assert find_same_model(models_dir, NAME, "a training") == 1
    assert find_same_model(models_dir, NAME, "another") is None
    write_version(model, models_dir, 7, source="another")
    assert find_same_model(models_dir, NAME, "another") == 7
    (models_dir / NAME / "7/bundle.json").write_text("{")
    assert find_same_model(models_dir, NAME, "another") is None


def torch_off_by(monkeypatch, share, output):
    """Let torch be off by a share of the largest value, in one voxel (output 0) or one coordinate (1) of one volume."""
    plain = export._answer

    def answer(served, inputs):
        made = plain(served, inputs)
        wrong = made[output]
        at = np.unravel_index(np.abs(wrong).argmin(), wrong.shape)
        wrong[at] += share * np.abs(wrong).max()
        return made

    monkeypatch.setattr(export, "_answer", answer)


@pytest.mark.parametrize("output", [0, 1], ids=["voxels", "coordinates"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_runtimes_that_disagree_publish_nothing(model, models_dir, monkeypatch, overwrite, output):  # M12
    before = contents(models_dir)
    torch_off_by(monkeypatch, 1e-3, output)
    with pytest.raises(ModelError, match=r"torch and onnxruntime differ by 0\.001 - nothing was exported"):
        write_version(model, models_dir, 1 if overwrite else 2, overwrite=overwrite)
    assert contents(models_dir) == before


@pytest.mark.parametrize("output", [0, 1], ids=["voxels", "coordinates"])
def test_runtimes_that_differ_by_rounding_agree(model, models_dir, monkeypatch, output):
    torch_off_by(monkeypatch, 1e-6, output)
    _, difference = write_version(model, models_dir, 2)
    assert 5e-7 < difference < 5e-6


def test_network_that_answers_with_nan_publishes_nothing(tmp_path):
    broken = network(hidden_dims=[4])
    torch.nn.init.constant_(broken.net[-1].bias, float("nan"))
    with pytest.raises(ModelError, match="nothing was exported"):
        write_version(broken, tmp_path / "models", 1)
    assert [name for name in contents(tmp_path / "models") if name != NAME] == []


def test_export_that_dies_half_way_leaves_nothing(model, models_dir, monkeypatch):
    before = contents(models_dir)

    def disk_full(path, content):
        assert {p.name for p in path.parent.iterdir()} == FILES - {"bundle.json"} and not (
            models_dir / NAME / "2"
        ).exists()
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "write_json", disk_full)
    for version in (1, 2):
        with pytest.raises(OSError, match="no space left"):
            write_version(model, models_dir, version, overwrite=version == 1)
    assert contents(models_dir) == before


# --- the ONNX file ------------------------------------------------------------------------


def test_onnx_passes_the_full_check_and_names_what_it_takes_and_gives(exported):
    path = exported / NAME / "1/model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path).graph
    dims = {
        io.name: [d.dim_param or d.dim_value for d in io.type.tensor_type.shape.dim]
        for io in (*graph.input, *graph.output)
    }
    assert dims == {
        "features": ["batch", N_FEATURES],
        "voxels": ["batch", N_VOXELS],
        "coordinates": ["batch", "n_coordinates"],
    }
    assert {io.type.tensor_type.elem_type for io in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert not any(tensor.external_data for tensor in graph.initializer)


def test_onnx_carries_its_delay_name_and_bundle(exported):
    proto, facts = (onnx.load(exported / NAME / "1/model.onnx"), read_json(exported / NAME / "1/bundle.json"))
    said = {p.key: p.value for p in proto.metadata_props}
    assert said == {"delay": "4.5", "model_name": NAME, "bundle_hash": facts["bundle_hash"]}
    assert [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")] == [18]


def test_config_serves_all_versions_in_batches_and_names_their_bundles(model, models_dir):
    write_version(model, models_dir, 3)
    config = text_format.Parse((models_dir / NAME / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.default_model_filename) == (NAME, "onnxruntime", "model.onnx")
    assert {one.name: list(one.dims) for one in (*config.input, *config.output)} == {
        "features": [N_FEATURES],
        "voxels": [N_VOXELS],
        "coordinates": [-1],
    }
    assert config.version_policy.HasField("all") and config.HasField("dynamic_batching")
    assert config.max_batch_size == 64 * 2**20 // (4 * (N_FEATURES + N_VOXELS))
    for version in (1, 3):
        known = read_json(models_dir / NAME / str(version) / "bundle.json")["bundle_hash"]
        assert config.parameters[f"bundle_hash_{version}"].string_value == known
    assert len(config.parameters) == 2


def test_versions_of_one_model_take_and_give_the_same_shapes(models_dir):
    other = AudioFmriMLP(N_FEATURES + 2, N_VOXELS, hidden_dims=[4]).eval()
    before = contents(models_dir)
    with pytest.raises(
        ModelError, match="version 1 takes features 5 and gives 30 voxels, this model features 7 .* choose another"
    ):
        write_version(other, models_dir, 2, n_inputs=N_FEATURES + 2)
    assert contents(models_dir) == before
    write_version(other, models_dir, 1, n_inputs=N_FEATURES + 2, overwrite=True)
    assert opened(models_dir).facts["n_inputs"] == N_FEATURES + 2


@pytest.mark.parametrize("returns", ["voxels", "coordinates"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_runtimes_answer_as_the_network_for_any_batch(exported, checkpoint, model, batch, returns):
    X = np.random.default_rng(batch).normal(size=(batch, N_FEATURES))
    expected = mlp_output(model, X)
    for runtime in ("onnxruntime", "torch"):
        predictor = opened(exported, checkpoint, runtime=runtime, returns=returns)
        made = predictor(X)
        assert (made.shape, made.dtype) == ((batch, N_VOXELS), np.float32)
        assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()
        assert predictor.coordinates(X).shape == (batch, 4), "one for each unit of the last hidden layer"


@pytest.mark.parametrize("returns", ["voxels", "coordinates"])
@pytest.mark.parametrize("space", [False, True])
def test_linear_model_with_measured_previous_volumes(tmp_path, space, returns):
    linear, rng = linear_model(space=space), np.random.default_rng(5)
    write_version(linear, tmp_path, 1, kind="history_sound", target="volume", n_previous=2)
    X, previous = rng.normal(size=(9, N_FEATURES)), rng.normal(size=(9, 2, N_VOXELS))
    expected = linear.intercept + X @ linear.weights + (linear.phi * previous).sum(axis=1)
    if space:
        expected = expected + linear.space.space.scores(previous[:, 0]) @ linear.space.weights
    for runtime in ("onnxruntime", "torch"):
        predictor = opened(tmp_path, runtime=runtime, returns=returns)
        np.testing.assert_allclose(predictor(X, previous), expected, atol=1e-4)
        assert predictor.coordinates(X, previous).shape == (9, N_FEATURES)
        with pytest.raises(ModelError, match="takes features and previous, got features"):
            predictor(X)


def test_network_with_previous_volumes_among_its_inputs(tmp_path):
    net = AudioFmriMLP(N_FEATURES, N_VOXELS, hidden_dims=[6], n_past=N_VOXELS).eval()
    torch.nn.init.normal_(net.net[-1].weight)
    net.past_mean.normal_()
    save_checkpoint(tmp_path / "best.ckpt", net, FACTS)
    write_version(net, tmp_path / "models", 1, n_previous=1, checkpoint_md5=file_md5(tmp_path / "best.ckpt"))
    rng = np.random.default_rng(6)
    X, previous = rng.normal(size=(4, N_FEATURES)), rng.normal(size=(4, 1, N_VOXELS))
    for runtime in ("onnxruntime", "torch"):
        made = opened(tmp_path / "models", tmp_path / "best.ckpt", runtime=runtime)(X, previous)
        np.testing.assert_allclose(made, mlp_output(net, X, previous), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda made: made * np.nan, "numbers that are not finite"),
        (lambda made: made + np.inf, "numbers that are not finite"),
        (lambda made: made[:-1], "in shape"),
        (lambda made: made[:, :-1], "in shape"),
    ],
)
@pytest.mark.parametrize("returns", ["voxels", "coordinates"])
def test_answer_that_cannot_be_one_is_refused(exported, spoil, says, returns):
    whole = opened(exported, returns=returns)
    spoilt = Predictor(whole.bundle, lambda *asked: spoil(whole.run(*asked)), returns=returns)
    with pytest.raises(ModelError, match=f"the model answered .*{says}"):
        spoilt(np.zeros((5, N_FEATURES)))


def test_network_that_says_nothing_is_a_model_too(tmp_path):
    net = AudioFmriMLP(N_FEATURES, N_VOXELS, hidden_dims=[6]).eval()
    write_version(net, tmp_path, 1)
    assert not opened(tmp_path, returns="coordinates")(np.ones((3, N_FEATURES))).any()


@pytest.mark.parametrize(
    "X, says",
    [
        (np.full((2, N_FEATURES), np.nan), "features hold NaN"),
        (np.full((2, N_FEATURES), 1e39), "features hold NaN or infinite"),
        (np.zeros((2, 7)), "expects features of width 5, got shape"),
        (np.zeros((2, N_FEATURES, 1)), "expects features of width 5, got shape"),
    ],
)
def test_inputs_that_cannot_be_answered_are_refused(exported, X, says):  # M08, M09
    with np.errstate(over="ignore"), pytest.raises(ModelError, match=says):
        opened(exported)(X)


# --- opening ------------------------------------------------------------------------------


def test_no_runtime_stands_in_for_another(exported, checkpoint, tmp_path):
    with pytest.raises(ParameterError, match="runtime must be onnxruntime, torch, triton, got 'tensorrt' - choose one"):
        opened(exported, checkpoint, runtime="tensorrt")
    with pytest.raises(ModelError, match="no model .* run notebook 05"):
        opened(tmp_path / "nothing exported", checkpoint)
    opened(exported, tmp_path / "no.ckpt")
    with pytest.raises(ModelError, match="run notebook 04"):
        opened(exported, tmp_path / "no.ckpt", runtime="torch")
    with pytest.raises(ModelError, match="version 3"):
        opened(exported, version=3)
    save_checkpoint(tmp_path / "other.ckpt", network(hidden_dims=[8, 4]), FACTS)
    with pytest.raises(ModelError, match="other.ckpt is not what version 1 was exported from"):
        opened(exported, tmp_path / "other.ckpt", runtime="torch")


def test_missing_delay_is_never_a_default(models_dir):  # M01
    (models_dir / NAME / "1/best_dt.txt").unlink()
    with pytest.raises(ModelError, match="best_dt.txt is missing - export the model again") as error:
        opened(models_dir)
    assert error.value.exit_code == 6


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf4.5\n", b"4.5\r\n", b"  4.5  ", b"4.50"])
def test_delay_may_be_written_as_editors_write_it(models_dir, content):  # M02
    (models_dir / NAME / "1/best_dt.txt").write_bytes(content)
    assert opened(models_dir).facts["delay"] == 4.5


UTF16 = pytest.param(
    "4.5".encode("utf-16"),
    id="UTF-16",
)


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"4,5", b"nan", b"inf", b"-3", b"4.5 s", b"4.5\n4.5\n", b"x" * 2**20, UTF16],
    ids=lambda c: repr(c[:8]) if isinstance(c, bytes) else None,
)
def test_delay_that_is_not_one_is_refused_with_its_text(models_dir, content):  # M02
    (models_dir / NAME / "1/best_dt.txt").write_bytes(content)
    with pytest.raises(ModelError, match=r"best_dt.txt (holds|says) .* export") as error:
        opened(models_dir)
    shown = str(error.value).split("best_dt.txt")[1]
    assert "\n" not in shown and len(shown) < 150
    if content.isascii():
        assert repr(content.decode().strip()[:40])[1:-1] in shown


def test_delay_edited_by_hand_is_refused_with_both_numbers(models_dir):  # M03
    path = models_dir / NAME / "1/best_dt.txt"
    path.write_text("8.0\n")
    with pytest.raises(ModelError, match="says 8 s, but this model was trained at 4.5 s"):
        opened(models_dir)
    bundle = models_dir / NAME / "1/bundle.json"
    path.write_text("4.5\n")
    write_json(bundle, read_json(bundle) | {"delay": 8.0})
    with pytest.raises(ModelError, match="says 4.5 s, but this model was trained at 8 s"):
        opened(models_dir)
    path.write_text("8.0\n")
    with pytest.raises(ModelError, match="bundle.json was changed after the export - export the model again"):
        opened(models_dir)


@pytest.mark.parametrize("name", ["model.onnx", "bundle.npz"])
def test_one_flipped_bit_is_refused(models_dir, name):
    path = models_dir / NAME / "1" / name
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ModelError, match=f"{name} is not the file that bundle.json describes"):
        opened(models_dir)


def test_bundle_of_another_model_is_refused(models_dir):
    other = network(hidden_dims=[8, 4])
    write_version(other, models_dir, 2)
    theirs = read_json(models_dir / NAME / "2/bundle.json")
    write_json(models_dir / NAME / "1/bundle.json", theirs | {"model_version": 1})
    with pytest.raises(ModelError, match="is not the file that bundle.json describes"):
        opened(models_dir)
    opened(models_dir, version=2)


def test_version_copied_to_another_name_is_refused(models_dir):
    shutil.copytree(models_dir / NAME / "1", models_dir / NAME / "7")
    with pytest.raises(ModelError, match=f"7 holds a copy of {NAME} version 1 - "):
        opened(models_dir, version=7)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-rf", "x" * 200, "a\nb"])
def test_name_that_leads_elsewhere_is_refused(model, tmp_path, name):  # M17
    with pytest.raises(ParameterError, match="model_name must be letters") as error:
        export_model(served.from_mlp(model), FACTS, extra=EXTRA, source="s", models_dir=tmp_path, name=name, version=1)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    with pytest.raises(ParameterError, match="model_name must be letters"):
        open_predictor("onnxruntime", models_dir=tmp_path, name=name, version=1)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("version", [0, -1, "1/..", "0", "", 1.5])
def test_version_that_is_no_number_is_refused(model, models_dir, version):  # M17
    before = contents(models_dir)
    with pytest.raises(ParameterError, match="model_version must be a whole number"):
        write_version(model, models_dir, version)
    with pytest.raises(ParameterError, match="model_version must be a whole number"):
        opened(models_dir, version=version)
    assert contents(models_dir) == before


def test_onnx_of_another_bundle_is_refused_even_where_its_file_hash_is_right(models_dir):
    path = models_dir / NAME / "1/bundle.json"
    (models_dir / NAME / "1/best_dt.txt").write_text("8.0\n")
    facts = read_json(path) | {"delay": 8.0}
    write_json(path, facts | {"bundle_hash": facts_hash(facts)})
    with pytest.raises(ModelError, match="model.onnx was made with a delay of 4.5 s and .* bundle.json says 8 s and"):
        opened(models_dir)


@pytest.mark.parametrize("change", [{"feature_mean": [0.5]}, {"subject": "10"}, {"target": "volume"}])
def test_a_fact_changed_by_hand_is_refused(models_dir, change):
    path = models_dir / NAME / "1/bundle.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(ModelError, match="bundle.json was changed after the export - export the model again"):
        open_bundle(models_dir, NAME)


@pytest.mark.parametrize(
    "change",
    [{"delay": None}, {"delay": "4.5"}, {"n_voxels": "30"}, {"n_voxels": True}, {"mask_shape": [2**60]}, {"kind": []}],
)
def test_facts_of_another_kind_are_refused_even_where_they_are_signed(models_dir, change):
    path = models_dir / NAME / "1/bundle.json"
    facts = read_json(path) | change
    write_json(path, facts | {"bundle_hash": facts_hash(facts)})
    with pytest.raises(ModelError, match="export the model again"):
        open_bundle(models_dir, NAME)


def test_arrays_whose_header_claims_more_than_is_there_are_refused(models_dir):
    folder = models_dir / NAME / "1"
    with zipfile.ZipFile(folder / "bundle.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["level.npy"] = members["level.npy"].replace(b"(30,), }" + b" " * 10, b"(300000000000,), }")
    with zipfile.ZipFile(folder / "bundle.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    facts = read_json(folder / "bundle.json") | {"arrays_md5": file_md5(folder / "bundle.npz")}
    write_json(folder / "bundle.json", facts | {"bundle_hash": facts_hash(facts)})
    with pytest.raises(ModelError, match="bundle.npz is damaged") as error:
        open_bundle(models_dir, NAME)
    assert "level.npy is not an array of its size" in str(error.value.__cause__)


def test_network_whose_nodes_do_not_fit_is_refused_when_it_is_asked(models_dir, capfd):
    folder = models_dir / NAME / "1"
    proto = onnx.load(folder / "model.onnx")
    next(node for node in proto.graph.node if node.op_type == "MatMul").op_type = "Add"  # of a weight that does not fit
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    facts = read_json(folder / "bundle.json")
    write_json(folder / "bundle.json", facts | {"onnx_md5": file_md5(folder / "model.onnx")})
    predictor = opened(models_dir)
    with pytest.raises(ModelError, match=r"model.onnx cannot answer \(Fail\) - export it again"):
        predictor(np.zeros((3, N_FEATURES), np.float32))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>"])
def test_file_that_is_no_model_is_refused_even_where_its_hash_is_right(models_dir, content):  # M11
    folder = models_dir / NAME / "1"
    (folder / "model.onnx").write_bytes(content or (folder / "model.onnx").read_bytes()[:200])
    write_json(
        folder / "bundle.json", read_json(folder / "bundle.json") | {"onnx_md5": file_md5(folder / "model.onnx")}
    )
    with pytest.raises(ModelError, match="cannot be opened .* export it again") as error:
        opened(models_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", '{"delay": 4.', "[]", "{}"])
def test_damaged_bundle_is_a_model_that_cannot_be_used(models_dir, content):
    (models_dir / NAME / "1/bundle.json").write_text(content)
    with pytest.raises(ModelError, match="bundle.json"):
        opened(models_dir)


def test_weights_in_another_file_are_not_read(models_dir, tmp_path):  # M10
    folder = models_dir / NAME / "1"
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    proto = onnx.load(folder / "model.onnx")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../secret")
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    write_json(
        folder / "bundle.json", read_json(folder / "bundle.json") | {"onnx_md5": file_md5(folder / "model.onnx")}
    )
    with pytest.raises(ModelError, match="points to other files, which is not safe"):
        opened(models_dir)


@pytest.mark.parametrize("change", [{"n_voxels": 29}, {"mask_shape": [4, 4]}])
def test_arrays_that_do_not_fit_the_facts_are_refused(models_dir, change):
    path = models_dir / NAME / "1/bundle.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(ModelError, match="bundle.npz"):
        open_bundle(models_dir, NAME)


def test_arrays_are_read_without_running_them(models_dir, tmp_path):
    folder, canary = models_dir / NAME / "1", tmp_path / "canary"

    with np.load(folder / "bundle.npz") as stored:
        arrays = dict(stored)
    np.savez(folder / "bundle.npz", **arrays | {"level": np.array([Bomb(canary)], dtype=object)})
    about = read_json(folder / "bundle.json") | {"arrays_md5": file_md5(folder / "bundle.npz")}
    write_json(folder / "bundle.json", about)
    with pytest.raises(ModelError, match="bundle.npz is damaged"):
        open_bundle(models_dir, NAME)
    assert not canary.exists()


# --- does it fit? -------------------------------------------------------------------------


def test_model_fits_the_scan_it_was_trained_on_and_no_other():
    here = {"n_features": N_FEATURES, "subject": "09", "mask_hash": "a1b2"}
    check_fits(FACTS, **here)
    with pytest.raises(ModelError, match="trained on sub-09 with mask a1b2, this is sub-22 with mask a1b2"):
        check_fits(FACTS, **here | {"subject": "22"})
    with pytest.raises(ModelError, match="with mask a1b2, this is sub-09 with mask ffff"):
        check_fits(FACTS, **here | {"mask_hash": "ffff"})
    check_fits(FACTS, **here | {"subject": "22", "mask_hash": "ffff"}, allow_other_subject=True)
    with pytest.raises(ModelError, match="expects 5 features, these are 13 - set what bundle.json says"):
        check_fits(FACTS, **here | {"n_features": 13})


def test_mask_hash_is_that_of_voxels_and_their_place():
    mask, affine = np.zeros((4, 4, 4), bool), np.eye(4)
    mask[1:3, 1, 2] = True
    known = mask_fingerprint(mask, affine)
    assert known == mask_fingerprint(np.asfortranarray(mask), affine + 1e-9)
    moved, other = np.eye(4), mask.copy()
    moved[0, 3], other[0, 0, 0] = 2, True
    turned = mask.reshape(2, 8, 4)
    assert (
        len({known, mask_fingerprint(mask, moved), mask_fingerprint(other, affine), mask_fingerprint(turned, affine)})
        == 4
    )
