"""What stands beside a subject's answer: controls, the other people, and the map as a page to scroll through."""

import re

import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from bold_audio import anatomy, brain, ceiling, contrast, controls, hearing, hemispheres, inferred
from bold_audio.files import DataError, fingerprint, write_table, write_text
from bold_audio.outcomes import study_region
from bold_audio.prepare import MLP_ONLY
from bold_audio.sentences import scan_note
from bold_audio.significance import OVER_PAST, WITHIN

WHITE = 0.9  # share of white matter that a voxel of the template must have


def ensure_controls(subject, found):
    """The table of controls: ``controls.tsv``, made once.

    Parameters
    ----------
    subject : Subject
    found : sweep.DelaySweep
        Its delay is that of the blocks.

    Returns
    -------
    DataFrame
        See `controls.control_table`.
    """
    import bold_audio.answer as this

    chose = [found.delay, found.responsive.nonzero()[0].tolist()]
    key = fingerprint(subject.result_key(this, without=MLP_ONLY), chose)
    path, step = subject.path("controls.tsv"), "controls"
    if not subject.has(step, key, path.name):
        region = study_region(subject)
        roi = found.responsive if region == "responsive" else subject.run.regions[region]
        table = controls.subject_controls(
            subject,
            found.delay,
            white=white_matter(subject),
            tested=region,
            test_sound=lambda features: test_sound(subject, features, {region: roi}),
        )
        write_table(path, table)
        subject.record(step, key=key)
    return pd.read_csv(path, sep="\t")


def find_contrast(subject, found):
    """Speech against music blocks over the whole run, as a map; None where the film has no blocks.

    Writes the map of t.

    Returns
    -------
    contrast.ContrastMap or None
    """
    if subject.blocks is None:
        return None
    params, run = subject.params, subject.run
    made = contrast.contrast_map(
        subject.Y,
        subject.designs["blocks"].at(found.delay),
        rows=subject.whole_run,
        t_r=run.files.t_r,
        order=params.history_order,
        chunk_voxels=params.chunk_voxels,
    )
    text = f"t of speech above music at {found.delay:g} s, whole run; |t| > {made.threshold:.2f} is 5 % family-wise"
    brain.write_map(run, params, made.t, model="speechMusic", stat="t", description=text)
    return made


def test_sound(subject, features, regions):
    """Gain and p of a sound that the subject did not hear, in a region, beyond the past and the film's blocks.

    Parameters
    ----------
    features : features.SoundFeatures
        From `controls.other_film`: of a single run with blocks.
    regions : dict of str to array of bool, shape (n_voxels,)
        The first one counts.

    Returns
    -------
    (float, float)
    """
    files, params = subject.run.files, subject.params
    how = {"response": params.response, "n_lags": params.sound_lags}
    design = hearing.design_of([features], files, **how)
    table = inferred.infer_subject_regions(subject, regions, design=design, questions=[WITHIN])
    return float(table["gain"].iloc[0]), float(table["p"].iloc[0])


def white_matter(subject):
    """Voxels deep in the template's white matter: array of bool, shape (n_voxels,), or why there are none."""
    if subject.anatomy.template_mm is None:
        return controls.NotDone(subject.anatomy.reason or "the scan has no place in the template")
    from nilearn.datasets import load_mni152_wm_template

    template = load_mni152_wm_template(resolution=2)
    points = subject.anatomy.template_mm[subject.run.mask]
    return anatomy.nearest_values(template.get_fdata() > WHITE, template.affine, points)


def write_views(subject, z, sure):
    """Write the map as a page to scroll through, over the subject's mean volume, in the report's folder.

    Parameters
    ----------
    z : array of shape (i, j, k)
        NaN outside the mask.
    sure : bool array of shape (i, j, k)
        Where the map is significant: the page opens there.

    Returns
    -------
    Path or None
        ``report/map_of_the_sound.html``; None where the scan has no grid to look at.
    """
    run = subject.run
    if min(z.shape) < 2:
        return None
    import nibabel as nib
    from nilearn.image import coord_transform
    from nilearn.plotting import view_img

    images = [nib.Nifti1Image(np.asarray(one, np.float32), run.affine) for one in (np.nan_to_num(z), run.mean_image)]
    shown = np.where(sure, z, -np.inf) if sure.any() else np.where(np.isfinite(z), z, -np.inf)
    at = coord_transform(*np.unravel_index(np.argmax(shown), z.shape), run.affine)
    title = f"{scan_note(subject.params) or ''} evidence of the sound beyond the past, not thresholded".strip()
    look = {"cut_coords": at, "title": title, "threshold": None, "opacity": 0.7, "cmap": "RdBu_r"}
    look |= dict.fromkeys(("annotate", "show_lr"), run.shown_affine is not None)  # mm and sides
    page = view_img(
        images[0], bg_img=images[1], black_bg=True, vmax=float(np.percentile(np.abs(z[np.isfinite(z)]), 99.9)), **look
    )
    path = subject.path("report/map_of_the_sound.html")
    write_text(path, _offline(page.get_standalone()))
    return path


def _offline(html):
    """Nilearn's page without the picture it fetches for the tab, and with a name for its slider.

    Raises
    ------
    DataError
        If the page would still ask another host for something.
    """
    html = re.sub(r'<link rel="icon"[^>]*>', "", html)
    html = html.replace('type="range"', 'type="range" aria-label="opacity of the map"', 1)
    tags = BeautifulSoup(html, "html.parser").find_all(["link", "script", "img", "iframe", "source"])
    asked = [tag.get(where, "") for tag in tags for where in ("src", "href")]
    if remote := [one for one in asked if re.match(r"(https?:)?//", one)]:
        raise DataError(f"map_of_the_sound.html would ask for {remote[0]} - this version of nilearn writes other pages")
    return html


def find_ceiling(subject, scores):
    """What other people's scans predict of this one's regions, beside a model's r.

    Parameters
    ----------
    subject : Subject
    scores : DataFrame
        ``region`` and ``r`` of a model, from `ceiling.region_r`, on the volumes compared here.

    Returns
    -------
    table : DataFrame or None
        From `ceiling.share_of_ceiling`; None where nobody else can be compared.
    left_out : dict of str to str
        Who is not among them, and why.
    reason : str
        Why there is no table; empty where there is one.
    """
    people = ceiling.read_people(subject.params)
    try:
        known = ceiling.intersubject_ceiling(people, of=subject.params.subject, rows=subject.split.test)
    except DataError as error:
        return None, people.left_out, str(error)
    return ceiling.share_of_ceiling(scores, known), people.left_out, ""


def hemisphere_table(subject, found, table):
    """Left beside right with the person's language dominance; empty where no region has a twin."""
    model = WITHIN if (table["model"] == WITHIN).any() else OVER_PAST
    scores = table[table["model"] == model]
    dominance = hemispheres.read_dominance(subject.params)
    regions = found.regions
    return hemispheres.hemisphere_table(
        regions, scores, subject=subject.params.subject, dominance=dominance, score="gain"
    )
