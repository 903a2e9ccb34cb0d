"""A report's pages are whole without a network, say what happened, and text stays text."""

import base64
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from types import SimpleNamespace

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from bold_audio import candidates, execution, model_card, subjects, thumbnails
from bold_audio.alt_text import describe_figure
from bold_audio.files import DataError, ModelError, write_json, write_table
from bold_audio.notebook_page import Failure, clean_html, markdown_html, notebook_parts, read_failure, script_json
from bold_audio.report import write_dataset_index, write_index, write_page, write_subject_index
from bold_audio.templates import render

ATTACK = "<script>alert('x')</script> & <b>bold</b>"
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "audio": "src", "video": "src"}
FETCHED |= {"source": "src", "embed": "src", "object": "data"}


class Parsed(HTMLParser):
    """What a browser would load for a page, and its tags: an oracle that knows HTML, not a pattern."""

    def __init__(self, html):
        super().__init__()
        self.references, self.tags, self.policy = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        reference = given.get(FETCHED.get(tag, ""))
        if reference is not None and not reference.startswith(("data:", "#")):
            self.references.append(reference)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]


def shown(html):
    """Text of a page."""
    return " ".join(BeautifulSoup(html, "html.parser").get_text(" ").split())


def index(folder, **given):
    settings = {"title": "t", "note": "n", "sentences": ["s"], "tables": [], "pages": [], "provenance": [("f", "g")]}
    write_index(folder, **settings | given)
    return (folder / "index.html").read_text(encoding="utf-8")


# --- the index ----------------------------------------------------------------------------

PLACES = ["title", "note", "sentence", "caption", "column", "cell", "page", "provenance", "alarm", "map", "failure"]


@pytest.mark.parametrize("where", PLACES)
def test_text_is_escaped_wherever_it_comes_from(tmp_path, where):
    said = dict.fromkeys(PLACES, "harmless") | {where: ATTACK}
    html = index(
        tmp_path,
        title=said["title"],
        note=said["note"],
        sentences=["first", said["sentence"]],
        tables=[(said["caption"], pd.DataFrame({said["column"]: [said["cell"]], "more": [said["cell"]]}))],
        pages=[("a.html", said["page"], "")],
        provenance=[(said["provenance"], said["provenance"])],
        alarms=[said["alarm"]],
        maps=[{"src": "data:,", "alt": said["map"], "caption": said["map"], "page": None}],
        failure={"step": "03", "what": said["failure"], "fix": said["failure"], "name": "", "cell": None},
    )
    parsed = Parsed(html)
    assert "script" not in parsed.tags and "b" not in parsed.tags
    assert "&lt;script&gt;alert(" in html


def test_page_name_cannot_leave_its_attribute(tmp_path):
    html = index(tmp_path, pages=[('a.html"><script src="//evil.example/x.js"></script>', "a", "")])
    assert Parsed(html).tags.count("script") == 0


def test_index_shows_numbers_and_what_is_missing(tmp_path):
    table = pd.DataFrame({"model": ["mlp", None], "mse": [1.23456e-5, np.nan], "n": [3, 4]})
    html = index(tmp_path, tables=[("Scores", table)], sentences=["**Δt** is `5 s`"])
    rows = BeautifulSoup(html, "html.parser").select("tbody tr")
    assert [[c.get_text() for c in row.find_all(["th", "td"])] for row in rows] == [
        ["mlp", "1.23e-05", "3"],
        ["n/a", "n/a", "4"],
    ]
    assert "Δt is 5 s" in html


@pytest.fixture
def params(tmp_path):
    folder = tmp_path / "sub-09"
    folder.mkdir()
    made = {"subject_path": folder, "subject": "09", "label": "ds003688", "data_note": "real scan"}
    return SimpleNamespace(**made, realign=False, feature_source="audio", models_dir="m", resolve=lambda _: tmp_path)


def test_subject_index_before_anything_ran(params):
    html = write_subject_index(params, []).read_text()
    assert "Not all notebooks have run yet." in html and "real scan" in html and "sub-09" in html


SCORES = [("one_step", "responsive", 1.25e-5), ("open_loop", "responsive", 2.5e-5), ("one_step", "brain", 9.75e-5)]


def write_scores(folder, **others):
    lines = [
        {"model": "mlp", "prediction": p, "region": region, "mse": mse, "skill": 0.5, "n_volumes": 166, "n_voxels": 42}
        for p, region, mse in SCORES
    ]
    lines += [{**lines[0], "model": name, "mse": mse} for name, mse in others.items()]
    write_table(folder / "scores.tsv", pd.DataFrame(lines).assign(r_median=0.4))
    write_json(folder / "summary.json", {"about": "about it", "sentences": ["The answer."], "region": "responsive"})
    last = {"finished": "2026-01-02T03:04:05", "git_commit": "abc123", "input_md5": {"film.wav": "d3"}}
    before = {"finished": "2025-01-02T03:04:05", "git_commit": "old", "input_md5": {"other.wav": "c2"}}
    write_json(folder / "provenance.json", {"dt_sweep": before, "mlp": last})


def test_subject_index_shows_the_region_it_speaks_of_one_step_and_open_loop_apart(params):
    write_scores(params.subject_path)
    path = write_subject_index(params, [("04_train.html", "04 · Train", "31 s")])
    html = path.read_text()
    assert path == params.subject_path / "report/index.html"
    assert "One-step: previous volumes measured (responsive, 166 test volumes, 42 voxels)" in html
    assert "Open-loop (responsive" in html
    assert html.index("1.25e-05") < html.index("Open-loop") < html.index("2.5e-05")
    assert "9.75e-05" not in html
    said = ("about it", "The answer.", "abc123", "2026-01-02T03:04:05", 'href="04_train.html"', "31 s")
    assert all(text in html for text in said)
    assert "MD5 of film.wav" in html and "MD5 of other.wav" not in html  # time, commit and inputs of one step


def test_pages_of_other_parameters_than_the_last_are_named(params):
    def entry(finished, **parameters):
        return {"made_from": {"parameters": parameters}, "finished": finished}

    done = {"00_a": entry("T1", gap=16, confounds=["csf"]), "06_b": entry("T2", gap=16, confounds=None, lr=1)}
    write_json(params.subject_path / "done.json", done)
    html = write_subject_index(params, []).read_text()
    assert "00_a was run with other parameters than 06_b (confounds): run it again, or read it apart." in html
    elsewhere = {"runtime": "triton", "triton_url": "127.0.0.1:8001", "mlflow_uri": "http://127.0.0.1:8080"}
    alike = {"00_a": entry("T1", gap=16, **dict.fromkeys(elsewhere)), "06_b": entry("T2", gap=16, **elsewhere)}
    for other in (alike, {"00_a": done["06_b"], "06_b": done["06_b"]}, {"00_a": {"before": {}}}, {"00_a": 5}, [], {}):
        write_json(params.subject_path / "done.json", other)
        assert "other parameters" not in write_subject_index(params, []).read_text()


def test_alarms_stand_in_red_above_the_headline(params):  # A13
    alarm, path = "sound does not follow <the> film's 30 s blocks", params.subject_path / "summary.json"
    write_json(path, {"about": "a", "alarms": [alarm], "sentences": ["The answer."]})
    html = write_subject_index(params, []).read_text()
    assert '<p class="alarm">sound does not follow &lt;the&gt; film&#39;s 30 s blocks</p>' in html
    assert html.index('class="alarm"') < html.index("The answer.")
    assert ".alarm { color: var(--alarm); }" in html and "--alarm: #a3001b" in html
    write_json(path, {"about": "a", "alarms": [], "sentences": ["The answer."]})
    assert 'class="alarm"' not in write_subject_index(params, []).read_text()


def test_failed_run_stands_at_the_top_of_the_index_with_the_fix(params):
    status = {"state": "failed", "step": "03_dt_sweep", "error": "the <scan> is short - set allow_short"}
    html = write_subject_index(params, [], status=status).read_text()
    text = shown(html)
    assert "03_dt_sweep failed" in text and "What to do: set allow_short" in text and "the <scan> is short" in text
    assert html.index('class="failure"') < html.index('class="lead"')


# --- thumbnails ---------------------------------------------------------------------------


def decode_png(uri):
    """Pixels of a PNG without filters, by the specification."""
    raw, at, packed, size = base64.b64decode(uri.partition(",")[2]), 8, b"", None
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(raw):
        (length,), name = struct.unpack(">I", raw[at : at + 4]), raw[at + 4 : at + 8]
        content = raw[at + 8 : at + 8 + length]
        assert struct.unpack(">I", raw[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + content)
        size = struct.unpack(">II", content[:8]) if name == b"IHDR" else size
        packed += content if name == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(size[1], 1 + 3 * size[0])
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(size[1], size[0], 3)


def test_picture_is_a_png_of_these_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_png(thumbnails.png_uri(pixels)), pixels)


def write_map(folder, name, values, affine, *, code=1):
    path = folder / f"sub-09_task-film_desc-{name}_statmap.nii.gz"
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    nib.save(image, path)
    write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {"Description": "what it <is>"})
    return path


@pytest.mark.parametrize("sign", [1, -1], ids=["right-handed", "left-handed"])
def test_thumbnail_has_left_on_the_left_front_up_and_its_words(tmp_path, sign):
    values = np.full((6, 8, 6), np.nan)
    values[1:5, 1:7, :] = 0.0
    values[4 if sign == 1 else 1, 6, :] = 0.5  # right and front, in a grid that runs either way
    affine = np.diag([4.0 * sign, 4, 4, 1])
    (made,) = thumbnails.subject_thumbnails(write_map(tmp_path, "sound_stat-r", values, affine).parent)
    pixels = decode_png(made["src"]).astype(int)
    assert pixels.shape == (2 * 8, 2 * 6, 3)  # four of the six slices, without the ends
    red = np.argwhere((pixels[:, :, 0] > 80) & (pixels[:, :, 2] < 60))
    assert len(red) == 4 and set(red[:, 0] % 8) == {1} and set(red[:, 1] % 6) == {4}  # top row, right column
    assert "0 to 0.5" in made["alt"] and f"({16 if sign == 1 else -4}, 24, 0) mm" in made["alt"]
    assert "what it <is>" in made["caption"] and (made["model"], made["stat"]) == ("sound", "r")
    (unknown,) = thumbnails.subject_thumbnails(write_map(tmp_path, "sound_stat-r", values, affine, code=0).parent)
    assert "orientation unknown" in unknown["alt"] and f"({4 if sign == 1 else 1}, 6, 0) voxel." in unknown["alt"]
    assert "left" not in unknown["alt"] and "mm" not in unknown["alt"]


def test_a_map_of_few_voxels_is_shown_in_the_frame_of_the_whole_brain(tmp_path):
    whole = np.full((8, 8, 8), np.nan)
    whole[1:7, 1:7, 1:7] = 0.2
    few = np.full((8, 8, 8), np.nan)
    few[3, 3, 4] = 0.4
    for name, values in (("sound_stat-r", whole), ("historySound_stat-partialr", few)):
        write_map(tmp_path, name, values, np.eye(4))
    pictures = [decode_png(one["src"]) for one in thumbnails.subject_thumbnails(tmp_path)]
    assert len(pictures) == 2 and pictures[0].shape == pictures[1].shape
    (sparse,) = (one for one in pictures if (one == thumbnails.NO_VALUE).all(axis=2).sum() > 100)
    edges = [(one == thumbnails.OUTSIDE).all(axis=2) for one in pictures]
    assert np.array_equal(*edges) and edges[0].any() and not (sparse[~edges[0]] == thumbnails.OUTSIDE).all(axis=1).any()


@pytest.mark.parametrize(("stat", "ends"), [("t", ("blue", "red")), ("delay", ("violet", "yellow"))])
def test_colours_of_a_map_with_a_sign_are_those_around_zero(tmp_path, stat, ends):
    values = np.random.default_rng(0).normal(size=(4, 4, 4))
    (made,) = thumbnails.subject_thumbnails(write_map(tmp_path, f"speechMusic_stat-{stat}", values, np.eye(4)).parent)
    assert all(f"({end})" in made["caption"] for end in ends)


def test_lists_of_regions_empty_maps_and_ends_of_intervals_have_no_thumbnail(tmp_path):
    write_map(tmp_path, "sound_stat-r", np.ones((6, 1, 1)), np.eye(4))
    write_map(tmp_path, "sound_stat-gain", np.full((4, 4, 4), np.nan), np.eye(4))
    write_map(tmp_path, "sweep_stat-delaylow", np.ones((4, 4, 4)), np.eye(4))
    assert thumbnails.subject_thumbnails(tmp_path) == []
    write_map(tmp_path, "sweep_stat-delay", np.ones((4, 4, 4)), np.eye(4))
    assert [one["stat"] for one in thumbnails.subject_thumbnails(tmp_path)] == ["delay"]


# --- all subjects -------------------------------------------------------------------------


def dataset(folder):
    for name, state in (("sub-04", {"state": "done"}), ("sub-07", {"state": "failed", "step": "04_train"})):
        (folder / name).mkdir()
        error = {"error": "disk is <full> - make room"} if state["state"] == "failed" else {}
        write_json(folder / name / "status.json", state | error | {"finished": "2026-01-02T03:04:05+0000"})
    write_scores(folder / "sub-04", history_sound=1e-5, sound=2e-5)
    (folder / "sub-04" / "report").mkdir()
    (folder / "sub-04" / "report" / "index.html").write_text("")
    (folder / "sub-08").mkdir()
    (folder / "sub-08" / "status.json").write_text("{not json")
    (folder / "sub-09").mkdir()  # nothing ran here
    return folder


def test_index_of_subjects_has_a_row_each_and_the_failed_ones_with_step_and_error(tmp_path):
    path = write_dataset_index(dataset(tmp_path), title="Subjects", note="SIMULATED")
    soup = BeautifulSoup(path.read_text(), "html.parser")
    rows = {row.th.get_text(): dict(zip(subjects.COLUMNS[1:], row.find_all("td"), strict=True))
            for row in soup.select("tbody tr")}  # fmt: skip
    assert list(rows) == ["sub-04", "sub-07", "sub-08"]
    assert soup.select_one("tbody a")["href"] == "sub-04/report/index.html" and len(soup.select("tbody a")) == 1
    good, failed, broken = rows.values()
    assert good["gain over the past"].get_text() == "0.5" and good["region"].get_text() == "responsive"
    assert good["r of the sound"]["data-value"] == "0.4" and good["state"].get_text() == "done"
    assert failed["where it stopped"].get_text() == "04_train: disk is <full> - make room"
    assert failed["state"].get_text() == "failed" and failed["r of the sound"]["data-value"] == ""
    assert broken["state"].get_text() == "unreadable" and "status.json" in broken["where it stopped"].get_text()
    assert "3 subjects, 2 of them failed" in shown(path.read_text()) and "SIMULATED" in path.read_text()
    assert len(soup.select("tr.failed")) == 2 and len(soup.select("thead th button")) == len(subjects.COLUMNS)


def test_index_of_subjects_reads_again_who_has_changed_and_nobody_else(tmp_path, monkeypatch):
    folder, read, plain = dataset(tmp_path), [], subjects._row
    monkeypatch.setattr(subjects, "_row", lambda path: read.append(path.name) or plain(path))

    def index(of=None):
        read.clear()
        soup = BeautifulSoup(write_dataset_index(folder, title="Subjects", of=of).read_text(), "html.parser")
        return {row.th.get_text(): row.td.get_text() for row in soup.select("tbody tr")}

    before = index()
    assert read == list(before) == ["sub-04", "sub-07", "sub-08"] and index() == before and read == []
    write_json(folder / "sub-07/status.json", {"state": "done"})
    (folder / "sub-05").mkdir()
    write_json(folder / "sub-05/status.json", {"state": "failed"})
    assert index() == {"sub-04": "done", "sub-05": "failed", "sub-07": "done", "sub-08": before["sub-08"]}
    assert read == ["sub-05", "sub-07"]
    (folder / subjects.KEPT).write_text("[1")
    assert len(index()) == len(read) == 4


def test_index_of_subjects_is_written_once_for_all_who_wait(tmp_path):
    folder = dataset(tmp_path)
    path = write_dataset_index(folder, title="Subjects", of=folder / "sub-04")
    path.write_text("as it was")
    write_dataset_index(folder, title="Subjects", of=folder / "sub-07")
    assert path.read_text() == "as it was", "it holds sub-07 as it is now"
    write_json(folder / "sub-07/status.json", {"state": "done"})
    write_dataset_index(folder, title="Subjects", of=folder / "sub-07")
    assert "sub-07" in path.read_text()


# --- the model card -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, beaten, ahead",
    [("mlp", "smaller than that of constant,", "not smaller than that of history (1e-05), history_sound (9e-06).")],
)
def test_card_says_which_models_are_beaten_and_which_are_not(kind, beaten, ahead):
    rows = [("constant", 2e-5), ("history", 1e-5), ("history_sound", 9e-6), ("mlp", 1.5e-5), ("linear", 1.0)]
    scores = pd.DataFrame(rows, columns=["model", "mse"]).assign(prediction="one_step", region="brain")
    said = model_card.about_scores(scores, kind, "brain")
    assert beaten in said and ahead in said and "MSE 1.5e-05" in said and "linear" not in said
    assert "not scored" in model_card.about_scores(scores[scores["model"] != kind], kind, "brain")
    assert "not scored" in model_card.about_scores(None, kind, None)


def test_equal_error_is_not_a_smaller_one():
    scores = pd.DataFrame({"model": ["history", "mlp"], "mse": [1e-5, 1e-5], "prediction": "one_step", "region": "a"})
    assert "in a: MSE 1e-05; not smaller than that of history (1e-05)." in model_card.about_scores(scores, "mlp", "a")


def test_a_rival_without_an_error_is_named_and_an_empty_half_is_not():
    table = pd.DataFrame({"model": ["mlp", "history", "constant"], "mse": [1.0, 2.0, np.nan], "region": "a"})
    said = model_card.about_scores(table.assign(prediction="one_step"), "mlp", "a")
    assert said.endswith("in a: MSE 1; smaller than that of history, not compared with constant (no MSE).")
    assert model_card.about_scores(table[:1].assign(prediction="one_step"), "mlp", "a").endswith("in a: MSE 1.")


FACTS = {
    "kind": "mlp", "target": "whitened", "n_voxels": 42, "n_previous": 0, "n_inputs": 20, "delay": 5.2, "subject": "09",
    "response": "hrf", "opset": 18, "onnx_md5": "0ff", "bundle_hash": "b1", "mask_hash": "c2", "mask_shape": [3, 4, 5],
    "train_volumes": [17, 447], "t_r": 0.608, "dataset": "ds003688", "input_md5": {"<film>.wav": "d3"},
    "feature_source": "audio", "sound": "sound file <film>.wav", "n_mfcc": 20, "sample_rate": 44100, "n_fft": 2048,
    "hop_length": 512, "sound_lags": 0,
    "training": {
        "delay": 5.2, "candidates": [4.0, 5.2], "why": "largest evidence", "best_epoch": 9, "best_val_MSE": 1e-5,
    },
}  # fmt: skip


def card_of(params, monkeypatch, *, scored=3, realign=False, **changed):
    entry = {"model_name": "m", "model_version": 3, "finished": "2026", "python": "3.11", "packages": {"numpy": "2"}}
    entry |= {"parameters": {"seed": 7, "hidden_dims": [64], "n_folds": 5, "gap": 16.0, "history_order": 4}}
    entry["parameters"] |= {"realign": realign, "feature_source": changed.get("feature_source", "audio")}
    entry |= {"bundle_hash": "b1"}
    later = {"delay": 3.0, "candidates": [3.0], "why": "another training", "best_epoch": 1}  # than the exported one
    write_scores(params.subject_path, history=2e-5)
    inference = {"kind": "mlp", "model_name": "m", "model_version": scored, "bundle_hash": "b1"}
    write_json(params.subject_path / "provenance.json", {"export_mlp": entry, "mlp": later, "inference": inference})
    (params.subject_path / "model.onnx").write_bytes(bytes(250_000))
    opened = SimpleNamespace(facts=FACTS | changed, folder=params.subject_path, n_coordinates=11)
    monkeypatch.setattr(model_card.bundle, "open_bundle", lambda *_: opened)
    return model_card.card_facts(params)


def test_card_tells_data_features_training_and_limits_from_what_the_run_left(params, monkeypatch):
    facts = card_of(params, monkeypatch)
    (model,) = facts["models"]
    sections = {name: {key: str(value) for key, value in pairs} for name, pairs in model["sections"]}
    assert sections["Data"]["MD5 of <film>.wav"] == "d3" and "10.3 to 272.4 s" in sections["Data"]["Train part"]
    assert sections["What it is"]["Delay"].startswith("Δt = 5.2 s") and "0.25 MB" in sections["What it is"]["File"]
    assert "seed 7" in sections["Training"]["Settings"] and "largest evidence" in sections["Training"]["Delay"]
    assert "20 MFCCs" in sections["Features"]["MFCCs"]
    assert "smaller than that of history" in model["sentence"]
    assert any("166 volumes" in limit for limit in facts["limits"])
    assert any("Head motion was not corrected" in limit for limit in facts["limits"])
    html = render("model_card.html.j2", title="Card", who="sub-09", **facts | {"models": [model | {"tables": []}]})
    assert "&lt;film&gt;.wav" in html and "film" not in Parsed(html).tags


def test_card_has_no_scores_of_another_version(params, monkeypatch):
    facts = card_of(params, monkeypatch, scored=2)
    (model,) = facts["models"]
    assert model["sentence"] == "It was not scored on the test part: run notebook 06." and model["tables"] == []
    assert not any("Scored once" in limit for limit in facts["limits"])


def test_limits_are_those_of_the_export_whatever_the_parameters_are_now(params, monkeypatch):
    facts = card_of(params, monkeypatch, realign=True)
    assert not any("Head motion" in limit for limit in facts["limits"])
    path = params.subject_path / "provenance.json"
    done = json.loads(path.read_text())
    other = done["export_mlp"] | {"model_name": "m_history_sound", "parameters": {"realign": False, "n_folds": 5}}
    other["parameters"] |= {"gap": 16.0, "history_order": 4}
    write_json(path, done | {"export_history_sound": other})
    limits = model_card.card_facts(params)["limits"]
    assert "Head motion was not corrected for m_history_sound (realign false)." in limits


def test_card_of_the_model_beside_has_the_scores_of_a_run_like_its_own(params, monkeypatch):
    card_of(params, monkeypatch)
    done = json.loads((params.subject_path / "provenance.json").read_text())
    entry = done["export_mlp"] | {"input_md5": {"a": "1"}, "model_name": "m_history_sound"}
    for parameters, scored in (({"lr": 1.0, "n_mfcc": 20}, True), ({"lr": 0.1, "n_mfcc": 13}, False)):
        known = done["inference"] | {"parameters": parameters, "input_md5": {"a": "1"}}
        own = entry | {"parameters": entry["parameters"] | {"lr": 0.1, "n_mfcc": 20}}
        known["parameters"] = own["parameters"] | parameters
        write_scores(params.subject_path, history=2e-5, history_sound=1e-5)
        write_json(params.subject_path / "provenance.json", {"export_history_sound": own, "inference": known})
        (model,) = model_card.card_facts(params)["models"]
        assert ("not scored" not in model["sentence"]) == scored


def test_card_of_several_runs_counts_them_and_leaves_out_what_lies_between_their_train_parts(params, monkeypatch):
    (model,) = (one := card_of(params, monkeypatch))["models"]
    assert "volumes 17 to 447 (10.3 to 272.4 s of the run), TR" in dict(dict(model["sections"])["Data"])["Train part"]
    assert one["limits"][0].startswith("One run of one person")
    two = card_of(params, monkeypatch, train_volumes=[10, 159], train_stretches=[[10, 59], [110, 159]], n_runs=2, t_r=2)
    told = dict(dict(two["models"][0]["sections"])["Data"])["Train part"]
    assert told == (
        "volumes 10 to 59, 110 to 159 (20.0 to 120.0 s, 220.0 to 320.0 s of 2 runs, counted one after the other), "
        "TR 2 s"
    )
    assert two["limits"][0].startswith("2 runs of one person (sub-09): ")
    assert not any("follow one another" in limit for limit in two["limits"])


def test_card_is_told_how_many_runs_there_were_and_where_train_lies():
    names = (*candidates.SOUND, *candidates.GIVEN, "target", "subject", "dataset", "mlp_history")
    settings = SimpleNamespace(**dict.fromkeys(names, 1))
    files = SimpleNamespace(t_r=2.0, parts=[SimpleNamespace(onset=0.0)] * 2)
    run = SimpleNamespace(files=files, mask=np.ones((2, 2, 2), bool), affine=np.eye(4), value_range=(0.0, 1.0))
    subject = SimpleNamespace(
        params=settings,
        run=run,
        split=SimpleNamespace(train=np.r_[10:60, 110:160]),
        scaled=lambda *_: (None, np.zeros(3), np.array([1.0, np.inf, 2.0])),  # a feature that never varies
        input_md5={},
        sound=SimpleNamespace(source="film.wav", n_bands=128),
    )
    facts = candidates.model_facts(subject, 5.0)
    json.dumps(facts, allow_nan=False)  # JSON has no infinity, and other readers refuse it
    assert facts["feature_scale"][1] > 1e100
    assert facts["n_runs"] == 2 and facts["train_stretches"] == [[10, 59], [110, 159]]


def test_card_names_what_was_simulated_and_what_was_annotated(params, monkeypatch):
    params.data_note, params.feature_source = "SIMULATED subject", "annotations"
    facts = card_of(params, monkeypatch, feature_source="annotations")
    source = dict(dict(facts["models"][0]["sections"])["Features"])
    assert "ANNOTATIONS, no sound was heard" in source["Source"] and "MFCCs" not in source
    write_json(params.subject_path / "summary.json", {"about": "SIMULATED", "region": "responsive"})
    limits = model_card.card_facts(params)["limits"]
    assert "SIMULATED" in limits[0] and any("ANNOTATIONS" in limit for limit in limits)


def test_card_of_a_damaged_version_says_so_and_no_export_makes_no_card(params, monkeypatch):
    assert model_card.card_facts(params) is None
    card_of(params, monkeypatch)

    def damaged(*_):
        raise ModelError("model.onnx is not the file that bundle.json describes - export it again")

    monkeypatch.setattr(model_card.bundle, "open_bundle", damaged)
    (model,) = model_card.card_facts(params)["models"]
    assert "cannot be opened: model.onnx is not the file" in model["sentence"] and model["sections"] == []


# --- parts of a page ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.plot.ly/plotly.min.js"></script>',
        '<script async\n src="//cdn.example/x.js"></script>',
        '<img alt="a" src="http://example.org/a.png">',
        "<IMG SRC='https://example.org/a.png' onerror='alert(1)'>",
        "<img src=https://example.org/a.png>",
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<style>@import url("https://example.org/a.css");</style>',
        '<iframe src="https://example.org/"></iframe>',
        '<video src="https://example.org/a.mp4"></video>',
        '<svg><image href="https://example.org/a.png"/></svg>',
        '<table background="https://example.org/a.png"><tr><td style="background:url(//example.org/b)">1</td></table>',
        '<form action="https://example.org/"><input type="image" src="https://example.org/a.png"></form>',
        '<meta http-equiv="refresh" content="0;url=https://example.org/">',
        '<base href="https://example.org/">',
    ],
)
def test_nothing_in_a_result_runs_or_is_fetched(html):
    made = str(clean_html(f"<p>before</p>{html}<p>after</p>"))
    parsed = Parsed(made)
    assert parsed.references == [] and not {"script", "style", "iframe", "img", "form", "meta", "base"} & set(
        parsed.tags
    )
    assert not re.search(r"\bon\w+=|style=|background=|url\(", made) and "before" in made and "after" in made


@pytest.mark.parametrize("href", ["javascript:alert(1)", " javascript:alert(1)", "JAVAscript:x", "data:text/html,x"])
def test_links_that_run_something_lose_their_target(href):
    assert "href" not in str(clean_html(f'<a href="{href}">a</a>'))
    assert "alert(1)" not in str(markdown_html(f"[a]({href.strip()})"))


def test_links_to_follow_and_pictures_in_the_page_stay():
    kept = (
        '<a href="https://openneuro.org/datasets/ds003688">the data</a><img alt="a" src="data:image/png;base64,AAAA"/>'
    )
    assert str(clean_html(kept)) == kept
    assert "picture left out: https://example.org/a.png" in str(clean_html('<img src="https://example.org/a.png">'))


def test_markup_in_words_is_shown_as_text():
    made = str(markdown_html(f"region {ATTACK} and | a |\n\n| a | b |\n|---|---|\n| {ATTACK} | 2 |"))
    assert not {"script", "b"} & set(Parsed(made).tags) and "&lt;script&gt;" in made


def test_tables_have_headings_that_say_what_they_head_and_can_be_scrolled_by_keyboard():
    frame = pd.DataFrame({"mse": [1.0], "<b>": ["<i>"]}, index=["mlp"])
    soup = BeautifulSoup(str(clean_html(frame.to_html())), "html.parser")
    assert [(c.get_text(), c["scope"]) for c in soup.find_all("th")] == [("mse", "col"), ("<b>", "col"), ("mlp", "row")]
    assert soup.div["tabindex"] == "0" and soup.div["role"] == "region" and "mse" in soup.div["aria-label"]
    assert soup.find("i") is None and "border" not in soup.table.attrs
    words = BeautifulSoup(str(markdown_html("| a | b |\n|---|---|\n| 1 | 2 |")), "html.parser")
    assert words.div["tabindex"] == "0" and [c["scope"] for c in words.find_all("th")] == ["col", "col"]


def test_data_of_a_figure_cannot_end_its_script_and_comes_back_as_it_was():
    content = {"title": "</script><script>alert(1)</script><!--", "z": [1, None, 2.5], "u": "\u2028Δ"}
    text = str(script_json(content))
    assert "<" not in text and "\u2028" not in text and json.loads(text) == content


def notebook(*cells):
    made = nbformat.v4.new_notebook()
    for kind, source, *more in cells:
        if kind == "markdown":
            made.cells.append(nbformat.v4.new_markdown_cell(source, metadata={"tags": list(more)}))
        else:
            outputs = [one for one in more if not isinstance(one, str)]
            tags = [one for one in more if isinstance(one, str)]
            made.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs, metadata={"tags": tags}))
    return made


def result(**data):
    return nbformat.v4.new_output("display_data", data={key.replace("__", "/"): value for key, value in data.items()})


FIGURE = {
    "data": [{"type": "scatter", "name": "<b>r</b>", "x": [1, 2, 3], "y": [0.5, 0.75, 0.25]}],
    "layout": {"title": {"text": "A line"}, "xaxis": {"title": {"text": "Δt (s)"}}},
}
WIDGET = result(**{"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "VBox()"})


def test_parts_of_a_page_are_the_richest_form_of_each_result_in_order():
    bold = nbformat.v4.new_output("stream", name="stderr", text="\x1b[31mwarned\x1b[0m\n")
    parts = notebook_parts(
        notebook(
            ("markdown", "# T"),
            ("code", "a = '<b>'", bold),
            ("code", "fig", result(**{"application/vnd.plotly.v1+json": FIGURE, "text/plain": "words"})),
            ("code", "md", result(**{"text/markdown": "**x** <i>", "text/plain": "<Markdown>"})),
            ("code", "df", result(**{"text/html": "<table><tr><td>1</td></tr></table>", "text/plain": "1"})),
            ("code", "js", result(**{"text/html": "<script>1</script>"})),
            ("code", "png", result(**{"image/png": "AAAA\n", "text/plain": "a picture"})),
            ("code", "slider", WIDGET, "live"),
            ("code", "w", WIDGET),
        )
    )
    kinds = [(part["cell"], part["kind"]) for part in parts if part["kind"] != "code"]
    assert kinds == [(1, "words"), (2, "text"), (3, "figure"), (4, "words"), (5, "table"), (7, "picture"), (8, "live"),
                     (9, "live")]  # fmt: skip
    by_cell = {part["cell"]: part for part in parts if part["kind"] != "code"}
    assert by_cell[2]["text"] == "warned" and by_cell[3]["id"] == "figure-1"
    assert by_cell[3]["alt"] == "A line. Across: Δt (s). r: 0.25 to 0.75, highest at 2."
    assert str(by_cell[4]["html"]).strip() == "<p><strong>x</strong> &lt;i&gt;</p>"
    assert by_cell[7]["src"] == "data:image/png;base64,AAAA" and by_cell[7]["alt"] == "a picture"
    assert "&lt;b&gt;" in parts[1]["html"]


def test_failure_is_what_is_wrong_and_what_to_do():
    error = nbformat.v4.new_output(
        "error", ename="DataError", evalue="no scan - run 'fetch' - then again", traceback=[]
    )
    papermill = ("markdown", "An Exception was encountered", "papermill-error-cell-tag")
    found = read_failure(notebook(papermill, ("markdown", "# T"), ("code", "x", error)))
    assert found == Failure("no scan", "run 'fetch' - then again", "DataError", 2)
    assert read_failure(notebook(("code", "x"))) is None
    assert "not foreseen" in Failure.of("list index out of range").fix


def test_figure_is_told_by_its_own_numbers():
    z = {"dtype": "f4", "bdata": base64.b64encode(np.array([-1, np.nan, 3], "<f4").tobytes()).decode(), "shape": "1, 3"}
    slices = [{"type": "heatmap", "z": z, "coloraxis": "coloraxis"}] * 2
    layout = {"coloraxis": {"colorbar": {"title": {"text": "Δt (s)"}}}, "title": {"text": "Maps<br>of <b>delay</b>"}}
    slider = {"currentvalue": {"prefix": "Time: "}, "steps": [{"label": "0.6"}, {"label": "1.2"}]}
    said = describe_figure({"data": slices, "layout": layout | {"sliders": [slider]}})
    assert said == "Maps of delay. 2 pictures, Δt (s): -1 to 3. A slider chooses Time, 0.6 to 1.2."
    bar = {"type": "scatter", "orientation": "h", "name": "mse", "x": [3, 1], "y": ["mlp", "ridge"]}
    assert "mse: 1 to 3, highest at mlp" in describe_figure({"data": [bar], "layout": {}})
    many = [{"name": f"line {k}", "y": [k, k + 1]} for k in range(9)]
    assert "and 3 more" in describe_figure({"data": many})
    assert describe_figure({}) == "Figure without a title."


# --- pages --------------------------------------------------------------------------------

CELLS = (
    ("markdown", "# A story <i>of</i> its own with a [link](https://openneuro.org)"),
    ("code", "from IPython.display import HTML\nfrom bold_audio import figures, renderer\n"
     "renderer.use_notebook_renderer()"),
    ("code", "figures.plot_time_course([0, 1], {'</script><b>m': [3.25, 1.5]}, title='A figure', unit='r (1)')"),
    ("code", "print('seen in the page')"),
    ("code", f"HTML('<i>ok</i><img src=\"https://example.org/a.png\">'); {ATTACK!r}"),
    ("code", "import ipywidgets\nipywidgets.IntSlider()", "live"),
    ("code", "raise ValueError('it is <broken> - mend it')"),
)  # fmt: skip


def execute(folder, cells):
    """These (kind, source, tag) cells, executed by papermill as a run does; a failing one is kept."""
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for kind, source, *tags in cells:
        make = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        made.cells.append(make(source, metadata={"tags": tags}))
    nbformat.write(made, folder / "source.ipynb")
    target = folder / "04_train.ipynb"
    try:
        execution.execute_file(folder / "source.ipynb", target, {}, cwd=folder)
    except Exception as error:
        if "mend it" not in str(error):
            raise
    return target


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("report"), CELLS)


@pytest.fixture(scope="module")
def page(executed):
    write_page(executed, executed.parent / "report" / "04_train.html", who="sub-<09>")
    return (executed.parent / "report" / "04_train.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_executed_notebook_holds_each_figure_once_and_no_library(executed):
    assert executed.stat().st_size < 60_000
    text = executed.read_text(encoding="utf-8")
    assert text.count("application/vnd.plotly.v1+json") == 1 and "Plotly.newPlot" not in text
    assert "IntSliderModel" not in text and "widget-state" not in text


def test_page_asks_for_nothing_but_the_library_beside_it(page, executed):
    assert Parsed(page).references == ["plotly.min.js"]
    assert len((executed.parent / "report" / "plotly.min.js").read_text(encoding="utf-8")) > 4e6
    assert len(page) < 60_000
    policy = Parsed(page).policy
    assert "default-src 'none'" in policy and "http" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]


def test_page_has_what_was_found_and_leaves_cells_for_a_kernel_out(page):
    text = shown(page)
    assert "seen in the page" in text and "needs a running kernel" in text and "IntSlider(" not in text
    assert json.loads(BeautifulSoup(page, "html.parser").select_one("figure script").get_text())["layout"]


def test_page_shows_markup_in_results_as_text(page):
    soup = BeautifulSoup(page, "html.parser")
    assert "<script>alert('x')</script> & <b>bold</b>" in soup.get_text() and "sub-<09>" in soup.get_text()
    # the page's own script, the figure's data, the library
    assert [tag.get("type") or tag.get("src") for tag in soup.find_all("script")].count(None) == 1
    assert len(soup.find_all("script")) == 3 and not soup.find_all("b")


def test_page_of_a_failed_notebook_says_first_what_is_wrong_and_what_to_do(page):
    soup = BeautifulSoup(page, "html.parser")
    section = soup.select_one("main > section.failure")
    assert section is soup.select_one("main").find(True)
    assert "ValueError: it is <broken>" in shown(str(section)) and "What to do: mend it" in shown(str(section))
    assert soup.select_one(section.a["href"]) is not None
    assert "papermill-error-cell" not in page and "Execution using papermill encountered" not in page


def test_page_says_at_its_foot_from_what_it_was_made(executed, tmp_path):
    made = nbformat.read(executed, as_version=4)
    made.metadata["bold_audio"] = {"version": "0.1", "git_commit": "abc", "python": "3.11", "packages": {"numpy": "2"}}
    made.metadata["bold_audio"]["input_md5"] = {"<film>.wav": "d41d8"}
    made.metadata["papermill"]["parameters"] = {"subject": "09"}
    nbformat.write(made, tmp_path / "a.ipynb")
    write_page(tmp_path / "a.ipynb", tmp_path / "a.html")
    foot = shown(str(BeautifulSoup((tmp_path / "a.html").read_text(), "html.parser").footer))
    for said in ("commit abc", "MD5 of <film>.wav d41d8", "numpy 2", "subject = 09", "a.ipynb", "UTC, in"):
        assert said in foot
    write_page(executed, tmp_path / "b.html")
    assert "executed without bold-audio run" in (tmp_path / "b.html").read_text()


def test_same_notebook_gives_the_same_page_and_is_not_changed_by_it(page, executed, tmp_path):
    before = executed.read_bytes()
    write_page(executed, tmp_path / "page.html", who="sub-<09>")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert executed.read_bytes() == before


def test_library_is_written_once(page, executed):
    path = executed.parent / "report" / "plotly.min.js"
    before = path.stat().st_mtime_ns
    write_page(executed, executed.parent / "report" / "other.html")
    assert path.stat().st_mtime_ns == before
    path.write_text("// cut short")
    write_page(executed, executed.parent / "report" / "other.html")
    assert path.stat().st_size > 4e6


def test_file_that_is_no_notebook_is_one_line(tmp_path):
    (tmp_path / "04_train.ipynb").write_text("{")
    with pytest.raises(DataError, match=r"04_train.ipynb is no notebook \(.*\) - run its step again"):
        write_page(tmp_path / "04_train.ipynb", tmp_path / "a.html")
