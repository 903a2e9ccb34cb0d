"""Real scans, where they are: twelve people listening to Alice, and a scan without any sound."""

import numpy as np
import pytest

from bold_audio import bids, workflow
from bold_audio.params import load_params

pytestmark = pytest.mark.slow


@pytest.fixture
def alice(shared, tmp_path):
    """Function: parameters of one person of the Alice dataset."""

    def make(subject, **given):
        folders = {"data_dir": str(shared / "realdata" / "alice"), "outputs_dir": str(tmp_path)}
        return load_params(subject, "alice", **folders, **given)

    return make


@pytest.mark.parametrize("feature_source", ["audio", "annotations"])
def test_left_posterior_temporal_cortex_follows_speech_at_4_to_6_s(alice, feature_source):
    """Average of the 12 people: the sound's delay curve in LPTL (published data peak between 4 and 6 s)."""
    curves = []
    for subject in bids.known_subjects(alice("18")):
        found = workflow.ensure_sweep(workflow.open_subject(alice(subject, feature_source=feature_source)))
        lptl = found.table[found.table["region"] == "LPTL"]
        curves.append(lptl["skill"].to_numpy())
    assert len(curves) == 12
    assert 4 <= lptl["delay"].to_numpy()[np.mean(curves, axis=0).argmax()] <= 6


def test_sound_started_before_the_scan(alice):
    """Onset −20 s: volume 0 already hears second 20 of the sound, minus the delay."""
    subject = workflow.open_subject(alice("18", response="delay"))
    assert subject.run.files.onset == -20.0 and subject.run.files.t_r == 2.0
    assert list(subject.run.regions) == ["volume", "LATL", "RATL", "LPTL", "LIPL", "LPreM", "LIFG"]
    assert np.isfinite(subject.designs["sound"].at(10.0)[0]).all()


def test_own_history_is_strong_in_real_regions(alice):
    """`history` alone reaches r ≈ .72 in LPTL (METHOD, average of 12): what the sound must add to."""
    values = []
    for label in bids.known_subjects(alice("18")):
        subject = workflow.open_subject(alice(label))
        rows = workflow.fit_linear_rows(subject, 5.0, names=("constant", "history"))
        table, _ = workflow.score_rows(
            subject, rows, subject.split.test, subject.run.regions, fitted_on=subject.split.train
        )
        row = table[(table["model"] == "history") & (table["prediction"] == "one_step") & (table["region"] == "LPTL")]
        values.append(row["r_median"].item())
    assert np.mean(values) == pytest.approx(0.72, abs=0.03)


def test_a_scan_without_sound_gains_nothing(shared, sim_dir, tmp_path):
    """One-back paired with the simulated film: over the brain the sound must not help the past."""
    params = load_params(
        "02",
        "oneback",
        data_dir=str(shared / "realdata" / "oneback"),
        audio_path=str(sim_dir / "stimuli" / "film.wav"),
        outputs_dir=str(tmp_path),
        downsample=2,
    )
    subject = workflow.open_subject(params)
    assert subject.blocks is None and subject.run.files.onset == 0.0
    rows = workflow.fit_linear_rows(subject, 5.0, names=("constant", "history", "history_sound"))
    table, _ = workflow.score_rows(
        subject,
        rows,
        subject.split.test,
        subject.run.regions,
        fitted_on=subject.split.train,
        predictions=["one_step"],
    )
    gain = table[(table["model"] == "history_sound") & (table["region"] == "brain")]["skill"].item()
    assert gain < 0.005
