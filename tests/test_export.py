"""The exported model: whole or absent, the same numbers as torch, and refused where it does not fit."""

import hashlib
import shutil

import numpy as np
import onnx
import pytest
import torch

from bold_audio import export
from bold_audio.export import check_fits, export_model, find_same_model, mask_fingerprint, next_version, open_predictor
from bold_audio.files import ModelError, file_md5, read_json, write_json
from bold_audio.mlp import AudioFmriMLP, mlp_output, save_checkpoint

NAME = "ds003688_sub-09"
N_FEATURES, N_VOXELS = 5, 30
FACTS = {"delay": 4.5, "subject": "09", "n_inputs": N_FEATURES, "mask_hash": "a1b2", "target": "difference"}


def network(**given):
    """A network with some weights, which an untrained one has not in its last layer."""
    net = AudioFmriMLP(N_FEATURES, N_VOXELS, **given).eval()
    torch.nn.init.normal_(net.net[-1].weight)
    torch.nn.init.normal_(net.net[-1].bias)
    return net


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
    export_model(model, FACTS, checkpoint=checkpoint, models_dir=repository, name=NAME, version=1)
    return repository


@pytest.fixture
def models_dir(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "triton_models")


def contents(folder):
    """Every path below a folder, hidden ones too, with what it holds."""
    return {
        str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def opened(models_dir, checkpoint="nowhere", *, runtime="onnxruntime", version=1):
    return open_predictor(runtime, models_dir=models_dir, name=NAME, version=version, checkpoint=checkpoint)


def write_version(model, checkpoint, models_dir, version, *, overwrite=False, **facts):
    where = {"models_dir": models_dir, "name": NAME, "version": version}
    return export_model(model, FACTS | facts, checkpoint=checkpoint, overwrite=overwrite, **where)


# --- writing ------------------------------------------------------------------------------


def test_version_holds_model_delay_and_bundle_and_nothing_else(exported, checkpoint):
    folder = exported / NAME / "1"
    assert set(contents(exported)) == {NAME, f"{NAME}/1"} | {
        f"{NAME}/1/{name}" for name in ("model.onnx", "best_dt.txt", "bundle.json")
    }
    assert (folder / "best_dt.txt").read_text() == "4.5\n"
    facts = read_json(folder / "bundle.json")
    assert FACTS.items() <= facts.items()
    assert (facts["model_name"], facts["model_version"]) == (NAME, 1)
    assert (facts["n_features"], facts["n_voxels"], facts["opset"]) == (N_FEATURES, N_VOXELS, 18)
    assert facts["checkpoint_md5"] == file_md5(checkpoint)
    assert facts["onnx_md5"] == file_md5(folder / "model.onnx")


def test_existing_version_is_refused_and_left_as_it_is(model, checkpoint, models_dir):
    before = contents(models_dir)
    with pytest.raises(ModelError, match=f"{NAME} version 1 exists - choose another .* or set overwrite_model"):
        write_version(model, checkpoint, models_dir, 1, delay=6.0)
    assert contents(models_dir) == before


def test_existing_version_is_replaced_when_told_to(model, checkpoint, models_dir):
    write_version(model, checkpoint, models_dir, 1, delay=6.0, overwrite=True)
    assert opened(models_dir)[1]["delay"] == 6.0
    assert set(contents(models_dir / NAME)) == {"1", "1/model.onnx", "1/best_dt.txt", "1/bundle.json"}


def test_any_version_number_and_the_next_one(model, checkpoint, models_dir):
    assert next_version(models_dir, "other") == 1
    assert next_version(models_dir, NAME) == 2
    folder, _ = write_version(model, checkpoint, models_dir, 41)
    assert folder == models_dir / NAME / "41"
    assert next_version(models_dir, NAME) == 42
    assert opened(models_dir, version=None)[1]["model_version"] == 41
    (models_dir / NAME / "100").write_text("a file, but the number is taken")
    (models_dir / NAME / "200-old").mkdir()
    assert next_version(models_dir, NAME) == 101


def test_version_made_from_a_checkpoint_is_found_again(model, checkpoint, models_dir, tmp_path):
    assert find_same_model(models_dir, NAME, checkpoint) == 1
    other = tmp_path / "other.ckpt"
    save_checkpoint(other, model, {**FACTS, "delay": 6.0})
    assert find_same_model(models_dir, NAME, other) is None
    write_version(model, other, models_dir, 7)
    assert find_same_model(models_dir, NAME, other) == 7


@pytest.mark.parametrize("overwrite", [False, True])
def test_runtimes_that_disagree_publish_nothing(model, checkpoint, models_dir, monkeypatch, overwrite):
    before = contents(models_dir)
    monkeypatch.setattr(export, "MAX_DIFFERENCE", -1)
    with pytest.raises(ModelError, match="torch and onnxruntime differ by .* nothing was exported"):
        write_version(model, checkpoint, models_dir, 1 if overwrite else 2, overwrite=overwrite)
    assert contents(models_dir) == before


def test_network_that_answers_with_nan_publishes_nothing(checkpoint, tmp_path):
    broken = network(hidden_dims=[4])
    torch.nn.init.constant_(broken.net[-1].bias, float("nan"))
    with pytest.raises(ModelError, match="nothing was exported"):
        write_version(broken, checkpoint, tmp_path / "models", 1)
    assert set(contents(tmp_path / "models")) == {NAME}


def test_export_that_dies_half_way_leaves_nothing(model, checkpoint, models_dir, monkeypatch):
    before = contents(models_dir)

    def disk_full(path, content):
        assert (path.parent / "model.onnx").is_file() and not (models_dir / NAME / "2").exists()
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "write_json", disk_full)
    for version in (1, 2):
        with pytest.raises(OSError, match="no space left"):
            write_version(model, checkpoint, models_dir, version, overwrite=version == 1)
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
    assert dims == {"features": ["batch", N_FEATURES], "voxels": ["batch", N_VOXELS]}
    assert {io.type.tensor_type.elem_type for io in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert not any(tensor.external_data for tensor in graph.initializer)


def test_onnx_carries_its_delay_and_name(exported):
    proto = onnx.load(exported / NAME / "1/model.onnx")
    assert {p.key: p.value for p in proto.metadata_props} == {"delay": "4.5", "model_name": NAME}
    assert [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")] == [18]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_onnxruntime_answers_as_torch_for_any_batch(exported, checkpoint, model, batch):
    X = np.random.default_rng(batch).normal(size=(batch, N_FEATURES))
    expected = mlp_output(model, X)
    for runtime in ("onnxruntime", "torch"):
        predict, facts = opened(exported, checkpoint, runtime=runtime)
        made = predict(X)
        assert (made.shape, made.dtype) == ((batch, N_VOXELS), np.float32)
        assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()
        assert FACTS.items() <= facts.items()


# --- opening ------------------------------------------------------------------------------


def test_no_runtime_stands_in_for_another(exported, checkpoint, tmp_path):
    opened(tmp_path / "nothing exported", checkpoint, runtime="torch")
    with pytest.raises(ModelError, match="no model .* run notebook 05"):
        opened(tmp_path / "nothing exported", checkpoint)
    opened(exported, tmp_path / "no.ckpt")
    with pytest.raises(ModelError, match="run notebook 04"):
        opened(exported, tmp_path / "no.ckpt", runtime="torch")
    with pytest.raises(ModelError, match="version 3"):
        opened(exported, version=3)


def test_missing_delay_is_never_a_default(models_dir):  # M01
    (models_dir / NAME / "1/best_dt.txt").unlink()
    with pytest.raises(ModelError, match="best_dt.txt is missing - export the model again") as error:
        opened(models_dir)
    assert error.value.exit_code == 6


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf4.5\n", b"4.5\r\n", b"  4.5  ", b"4.50"])
def test_delay_may_be_written_as_editors_write_it(models_dir, content):  # M02
    (models_dir / NAME / "1/best_dt.txt").write_bytes(content)
    assert opened(models_dir)[1]["delay"] == 4.5


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


def test_one_flipped_bit_is_refused(models_dir):
    path = models_dir / NAME / "1/model.onnx"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ModelError, match="model.onnx is not the file that bundle.json describes"):
        opened(models_dir)


def test_bundle_of_another_model_is_refused(checkpoint, models_dir):
    other = network(hidden_dims=[8, 4])
    write_version(other, checkpoint, models_dir, 2)
    shutil.copy(models_dir / NAME / "2/bundle.json", models_dir / NAME / "1/bundle.json")
    with pytest.raises(ModelError, match="is not the file that bundle.json describes"):
        opened(models_dir)
    opened(models_dir, version=2)


def test_file_that_is_no_model_is_refused_even_where_its_hash_is_right(models_dir):
    folder = models_dir / NAME / "1"
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:200])
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


# --- does it fit? -------------------------------------------------------------------------


def test_model_fits_the_scan_it_was_trained_on_and_no_other():
    here = {"n_features": N_FEATURES, "subject": "09", "mask_hash": "a1b2"}
    check_fits(FACTS, **here)
    with pytest.raises(ModelError, match="trained on sub-09 with mask a1b2, this is sub-22 with mask a1b2"):
        check_fits(FACTS, **here | {"subject": "22"})
    with pytest.raises(ModelError, match="with mask a1b2, this is sub-09 with mask ffff"):
        check_fits(FACTS, **here | {"mask_hash": "ffff"})
    with pytest.raises(ModelError, match="expects 5 features, the parameters make 13 - set n_mfcc"):
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
