"""Inputs from strangers, for `benchmarks/fuzz.py` and `tests/test_fuzz.py`: whole files, harm to them, their readers.

A `Kind` has a function that writes whole files, a reader (the one the package uses) that returns what it made of them,
and harms. A harm changes the files of a case and may hand its reader something; all it draws comes from the case's
seed. Nothing here runs a case: see ``fuzz.py``.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NO_CHECKSUM = "the format holds no checksum, and another value is as legal"
SIGNED = "whoever writes all files of a model can make them agree"
ITS_WORD = "text that says something legal is taken at its word"


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Parameters
    ----------
    make : callable
        (folder) writes the whole files.
    read : callable
        (folder, given) returns what the package reads, made of arrays, numbers, text, lists and dictionaries.
    harms : dict of str to callable
        (rng, folder, text) spoils the files and may return ``given`` for the reader; ``text`` is what hypothesis made,
        where the harm is among ``texts``.
    undetectable : dict of str to str
        Harms after which another result cannot be told from a right one, with the reason.
    texts : dict of str to callable
        () returns the strategy that makes a harm's text.
    plain : callable, optional
        (found) names what cannot be in any result, whatever the files said; "" where all is well.
    """

    make: object
    read: object
    harms: dict
    undetectable: dict = field(default_factory=dict)
    texts: dict = field(default_factory=dict)
    plain: object = None


# --- bytes --------------------------------------------------------------------------------


def flipped(name, first=0, last=None, n=1):
    """Harm: flip bits of a file between two bytes of it."""

    def harm(rng, folder, _):
        content = bytearray((folder / name).read_bytes())
        for place in rng.integers(first, min(last or len(content), len(content)), rng.integers(1, n + 1)):
            content[place] ^= 1 << rng.integers(8)
        (folder / name).write_bytes(content)

    return harm


def cut(name):
    """Harm: keep the first bytes of a file, at least one fewer than there are."""

    def harm(rng, folder, _):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: rng.integers(len(content))])

    return harm


def trailing(name):
    """Harm: put random bytes behind a file."""

    def harm(rng, folder, _):
        with (folder / name).open("ab") as handle:
            handle.write(rng.bytes(int(rng.integers(1, 4000))))

    return harm


def stamped(name, places):
    """Harm: write a value over a field of a binary header: ``places`` are (offset, format, values)."""

    def harm(rng, folder, _):
        content = bytearray((folder / name).read_bytes())
        offset, form, values = places[rng.integers(len(places))]
        struct.pack_into(form, content, offset, values[rng.integers(len(values))])
        (folder / name).write_bytes(content)

    return harm


def chosen(rng, options):
    """One of several."""
    return options[int(rng.integers(len(options)))]


# --- scans --------------------------------------------------------------------------------

BOLD = "data/sub-01/func/sub-01_task-film_bold"
EVENTS = "data/sub-01/func/sub-01_task-film_events.tsv"
SIDECAR = "data/sub-01/func/sub-01_task-film_bold.json"
GRID, N_VOLUMES, T_R = (6, 5, 4), 40, 2.0
SIZES = (-32768, -1, 0, 1, 2, 7, 255, 32767)
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 1e30, 3e38)
NIFTI_FIELDS = [
    (0, "<i", (0, -1, 540, 0x5C010000, 2**31 - 1)),  # sizeof_hdr
    *((40 + 2 * k, "<h", SIZES) for k in range(8)),  # dim
    (70, "<h", (0, 1, 2, 8, 16, 32, 64, 128, 256, 512, 999, 1024, 1536, 1792, 2048, 2304, -1)),  # datatype
    (72, "<h", (0, 1, 8, 64, 999, -8)),  # bitpix
    *((76 + 4 * k, "<f", FLOATS) for k in range(8)),  # pixdim
    (108, "<f", (*FLOATS, 351.0, 353.5, 1e5)),  # vox_offset
    (112, "<f", FLOATS),  # scl_slope
    (116, "<f", FLOATS),  # scl_inter
    (123, "<B", (0, 8, 16, 24, 32, 63, 255)),  # xyzt_units
    (252, "<h", (0, -1, 99, 32767)),  # qform_code
    (254, "<h", (0, -1, 99, 32767)),  # sform_code
    *((256 + 4 * k, "<f", FLOATS) for k in range(6)),  # quaternion and offset
    *((280 + 4 * k, "<f", FLOATS) for k in range(12)),  # srow
    (344, "4s", (b"ni1\0", b"n+2\0", b"\0\0\0\0", b"n+1 ")),  # magic
]


def write_scan(folder, name=f"{BOLD}.nii", *, seed=0, n_volumes=N_VOLUMES):
    """A small BIDS tree: scan of random numbers, sidecar, events of music and speech."""
    import nibabel as nib

    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(100, 2000, (*GRID, n_volumes)).astype(np.int16)
    image = nib.Nifti1Image(data, np.array([[-3.0, 0, 0, 9], [0, 3, 0.1, -8], [0, 0, 3, 7], [0, 0, 0, 1]]))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((3, 3, 3, T_R))
    image.header["cal_max"] = 0
    nib.save(image, path)
    stem = path.name.split("_bold")[0]
    path.with_name(f"{stem}_bold.json").write_text(json.dumps({"RepetitionTime": T_R, "TaskName": "film"}))
    rows = [(k * 10, 10, ("music", "speech")[k % 2]) for k in range(int(n_volumes * T_R) // 10)]
    lines = ["onset\tduration\ttrial_type", *("\t".join(map(str, row)) for row in rows)]
    path.with_name(f"{stem}_events.tsv").write_text("\n".join(lines) + "\n")
    return path


def parameters(folder, **given):
    """Parameters of the case's dataset."""
    from bold_audio.params import load_params

    places = {name: str(folder / name.removesuffix("_dir")) for name in ("data_dir", "outputs_dir", "models_dir")}
    places["models_dir"] = str(folder / "outputs" / "models")
    return load_params("01", "strange", **(places | {"mask": "none", "regions": {}} | given))


def read_scan(folder, given):
    """Locate, read and mask the run, as every notebook does."""
    from bold_audio import data, runs

    params = parameters(folder, **(given or {}))
    files = runs.locate_runs(params)
    run = data.load_run(files, params, train=np.arange(2, 20))
    return {
        "t_r": files.t_r,
        "times": files.sound_times, "affine": run.affine, "mask": run.mask, "warnings": files.warnings,
        "volumes": np.array(run.volumes), "range": run.value_range, "regions": list(run.regions),
        "events": None if files.events is None else files.events.to_csv(),
    }  # fmt: skip


def read_viewed(ending):
    """Function that opens the scan as a viewer does, which never holds all of it."""

    def read(folder, given):
        from bold_audio.viewable import scene_of_image

        scene = scene_of_image(folder / f"{BOLD}{ending}", cache=folder / "outputs" / "cache")
        volumes = np.asarray(scene.measured.values, np.float32)
        return {"volumes": volumes, "times": scene.times, "t_r": scene.t_r, "affine": np.eye(4)}

    return read


def plain_run(found):
    """What any run that was read must be, whatever its header said; a sentence where it is not."""
    wrong = {
        "affine": not np.isfinite(found["affine"]).all() or abs(np.linalg.det(found["affine"][:3, :3])) < 1e-12,
        "t_r": not 0.05 <= found["t_r"] <= 20,
        "times": not np.isfinite(found["times"]).all(),
        "volumes": not np.isfinite(found["volumes"]).all(),
    }
    return ", ".join(name for name, bad in wrong.items() if bad)


def packed(harm):
    """The harm to the unpacked scan, packed again."""

    def harm_packed(rng, folder, text):
        path = folder / f"{BOLD}.nii.gz"
        plain = path.with_suffix("")
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
        harm(rng, folder, text)
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        plain.unlink()

    return harm_packed


def second_member(rng, folder, _):
    path = folder / f"{BOLD}.nii.gz"
    own = path.read_bytes()
    more = chosen(rng, [own, gzip.compress(b""), gzip.compress(rng.bytes(int(rng.integers(1, 3000)))), own[:-9]])
    path.write_bytes(chosen(rng, [own + more, more + own]))


def bomb(rng, folder, _):
    """A few MB that unpack to gigabytes of zeros; the header says so, says more, or says a small scan."""
    path = folder / f"{BOLD}.nii.gz"
    head = bytearray(gzip.decompress(path.read_bytes()))
    shape = chosen(rng, [None, (512, 512, 256, 64), (32767, 32767, 32767, 32767), (1024, 1024, 32, 40)])
    if shape is not None:
        struct.pack_into("<4h", head, 42, *shape)
    with path.open("wb") as handle:
        handle.write(gzip.compress(bytes(head), mtime=0))
        zeros = gzip.compress(bytes(2**24), mtime=0)
        for _ in range(int(rng.integers(150, 400))):
            handle.write(zeros)


def make_packed(folder):
    path = write_scan(folder)
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


PLAIN, PACKED = f"{BOLD}.nii", f"{BOLD}.nii.gz"
SCANS = {
    "scan .nii.gz": Kind(
        make_packed,
        read_scan,
        {
            "stream flipped": flipped(PACKED, n=4),
            "cut": cut(PACKED),
            "trailing bytes": trailing(PACKED),
            "more members": second_member,
            "header flipped, packed again": packed(flipped(PLAIN, last=352, n=3)),
            "header set, packed again": packed(stamped(PLAIN, NIFTI_FIELDS)),
            "bomb": bomb,
        },
        {name: NO_CHECKSUM for name in ("header flipped, packed again", "header set, packed again")},
        plain=plain_run,
    ),
    "scan in the viewer": Kind(
        make_packed,
        read_viewed(".nii.gz"),
        {
            "stream flipped": flipped(PACKED, n=4),
            "cut": cut(PACKED),
            "more members": second_member,
            "header set, packed again": packed(stamped(PLAIN, NIFTI_FIELDS)),
            "bomb": bomb,
        },
        {"header set, packed again": NO_CHECKSUM},
    ),
    "scan .nii": Kind(
        write_scan,
        read_scan,
        {
            "header flipped": flipped(PLAIN, last=352, n=3),
            "header set": stamped(PLAIN, NIFTI_FIELDS),
            "values flipped": flipped(PLAIN, first=352, n=4),
            "cut": cut(PLAIN),
            "trailing bytes": trailing(PLAIN),
        },
        {name: NO_CHECKSUM for name in ("header flipped", "header set", "values flipped")},
        plain=plain_run,
    ),
}


# --- sound --------------------------------------------------------------------------------

SOUND_SETTINGS = {"sample_rate": 16000, "n_mfcc": 13, "n_fft": 512, "hop_length": 160}
COUNTS = (0, 1, 255, 32768, 65535)
LONGS = (0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
WAV_FIELDS = [
    (4, "<I", LONGS),  # length of the file
    (16, "<I", (0, 4, 14, 18, 40, 2**31, 2**32 - 1)),  # length of the format
    (20, "<H", (0, 2, 3, 6, 7, 17, 85, 65534, 65535)),  # kind of samples
    (22, "<H", COUNTS),  # channels
    (24, "<I", LONGS),  # rate
    (28, "<I", LONGS),  # bytes in a second
    (32, "<H", COUNTS),  # bytes in a frame
    (34, "<H", COUNTS),  # bits of a sample
    (40, "<I", LONGS),  # length of the samples
]
FLAC_FIELDS = [(8 + k, "<B", (0, 1, 127, 128, 255)) for k in range(34)]


def write_sound(ending):
    def make(folder):
        import soundfile

        rng = np.random.default_rng(1)
        y = 0.3 * np.sin(np.arange(12000) / 9) + 0.1 * rng.normal(size=12000)
        soundfile.write(folder / f"film.{ending}", y, 8000)

    return make


def read_sound(ending):
    def read(folder, given):
        from bold_audio import features, sound

        opened = sound.open_sound(folder / f"film.{ending}")
        made = features.mfcc_features(folder / f"film.{ending}", **SOUND_SETTINGS)
        return {"y": opened.y, "rate": opened.rate, "channels": opened.channels, "frames": made.frames}

    return read


def plain_sound(found):
    """What any sound must be; a sentence where it is not."""
    finite = np.isfinite(found["y"]).all() and np.isfinite(found["frames"]).all()
    return "" if finite and len(found["y"]) and found["rate"] > 0 else "samples, features or rate"


def sound_kind(ending, head, fields, undetectable):
    name = f"film.{ending}"
    harms = {
        "header flipped": flipped(name, last=head, n=3),
        "body flipped": flipped(name, first=head, n=4),
        "cut": cut(name),
        "trailing bytes": trailing(name),
    }
    harms |= {"header set": stamped(name, fields)} if fields else {}
    return Kind(write_sound(ending), read_sound(ending), harms, undetectable, plain=plain_sound)


SOUNDS = {
    "sound .wav": sound_kind(
        "wav", 44, WAV_FIELDS, {name: NO_CHECKSUM for name in ("header flipped", "body flipped", "header set")}
    ),
    "sound .flac": sound_kind(
        "flac",
        42,
        FLAC_FIELDS,
        {
            name: "FLAC's MD5 is of the samples alone, not of rate and length"
            for name in ("header flipped", "header set")
        },
    ),
    "sound .ogg": sound_kind("ogg", 58, None, {}),
}


# --- models -------------------------------------------------------------------------------

MODEL, VERSION = "strange_sub-01", "models/strange_sub-01/1"
N_FEATURES, N_VOXELS = 5, 30
MODEL_FILES = ("model.onnx", "bundle.npz", "bundle.json", "best_dt.txt")
ODD_VALUES = (None, True, -1, 0, 10**30, 1e308, "", "4.5", "../../x", [], [1], [[None]], {}, {"a": 1}, "\0", "<b>")


FACTS = {
    "kind": "mlp", "delay": 4.5, "subject": "01", "n_inputs": N_FEATURES, "n_previous": 0, "mask_hash": "a1b2",
    "target": "difference", "mask_shape": [4, 4, 4], "feature_mean": [0.25] * 5, "feature_scale": [1.5] * 5,
}  # fmt: skip


def network(seed):
    """A network with some weights in its last layer."""
    import torch

    from bold_audio.mlp import AudioFmriMLP

    torch.manual_seed(seed)
    net = AudioFmriMLP(N_FEATURES, N_VOXELS, hidden_dims=[8]).eval()
    torch.nn.init.normal_(net.net[-1].weight)
    return net


def make_models(folder):
    """Two exported models of one shape: the case's, and another to take files from."""
    from bold_audio import export, served

    mask = np.zeros((4, 4, 4), bool)
    mask.flat[:N_VOXELS] = True
    extra = {"mask": mask, "mean_volume": np.linspace(800, 1200, N_VOXELS)}
    for seed, name in enumerate((MODEL, "another")):
        facts = FACTS | {"delay": 4.5 + seed}
        where = {"models_dir": folder / "models", "name": name, "version": 1}
        export.export_model(served.from_mlp(network(seed)), facts, extra=extra, source=name, **where)


def read_model(folder, given):
    """Open the model in onnxruntime, and ask it for voxels and for coordinates."""
    from bold_audio.runtimes import open_predictor

    predictor = open_predictor("onnxruntime", models_dir=folder / "models", name=MODEL, version=1)
    X = np.linspace(-1, 1, 3 * N_FEATURES).reshape(3, -1)
    # Hashes, and what the export measured on the network that carries the hash: nothing is computed from it.
    apart = ("bundle_hash", "onnx_md5", "arrays_md5", "max_difference")
    facts = {name: value for name, value in predictor.facts.items() if name not in apart}
    return {"facts": facts, "voxels": predictor(X), "coordinates": predictor.coordinates(X)}


def sign_model(folder):
    """Make hashes of a model that was changed agree again, as whoever changed it could."""
    import onnx

    from bold_audio.bundle import facts_hash
    from bold_audio.files import file_md5

    version = folder / VERSION
    facts = json.loads((version / "bundle.json").read_text())
    facts["arrays_md5"] = file_md5(version / "bundle.npz")
    facts["bundle_hash"] = facts_hash(facts)
    with contextlib.suppress(Exception):  # a network too spoilt to be signed stays as it is
        proto = onnx.load(version / "model.onnx", load_external_data=False)
        delay = facts["delay"]
        said = {"delay": f"{delay:.10g}" if isinstance(delay, int | float) else str(delay)}
        onnx.helper.set_model_props(proto, said | {"bundle_hash": facts["bundle_hash"]})
        (version / "model.onnx").write_bytes(proto.SerializeToString())
    facts["onnx_md5"] = file_md5(version / "model.onnx")
    (version / "bundle.json").write_text(json.dumps(facts))


def signed(harm):
    """A harm to a model's files whose hashes agree again afterwards."""

    def harm_signed(rng, folder, text):
        harm(rng, folder, text)
        with contextlib.suppress(ValueError, TypeError, KeyError):  # facts that are none any more
            sign_model(folder)

    return harm_signed


def any_model_file(make_harm):
    """The harm to one of a model's files."""
    harms = [make_harm(f"{VERSION}/{name}") for name in MODEL_FILES]
    return lambda rng, folder, text: chosen(rng, harms)(rng, folder, text)


def swap_file(rng, folder, _):
    name = chosen(rng, MODEL_FILES)
    shutil.copyfile(folder / "models" / "another" / "1" / name, folder / VERSION / name)


def change_fact(rng, folder, _):
    """Take a fact out, change its kind, or make the file something else than facts."""
    path = folder / VERSION / "bundle.json"
    facts = json.loads(path.read_text())
    key = chosen(rng, sorted(facts))
    if rng.random() < 0.2:
        del facts[key]
    else:
        facts[key] = chosen(rng, ODD_VALUES)
    path.write_text(json.dumps(chosen(rng, [facts] * 19 + [[facts]])))


def change_arrays(rng, folder, _):
    """An array of another shape, kind or name; one that holds code; one whose header claims gigabytes."""
    path = folder / VERSION / "bundle.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = chosen(rng, sorted(arrays))
    made = [
        np.zeros(3), np.zeros((0, 4)), np.array("text"), np.full_like(arrays[name], np.nan, dtype=float),
        arrays[name].astype(complex), np.array([Runs(folder)], dtype=object), arrays[name].T[..., None], None,
    ]  # fmt: skip
    new = made[int(rng.integers(len(made)))]
    arrays = {k: v for k, v in arrays.items() if k != name} | ({} if new is None else {name: new})
    with path.open("wb") as handle:
        np.savez(handle, **arrays)
    if rng.random() < 0.3:
        with zipfile.ZipFile(path, "w") as archive:
            for kept, value in arrays.items():
                content = io.BytesIO()
                np.save(content, value)
                content = content.getvalue()
                if kept == name:
                    content = content.replace(b"), }", b", 90000, 90000), }        ")[: len(content)]
                archive.writestr(f"{kept}.npy", content)


def external_data(rng, folder, _):
    """A network that takes a weight from another file."""
    import onnx

    path = folder / VERSION / "model.onnx"
    proto = onnx.load(path)
    tensors = [t for t in proto.graph.initializer if t.raw_data]
    for tensor in tensors[: int(rng.integers(1, len(tensors) + 1))]:
        place = chosen(rng, ["../../another/1/model.onnx", "/etc/passwd", "bundle.npz", "../../../../../../dev/zero"])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
        tensor.external_data.add(key="length", value=str(len(tensor.raw_data)))
        tensor.ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())


def change_network(rng, folder, _):
    """A network whose nodes, shapes or names are others."""
    import onnx

    path = folder / VERSION / "model.onnx"
    proto = onnx.load(path)
    node, tensor = chosen(rng, proto.graph.node), chosen(rng, proto.graph.initializer)
    changes = [
        lambda: setattr(node, "op_type", chosen(rng, ["Add", "MatMul", "NoSuchThing", "Loop", "Tile"])),
        lambda: node.input.__setitem__(0, chosen(rng, ["features", "nothing", ""])),
        lambda: tensor.dims.__setitem__(0, chosen(rng, [0, 1, 7, 2**40, -1])),
        lambda: setattr(proto.graph.input[0], "name", "sound"),
        lambda: setattr(proto.graph.output[1], "name", "numbers"),
        lambda: setattr(proto.opset_import[0], "version", chosen(rng, [0, 1, 7, 999])),
        lambda: proto.graph.ClearField("node"),
    ]
    chosen(rng, changes)()
    path.write_bytes(proto.SerializeToString())


# --- checkpoints --------------------------------------------------------------------------


class Runs:
    """What a pickle that runs code holds: it would write the canary."""

    def __init__(self, folder):
        self.canary = folder / "canary"

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def make_checkpoint(folder):
    from bold_audio.mlp import save_checkpoint

    save_checkpoint(folder / "best.ckpt", network(0), FACTS)


def read_checkpoint(folder, given):
    """Open the checkpoint and ask the network."""
    from bold_audio.mlp import load_checkpoint, mlp_output

    model, facts = load_checkpoint(folder / "best.ckpt")
    return {"facts": facts, "answer": mlp_output(model, np.linspace(-1, 1, 3 * N_FEATURES).reshape(3, -1))}


def repack(path, change):
    """Write a zip file anew, each member as ``change(name, content)`` says, with checksums that are right."""
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def replace_member(rng, folder, _):
    """One member of the checkpoint holds other bytes, of the same length or not."""
    path = folder / "best.ckpt"
    with zipfile.ZipFile(path) as archive:
        victim = chosen(rng, archive.namelist())
    other = chosen(rng, [lambda b: rng.bytes(len(b)), lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b])
    repack(path, lambda name, content: other(content) if name == victim else content)


def run_code(rng, folder, _):
    """Pickles that would run code, in a zip file or bare."""
    import torch

    path, evil = folder / "best.ckpt", Runs(folder)
    whole = torch.load(path, weights_only=True)
    key = chosen(rng, sorted(whole))
    content = chosen(rng, [evil, {**whole, key: evil}, {**whole, "more": [evil]}])
    if rng.random() < 0.3:
        path.write_bytes(pickle.dumps(content, protocol=int(rng.integers(6))))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=bool(rng.random() < 0.7))


def change_checkpoint(rng, folder, _):
    """Plain values of another kind or size where the network's are expected."""
    import torch

    path = folder / "best.ckpt"
    content = torch.load(path, weights_only=True)
    settings = content["hyper_parameters"]
    sizes = (0, -1, 7, 10**9, 2**62, 2.5, None, "5")
    changes = [
        lambda: settings.update(n_features=chosen(rng, sizes)),
        lambda: settings.update(n_outputs=chosen(rng, sizes)),
        lambda: settings.update(hidden_dims=chosen(rng, [[10**9], [10**5, 10**5], "8", None, [0], [8, 8]])),
        lambda: settings.update(n_past=chosen(rng, sizes)),
        lambda: settings.update(dropout=chosen(rng, [2, -1, None, float("nan")])),
        lambda: settings.update(unknown=1),
        lambda: content.update({chosen(rng, sorted(content)): chosen(rng, ODD_VALUES)}),
        lambda: content["state_dict"].update({"net.0.weight": chosen(rng, [torch.zeros(3), torch.zeros(8, 5).int()])}),
        lambda: content.pop(chosen(rng, sorted(content))),
    ]
    chosen(rng, changes)()
    torch.save(content, path)


def zip_bomb(rng, folder, _):
    """A member that unpacks to gigabytes."""
    path = folder / "best.ckpt"
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            with archive.open(name, "w") as member:
                member.write(content)
                if name.endswith(("data.pkl", "data/0")):
                    for _ in range(40):
                        member.write(bytes(2**24))


MODELS = {
    "model": Kind(
        make_models,
        read_model,
        {
            "flipped": any_model_file(lambda name: flipped(name, n=3)),
            "cut": any_model_file(cut),
            "trailing bytes": any_model_file(trailing),
            "file of another model": swap_file,
            "facts changed": change_fact,
            "flipped, signed": signed(any_model_file(lambda name: flipped(name, n=3))),
            "facts changed, signed": signed(change_fact),
            "arrays changed, signed": signed(change_arrays),
            "external data, signed": signed(external_data),
            "network changed, signed": signed(change_network),
        },
        {
            name: SIGNED
            for name in (
                "flipped, signed", "facts changed, signed", "arrays changed, signed", "network changed, signed",
            )
        },
    ),
    "checkpoint": Kind(
        make_checkpoint,
        read_checkpoint,
        {
            "flipped": flipped("best.ckpt", n=3),
            "cut": cut("best.ckpt"),
            "trailing bytes": trailing("best.ckpt"),
            "member replaced": replace_member,
            "code": run_code,
            "values changed": change_checkpoint,
            "bomb": zip_bomb,
        },
        {name: SIGNED for name in ("member replaced", "values changed")},
    ),
}  # fmt: skip
