"""The inter-subject ceiling against brute force, planted shared signals, independent noise, and twelve real people."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bold_audio import anatomy, answer, bids, ceiling, ceiling_figures, group, prepare, runs, workflow
from bold_audio.files import DataError
from bold_audio.params import load_params
from bold_audio.simulate import simulate_subject


def people_of(courses, names=None):
    n_volumes, n_columns = np.shape(next(iter(courses.values())))
    return ceiling.People(courses, tuple(names or map(str, range(n_columns))), np.arange(n_volumes), {}, 2.0)


def shared_and_own(rng, n_people, *, share, n=400, columns=3):
    """Everybody hears the same: ``share`` of each one's variance, on a level and gain of their own."""
    common = rng.standard_normal((n, columns))
    return {
        f"{k:02}": 500 * k
        + (1 + k) * (np.sqrt(share) * common + np.sqrt(1 - share) * rng.standard_normal((n, columns)))
        for k in range(n_people)
    }


def test_leave_one_out_equals_numpys_corrcoef():
    rng = np.random.default_rng(0)
    courses = shared_and_own(rng, 5, share=0.4)
    rows = np.arange(50, 300)
    found = ceiling.leave_one_out(courses, rows=rows)
    z = {k: (v[rows] - v[rows].mean(axis=0)) / v[rows].std(axis=0) for k, v in courses.items()}
    for i, label in enumerate(courses):
        others = np.mean([one for other, one in z.items() if other != label], axis=0)
        known = [np.corrcoef(courses[label][rows, c], others[:, c])[0, 1] for c in range(3)]
        np.testing.assert_allclose(found[i], known, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_ceiling_is_what_theory_says_of_a_planted_shared_signal(share):
    """One scan against the mean of m others: share / √(share + (1 − share) / m)."""
    rng = np.random.default_rng(1)
    found = ceiling.intersubject_ceiling(
        people_of(shared_and_own(rng, 9, share=share, n=6000), ["a", "b", "c"]), n_chance=0
    )
    known = share / np.sqrt(share + (1 - share) / 8)
    np.testing.assert_allclose(found["ceiling"], known, atol=0.02)
    assert list(found["region"]) == ["a", "b", "c"] and (found["n_people"] == 9).all()
    assert (found["low"] <= found["ceiling"]).all() and (found["ceiling"] <= found["high"]).all()


@pytest.mark.slow
def test_ceiling_of_independent_noise_is_nothing_and_chance_knows_it():
    """Slow noise, which anything correlates with by chance: no bias, and about 1 in 20 above the limit of chance."""
    rng, values, over = np.random.default_rng(2), [], []
    for _ in range(4):
        walk = np.cumsum(rng.standard_normal((6, 420, 40)), axis=1)
        slow = walk[:, 20:] - walk[:, :-20]
        found = ceiling.intersubject_ceiling(people_of(dict(zip("abcdef", slow, strict=True))), n_chance=60)
        values += list(found["ceiling"])
        over += list(found["ceiling"] > found["chance"])
    assert abs(np.mean(values)) < 0.02
    assert 0.01 <= np.mean(over) <= 0.1


def test_common_drift_is_no_ceiling_once_it_is_taken_off():
    rng = np.random.default_rng(3)
    courses = {k: rng.standard_normal((300, 1)) + np.linspace(0, 6, 300)[:, None] for k in "abcd"}
    raw = ceiling.intersubject_ceiling(people_of(courses), period=None, n_chance=0)["ceiling"].item()
    clean = ceiling.intersubject_ceiling(people_of(courses), n_chance=0)["ceiling"].item()
    assert raw > 0.7 and abs(clean) < 0.15


def test_a_person_without_a_region_is_left_out_of_that_region_alone():
    courses = shared_and_own(np.random.default_rng(4), 4, share=0.5)
    courses["02"][:, 1] = np.nan
    courses["03"][:, 2] = 7.0
    found = ceiling.intersubject_ceiling(people_of(courses, ["a", "b", "c"]), n_chance=20)
    assert list(found["n_people"]) == [4, 3, 3] and found["ceiling"].notna().all()
    without = {k: v for k, v in courses.items() if k != "02"}
    both = [ceiling.intersubject_ceiling(people_of(one), n_chance=0)["ceiling"][1] for one in (courses, without)]
    assert both[0] == pytest.approx(both[1])
    for one in ("00", "01", "03"):
        courses[one][:, 1] = np.nan
    assert np.isnan(ceiling.intersubject_ceiling(people_of(courses, "abc"), n_chance=0)["ceiling"][1])


def test_one_person_or_runs_of_other_lengths_are_refused():
    with pytest.raises(DataError, match="it takes at least two people who heard the same, got 1 - run more"):
        ceiling.leave_one_out({"01": np.zeros((5, 1))})
    with pytest.raises(DataError, match="differ in shape"):
        ceiling.leave_one_out({"01": np.zeros((5, 1)), "02": np.zeros((6, 1))})
    nobody = ceiling.People({}, (), np.zeros(0, int), {}, 2.0)
    with pytest.raises(DataError, match="got 0"):
        ceiling.intersubject_ceiling(nobody)


@pytest.mark.parametrize(("rows", "said"), [(np.arange(390, 400), "no volume"), (np.arange(299, 400), "1 volume")])
def test_people_who_share_too_little_are_refused_in_words(rows, said):
    """Somebody's short sound ends before the test part of another."""
    short = replace(people_of(shared_and_own(np.random.default_rng(6), 3, share=0.5)), rows=np.arange(300))
    with pytest.raises(DataError, match=f"people share {said} of those that are compared, at least 8 are needed - "):
        ceiling.intersubject_ceiling(short, rows=rows)


def test_share_of_ceiling_and_r_of_region_means():
    rng = np.random.default_rng(5)
    measured, noise = rng.standard_normal((200, 6)), rng.standard_normal((200, 6))
    regions = {"a": np.arange(6) < 3, "b": np.arange(6) >= 3}
    scores = ceiling.region_r(measured, measured + noise, regions, t_r=2.0, period=None)
    known = np.corrcoef(measured[:, :3].mean(axis=1), (measured + noise)[:, :3].mean(axis=1))[0, 1]
    assert scores["r"][0] == pytest.approx(known)
    wander = 3 * np.cos(np.linspace(0, np.pi, 200))[:, None]  # three times the noise
    drifting = [ceiling.region_r(measured + wander, noise + wander, regions, t_r=2.0, period=p) for p in (None, 128.0)]
    assert (drifting[0]["r"] > 0.8).all() and (drifting[1]["r"].abs() < 0.2).all(), "drift that both have is no r"
    limits = pd.DataFrame({"region": ["a", "b"], "ceiling": [0.4, 0.4], "own": [0.5, 0.05], "own_chance": 0.1})
    made = ceiling.share_of_ceiling(scores, limits)
    assert made["share"][0] == pytest.approx(known / 0.5) and np.isnan(made["share"][1])
    assert list(made.columns) == ["region", "r", "share", "ceiling", "own", "own_chance"]


def test_the_own_ceiling_of_a_person_whom_nobody_predicts_is_not_that_of_the_others():
    courses = shared_and_own(np.random.default_rng(7), 6, share=0.5)
    courses["03"] = np.random.default_rng(8).standard_normal((400, 3))
    people = people_of(courses, "abc")
    plain, mine = (ceiling.intersubject_ceiling(people, of=who, n_chance=60) for who in (None, "03"))
    pd.testing.assert_frame_equal(mine[list(plain)], plain)
    cleaned = {label: ceiling.high_pass(one, rows=people.rows, t_r=2.0) for label, one in courses.items()}
    np.testing.assert_allclose(mine["own"], ceiling.leave_one_out(cleaned)[3])
    assert (mine["ceiling"] > 0.3).all() and (mine["own"].abs() < 0.15).all()
    assert ceiling.share_of_ceiling(pd.DataFrame({"region": list("abc"), "r": 0.1}), mine)["share"].isna().all()
    other = ceiling.intersubject_ceiling(people, of="01", n_chance=60)
    assert (other["own"] > other["own_chance"]).all() and (other["own_chance"] > 0).all()


def clock(n_volumes=641, t_r=0.608, onset=0.0):
    return SimpleNamespace(n_volumes=n_volumes, t_r=t_r, onset=onset, sound_times=np.arange(n_volumes) * t_r - onset)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (clock(), ""),
        (clock(onset=0.01), ""),
        (clock(640), "640 volumes in place of 641"),
        (clock(t_r=0.61), "a repetition time of 0.61 s in place of 0.608 s"),
        (clock(onset=2.0), "the sound begins 2 s apart"),
    ],
)
def test_another_clock_is_named(other, said):
    found = ceiling.clock_difference(clock(), other)
    assert found.startswith(said) and bool(found) == bool(said)


@pytest.fixture(scope="module")
def three_people(tmp_path_factory):
    """Two SIMULATED people of one film, a shorter run, an empty folder, and the second person once more."""
    root = tmp_path_factory.mktemp("people") / "sim"
    for label, seed in (("01", 1), ("02", 2)):
        simulate_subject(root, subject=label, seed=seed, shape=(12, 14, 14), n_volumes=300, strength=0.8)
    simulate_subject(root.parent / "short", subject="03", shape=(12, 14, 14), n_volumes=200)
    (root.parent / "short" / "sub-03").rename(root / "sub-03")
    (root / "sub-04").mkdir()
    for path in (root / "sub-02").rglob("*.*"):
        again = root / str(path.relative_to(root)).replace("sub-02", "sub-05")
        again.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, again)
    return root


@pytest.mark.slow
def test_people_of_a_dataset_are_read_and_those_who_do_not_fit_are_named(three_people, tmp_path):
    params = load_params("01", "sim", data_dir=f"{three_people}", outputs_dir=f"{tmp_path}", n_mfcc=5, n_folds=2)
    people = ceiling.read_people(params)
    assert list(people.courses) == ["01", "02"] and set(people.left_out) == {"03", "04", "05"}
    assert people.left_out["05"] == "its scan is that of sub-02"
    assert people.left_out["03"] == "200 volumes in place of 300" and "is missing" in people.left_out["04"]
    assert ceiling.params_of(params, "02").n_mfcc == 5 and ceiling.params_of(params, "02").subject == "02"
    found = ceiling.intersubject_ceiling(people).set_index("region")
    assert found.loc["planted_auditory_right", "ceiling"] > 0.5
    scores = pd.DataFrame({"region": ["planted_auditory_right"], "r": [0.1]})
    table, left_out, why = answer.find_ceiling(prepare.open_subject(params), scores)
    assert (table["own"] > table["own_chance"]).all() and set(left_out) == {"03", "04", "05"} and why == ""
    assert table["share"].item() == 0.1 / table["own"].item()
    alone = SimpleNamespace(people=pd.DataFrame({"subject": ["01", "04"]}))
    table, left_out, why = group.find_ceiling(params, alone)
    assert table is None and list(left_out) == ["04"] and why.startswith("it takes at least two people who heard the")
    assert abs(found.loc["silent", "ceiling"]) < 0.3


@pytest.mark.slow
def test_whom_a_subject_is_compared_with_keeps_outputs_of_its_own(three_people, tmp_path):
    """Reading another person removes nothing there and makes no folder; who is run has its old transform removed."""
    given = {"data_dir": f"{three_people}", "outputs_dir": f"{tmp_path}", "n_mfcc": 5, "n_folds": 2}
    params, theirs = (load_params(label, "sim", **given) for label in ("01", "02"))
    where = SimpleNamespace(files=runs.locate_runs(theirs))
    old = [anatomy.transform_path(where, theirs, ending) for ending in (".json", ".nii.gz")]
    old[0].parent.mkdir(parents=True)
    for path in old:
        path.write_text("their own")
    assert list(ceiling.read_people(params).courses) == ["01", "02"]
    assert all(path.read_text() == "their own" for path in old)
    assert [path.name for path in (tmp_path / "sim").iterdir()] == ["sub-02"]
    assert "too little to find a place" in workflow.open_subject(theirs).anatomy.reason
    assert not any(path.exists() for path in old)
    assert (tmp_path / "sim/dataset_description.json").is_file()


@pytest.mark.slow
def test_twelve_people_who_heard_alice(shared, tmp_path):
    """Real scans: what they share is strongest in left posterior temporal cortex, and above chance there."""
    given = {"data_dir": f"{shared / 'realdata' / 'alice'}", "outputs_dir": f"{tmp_path}"}
    params = load_params("18", "alice", feature_source="annotations", **given)
    people = ceiling.read_people(params)
    assert list(people.courses) == bids.known_subjects(params) and len(people.courses) == 12 and not people.left_out
    found = ceiling.intersubject_ceiling(people, n_chance=100).set_index("region").drop("volume")
    assert found["ceiling"].idxmax() == "LPTL" and 0.2 < found.loc["LPTL", "ceiling"] < 0.3
    assert found.loc["LPTL", "ceiling"] > 2 * found.loc["LPTL", "chance"]


def test_ceiling_is_drawn_with_its_numbers():
    table = pd.DataFrame({"region": ["a", "b"], "ceiling": [0.4, np.nan], "n_people": [12, 0], "r": [0.1, 0.2]})
    fig = ceiling_figures.plot_ceiling(table, note="SIMULATED")
    assert [trace.x[0] for trace in fig.data] == [0.1, 0.4] and fig.data[0].name == "sound"
    assert "12 people" in fig.layout.title.text and fig.layout.title.subtitle.text == "SIMULATED"
    assert any(note.text == "no ceiling" for note in fig.layout.annotations)
    own = ceiling_figures.plot_ceiling(table.assign(own=[0.25, np.nan])).data[-1]
    assert own.name == "this person" and own.x[0] == 0.25
    assert "unit" in fig.layout.xaxis.title.text and fig.layout.yaxis.title.text == "Region (name)"
    alone = ceiling_figures.plot_ceiling(table.drop(columns="r").assign(low=0.1, high=0.6, chance=0.08))
    assert [trace.type for trace in alone.data] == ["bar", "scatter"]
    np.testing.assert_allclose(alone.data[0].error_x.array[0], 0.2)
    with pytest.raises(ValueError, match="at least one region"):
        ceiling_figures.plot_ceiling(table.iloc[:0])
