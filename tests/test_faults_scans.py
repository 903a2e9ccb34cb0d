"""docs/faults.md, scans: what a person sees of a scan that is missing, damaged or odd."""

import gzip
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from faults import N_VOLUMES, T_R, noticed, rows

from bold_audio import answer, brain_figures, quality_sentences, registry, serving, workflow
from bold_audio.access import TOKEN_VARIABLE
from bold_audio.files import file_md5
from bold_audio.registry import ReleaseFile

pytestmark = pytest.mark.slow
DIM4, DATATYPE, SLOPE = 48, 70, 112  # places of the number of volumes, the data type and the slope in a NIfTI header


@pytest.fixture
def release(site, monkeypatch):
    """The site, its scan that of sub-09 in a small ds003688 whose registry knows it."""
    files, folder = list((site.data / "sub-sim").rglob("*")), site.data / "sub-09"
    for path in (path for path in files if path.is_file()):
        target = folder / path.relative_to(site.data / "sub-sim").as_posix().replace("sub-sim", "sub-09")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (site.scan,) = folder.rglob("*_bold.nii.gz")
    path = site.scan.relative_to(site.data).as_posix()
    known = ReleaseFile("09", "bold", path, site.scan.stat().st_size, file_md5(site.scan))
    others = [ReleaseFile(one, "bold", path.replace("09", one), 1, "0") for one in ("04", "13")]
    monkeypatch.setattr(registry, "release_files", lambda: (known, *others))
    monkeypatch.delenv(TOKEN_VARIABLE)  # with it, what is missing would be fetched
    return site


def run_09(site, status, says):
    return site.refuse_run(status, says, subject="09", dataset="ds003688")


def edit(site, place, new):
    """Write bytes into the unpacked scan."""
    content = bytearray(gzip.decompress(site.scan.read_bytes()))
    content[place : place + len(new)] = new
    site.replace(site.scan, gzip.compress(bytes(content), compresslevel=1))


def change(site, function, dtype=np.float32):
    """Replace the scan's values by what a function makes of them: array of shape (i, j, k, n_volumes)."""
    image = nib.load(site.scan)
    made = nib.Nifti1Image(function(image.get_fdata(dtype=np.float32)).astype(dtype), image.affine, image.header)
    made.header.set_data_dtype(dtype)
    nib.save(made, site.scan)


def write(site, place, value):
    def function(volumes):
        volumes[place] = value
        return volumes

    return lambda: change(site, function)


# --- damaged files ------------------------------------------------------------------------


@rows("S01", "S02", "S03")
def test_scan_that_is_not_whole(release, row):
    whole = release.scan.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    bad = {"S01": whole[: len(whole) // 2], "S02": whole[:-8], "S03": bytes(flipped)}[row]
    release.replace(release.scan, bad)
    what = "its MD5 is not that of ds003688 v1.0.7" if row == "S03" else f"{len(bad)} of {len(whole)} bytes"
    run_09(release, 3, ["sub-09: scan damaged: ", what, f"{release.scan}", "'bold-audio fetch --subject 09'"])


PLACEHOLDERS = {
    "S05-page": (b"<!DOCTYPE html>\n<html><body>404", "<!DOCTYPE html>"),
    "S05-git-annex": (b"../../.git/annex/objects/Xx/Yy/MD5E-s119908660", "../../.git/annex"),
    "S05-DVC": (b"outs:\n- md5: 0123456789abcdef\n  size: 119908660\n", "outs:"),
}


@rows(*PLACEHOLDERS)
def test_placeholder_in_place_of_a_scan(site, row):
    content, shown = PLACEHOLDERS[row]
    site.replace(site.scan, content)
    site.refuse_run(3, ["scan is a placeholder", shown, "the download did not finish, fetch it again"])


@rows("S06")
def test_scan_that_is_absent(release, row):
    release.scan.unlink()
    ways = ["'bold-audio fetch --subject 09'", "feature_source annotations"]
    run_09(release, 3, ["sub-09 is not there", f"{release.scan} is missing", *ways])


@rows("S04", "S07", "S08", "S09", "S11", "S13-many", "S14-constant image", "S18")
def test_scan_that_cannot_be_used(site, row):
    spoil, says = {
        "S04": (lambda: site.replace(site.scan, b""), ["scan is empty", "fetch it again"]),
        "S07": (lambda: site.replace(site.scan, gzip.decompress(site.scan.read_bytes())), ["rename it to .nii"]),
        "S08": (
            lambda: edit(site, DIM4, b"\x14\0"),
            ["scan holds more volumes than its header says"],
        ),
        "S09": (lambda: edit(site, DIM4, b"\x81\2"), ["scan damaged"]),
        "S11": (lambda: change(site, lambda volumes: volumes[..., 0]), ["one volume", "needs a 4-D image"]),
        "S13-many": (write(site, np.s_[:4], np.nan), ["33% of the voxels", "are not numbers"]),
        "S14-constant image": (write(site, np.s_[:], 1000), ["brain mask of", "is empty - check the scan"]),
        "S18": (
            lambda: edit(site, DATATYPE, (999).to_bytes(2, "little")),
            ["scan cannot be read", "data code 999 not recognized"],
        ),
    }[row]
    spoil()
    site.refuse_run(3, says)


# --- header, sidecar and events -----------------------------------------------------------


@rows("S10-2.0", "S10-0")
def test_two_repetition_times(site, row):
    in_header = float(row.split("-")[1])
    edit(site, 92, np.float32(in_header).tobytes())
    site.refuse_run(3, [f"repetition time {in_header:g} s in the header, 0.608 s in the sidecar - set t_r_source"])
    assert site.open(t_r_source="sidecar").run.files.t_r == T_R


@rows("S10-608 ms")
def test_repetition_time_in_milliseconds(site, row):
    edit(site, 92, np.float32(608).tobytes())
    edit(site, 123, bytes([2 + 16]))  # mm, ms
    site.replace(site.sidecar, json.dumps({"TaskName": "film"}).encode())
    assert site.open().run.files.t_r == pytest.approx(T_R)


@rows("S19-later", "S19-earlier")
def test_events_of_another_run(site, row):
    last = 340 if row == "S19-later" else 10
    text = f"onset\tduration\ttrial_type\n0\t10\tmusic\n10\t{last}\tspeech\n"
    site.replace(site.events, text.encode())
    site.refuse_run(3, [f"events end at {last + 10:.1f} s, the scan at {N_VOLUMES * T_R:.1f} s"])


@rows("S19-after the scan", "S19-milliseconds", "S19-audio_onset")
def test_sound_that_begins_after_the_scan(site, row):
    if row != "S19-audio_onset":
        onset = 5000 if row == "S19-milliseconds" else 100
        site.replace(site.events, f"onset\tduration\ttrial_type\n{onset}\t10\tmusic\n".encode())
    given = {"audio_onset": 100} if row == "S19-audio_onset" else {}
    ways = "mend the events (times in s), or set audio_onset"
    site.refuse_run(3, ["the sound begins at", f"the scan ends at {N_VOLUMES * T_R:.1f} s", ways], **given)


@rows("S19-no table", "S19-no types")
def test_events_that_do_not_say_when_the_sound_begins(site, row):
    if row == "S19-no table":
        site.events.unlink()
    else:
        site.replace(site.events, b"onset\tduration\ttrial_type\n0\t10\tpress\n")
    says = {"S19-no table": f"there is no {site.events.name}", "S19-no types": "no music, speech or story event in"}
    site.refuse_run(3, [says[row], "set audio_onset"])


@rows("S16-NaN", "S16-0", "S16-Inf")
def test_slope_that_scales_nothing(site, row):
    before = np.array(site.open().Y)
    edit(site, SLOPE, np.float32(row.split("-")[1]).tobytes())
    subject = site.open()
    np.testing.assert_array_equal(subject.Y, before)
    told = "scl_slope in the header is inf: the values are taken unscaled"
    assert noticed(subject) == (told if row == "S16-Inf" else "")


@rows("S17-no forms", "S17-two forms")
def test_orientation(site, row):
    affine = nib.load(site.scan).affine
    image = nib.Nifti1Image(np.asarray(nib.load(site.scan).dataobj), affine, nib.load(site.scan).header)
    if row == "S17-no forms":
        image.set_sform(affine, code=0)
        image.set_qform(affine, code=0)
        affine = image.header.get_base_affine()
    else:
        image.set_qform(np.diag([4.0, 4, 4, 1]), code=1)
    nib.save(image, site.scan)
    subject = site.open()
    np.testing.assert_allclose(subject.run.affine, affine, atol=1e-4)
    unknown = "orientation unknown (sform and qform are 0): left and right are not labelled"
    assert noticed(subject) == (unknown if row == "S17-no forms" else "")
    run = subject.run
    figure = brain_figures.plot_slices(run.mean_image, affine=run.shown_affine, n_slices=1, title="t", unit="a.u.")
    written = [note.text for note in figure.layout.annotations]
    sides = ["<b>L</b>", "<b>R</b>"]
    assert written[1:] == ([] if row == "S17-no forms" else sides) and ("mm" in written[0]) == (written[1:] == sides)
    page = answer.write_views(
        subject, run.to_grid(run.mean_image[run.mask]), np.zeros(run.mask.shape, bool)
    ).read_text()
    assert (f'"showLR": {str(row != "S17-no forms").lower()}' in page) and page.count('"showLR"') == 1


# --- values -------------------------------------------------------------------------------


def left_out(subject):
    """What notebook 00 says was left out."""
    return ", ".join(f"{n} {why}" for why, n in subject.run.counts.items())


@rows("S13-few", "S14-constant voxels")
def test_bad_voxels_are_left_out_and_counted(site, row):
    i, j, k = (index[:5] for index in np.nonzero(site.open().run.mask))
    value = np.nan if row == "S13-few" else 1000
    write(site, (i, j, k, np.s_[:] if row != "S13-few" else 7), value)()
    subject = site.open()
    assert f"5 {'not finite' if row == 'S13-few' else 'constant in train'}" in left_out(subject)
    assert not subject.run.mask[i, j, k].any() and np.isfinite(subject.Y).all()


@rows("S15")
def test_empty_volume_and_spike_are_named_and_stay(site, row):
    def function(volumes):
        volumes[..., 100] = 0
        volumes[..., 110] *= 10
        return volumes

    change(site, function)
    subject = site.open()
    text = quality_sentences.about_outliers(workflow.ensure_quality(subject))
    assert re.search(r"volume 100 \(60\.8 s, \w+\): empty volume", text)
    assert re.search(r"volume 110 \(66\.9 s, \w+\): outlier", text) and "None is mended" in text
    assert not subject.Y[100].any() and subject.Y[110].mean() > 5 * subject.Y[109].mean()


@rows("S12")
def test_another_grid_is_read_and_refused_by_the_model(site, row):
    shutil.rmtree(site.data / "derivatives")  # what was planted, on the grid before
    change(site, lambda volumes: np.concatenate([volumes, volumes[:, -1:]], axis=1))
    subject = site.open()
    assert subject.run.mask.shape == (12, 13, 12)
    says = ["the model was trained on sub-sim with mask", "train a model for this scan"]
    site.refuse_call(serving.served_row, subject, workflow.open_exported(subject), status=6, says=says)
