"""A13: the audit finds a planted shift, takes another film for another film, and keeps quiet where it cannot know."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from bold_audio import adopt, audit, dvcrepo, film, hearing, prepare, registry, sentences, workflow
from bold_audio.audit import Audit, audit_sound, block_match, blocks_in_events, word_match
from bold_audio.features import SoundFeatures, cached_mfcc
from bold_audio.files import DataError, ParameterError, file_md5
from bold_audio.params import load_params

pytestmark = pytest.mark.slow  # together a minute
EVENTS = pd.read_csv(io.StringIO(registry.film_events()), sep="\t")
STEP = audit.SETTINGS["hop_length"] / audit.SETTINGS["sample_rate"]  # s between frames


@pytest.fixture(scope="module")
def heard(sim_dir, tmp_path_factory):
    """MFCCs of the SIMULATED film."""
    return cached_mfcc(sim_dir / "stimuli/film.wav", tmp_path_factory.mktemp("cache"), **audit.SETTINGS)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Table of the times at which the SIMULATED film's syllables were spoken."""
    spoken = film.invented_syllables(np.random.default_rng([0, 2]), registry.DURATION)
    path = tmp_path_factory.mktemp("words") / "words.tsv"
    pd.DataFrame([(a, b) for _, a, b in spoken], columns=["onset", "offset"]).to_csv(path, sep="\t", index=False)
    return path


def of(heard, frames, **changed):
    return SoundFeatures(**{**vars(heard), "frames": frames, **changed})


def shifted(heard, seconds):
    """The same sound, ``seconds`` late; what falls off the end begins it."""
    return of(heard, np.roll(heard.frames, round(seconds / STEP), axis=0))


def ask(made, *, onset=0.0, words=None, events=EVENTS):
    return audit_sound("unused", "unused", events, onset=onset, words=words, made=made)


def other_film(heard, rng):
    """Music and speech of the film in turn, for 5 to 60 s at a time."""
    kind = (heard.frame_times // registry.BLOCK % 2).astype(int)
    material, used, now, pieces = [heard.frames[kind == k] for k in (0, 1)], [0, 0], 0, []
    while sum(map(len, pieces)) < len(heard.frames):
        length = int(rng.uniform(5, 60) / STEP)
        pieces.append(np.take(material[now], np.arange(used[now], used[now] + length), axis=0, mode="wrap"))
        used[now], now = used[now] + length, 1 - now
    return of(heard, np.concatenate(pieces)[: len(heard.frames)])


def test_the_film_follows_itself(heard, words):
    for table in (None, words):
        found = ask(heard, words=table)
        assert found.follows and found.shift == 0 and found.alarms(0.0) == ()
    assert found.block_r > 0.7 and found.word_z > 12 and found.block_length == 30


@pytest.mark.parametrize("seconds", [-11.0, -5.0, 5.0, 8.5])
def test_a_planted_shift_is_found_by_blocks_and_by_words(heard, words, seconds):
    made = shifted(heard, seconds)
    by_blocks, by_words = ask(made), ask(made, words=words)
    assert by_blocks.shift == pytest.approx(seconds, abs=0.51)
    assert by_words.shift == pytest.approx(seconds, abs=0.051)
    (alarm,) = by_words.alarms(0.0)
    late = "late" if seconds > 0 else "early"
    assert f"sound is {abs(seconds):.2g} s {late} against the film's words: audio_onset {-seconds:.4g}" in alarm
    # What the alarm says puts it right, on the clock of a run as well.
    for found in (ask(made, onset=-seconds), ask(made, onset=-seconds, words=words)):
        assert found.alarms(-seconds) == ()


def test_words_see_a_shift_that_blocks_cannot(heard, words):
    made = shifted(heard, 0.6)
    assert ask(made).alarms(0.0) == ()
    assert "0.6 s late" in ask(made, words=words).alarms(0.0)[0]


def test_half_a_period_looks_alike_to_the_blocks_but_not_to_the_words(heard, words):
    made = shifted(heard, 30.0)
    assert ask(made).follows and abs(ask(made).shift) <= 1
    assert ask(made, words=words).shift == pytest.approx(30.0, abs=0.051)


@pytest.mark.parametrize("seed", range(4))
def test_another_film_does_not_follow(heard, words, seed):
    made = other_film(heard, np.random.default_rng(seed))
    found = ask(made)
    assert found.follows is False and found.shift is None
    (alarm,) = found.alarms(0.0)
    assert alarm.startswith("sound does not follow the film's 30 s blocks (r = ")
    assert "words: z = " in ask(made, words=words).alarms(0.0)[0]


def test_another_film_with_the_same_blocks_is_found_by_its_words(heard, words, tmp_path):
    table = pd.read_csv(words, sep="\t")
    other = film.invented_syllables(np.random.default_rng([1, 2]), registry.DURATION)
    path = tmp_path / "words.tsv"
    pd.DataFrame([(a, b) for _, a, b in other], columns=table.columns).to_csv(path, sep="\t", index=False)
    found = ask(heard, words=path)
    assert found.block_r > 0.7 and found.follows is False
    assert "follows the film's blocks but not its words (words: z = " in found.alarms(0.0)[0]


def test_noise_follows_nothing(heard):
    rng = np.random.default_rng(0)
    assert ask(of(heard, rng.standard_normal(heard.frames.shape).astype(np.float32))).follows is False


def test_what_cannot_be_asked_raises_no_alarm(heard):
    story = pd.DataFrame({"onset": [0.0], "duration": [380.0], "trial_type": ["story"]})
    faces = pd.DataFrame({"onset": [0.0, 9.0], "duration": [1.0, 1.0], "trial_type": ["face", "house"]})
    few = EVENTS.iloc[:5]
    short = of(heard, heard.frames[:9000], frame_times=heard.frame_times[:9000])  # 90 s: three blocks
    for found in (ask(heard, events=None), *(ask(heard, events=e) for e in (story, faces, few)), ask(short)):
        assert found == Audit() and found.follows is None and found.alarms(0.0) == ()


def test_a_missing_table_of_words_is_not_asked_for(heard, tmp_path):
    assert ask(heard, words=tmp_path / "none.tsv").word_z is None


def test_coarse_features_are_made_anew(heard, sim_dir, tmp_path):
    coarse = of(heard, heard.frames[::10, :2], frame_times=heard.frame_times[::10], names=("mfcc0", "mfcc1"))
    found = audit_sound(sim_dir / "stimuli/film.wav", tmp_path, EVENTS, onset=0.0, made=coarse)
    assert found == ask(heard)


def test_a_block_is_judged_by_the_others_only():
    """With one label flipped, the fit that never saw that block must call it by its sound."""
    rng = np.random.default_rng(0)
    starts, ends, kinds = np.arange(8) * 10.0, np.arange(1, 9) * 10.0, np.arange(8) % 2
    times = np.arange(0, 80, 0.01)
    frames = rng.standard_normal((len(times), 60))
    r, _ = block_match(frames, times, starts, ends, kinds)
    assert r < 0.4  # 120 features of 160 bins would fit every label, seen
    frames[:, 0] += 5 * kinds[(times // 10).astype(int)]
    r, shift = block_match(frames, times, starts, ends, kinds)
    assert r > 0.7 and shift == 0


def test_word_match_of_a_sound_that_is_loud_when_somebody_speaks():
    rng = np.random.default_rng(0)
    begins = np.cumsum(rng.uniform(0.4, 1.2, 200))
    stops = begins + rng.uniform(0.1, 0.3, 200)
    times = np.arange(0, 250, 0.01)
    spoken = np.zeros(len(times))
    for a, b in zip(begins + 3.2, stops + 3.2, strict=True):
        spoken[(times >= a) & (times < b)] = 1
    z, shift = word_match(spoken + rng.standard_normal(len(times)), times, begins, stops)
    assert z > 12 and shift == pytest.approx(3.2, abs=0.051)
    assert word_match(rng.standard_normal(len(times)), times, begins, stops)[0] < audit.FOLLOWS_WORDS


def test_blocks_of_events():
    assert blocks_in_events(EVENTS)[:2] == [(0.0, 30.0, 0), (30.0, 30.0, 1)]
    assert len(blocks_in_events(EVENTS)) == 13


def test_the_words_of_alice_are_in_her_sound(shared, tmp_path):
    """Real word times and the speech RE-SYNTHESISED at them by somebody else."""
    params = load_params("18", "alice", data_dir=str(shared / "realdata/alice"))
    begins, stops = (pd.read_csv(adopt.word_table(params), sep="\t")[name].to_numpy() for name in ("onset", "offset"))
    made = cached_mfcc(params.audio_files[0], tmp_path, **audit.SETTINGS)
    z, shift = word_match(made.frames[:, 0], made.frame_times, begins, stops)
    assert z > 12 and abs(shift) < 0.11
    assert word_match(made.frames[::-1, 0], made.frame_times, begins, stops)[0] < audit.FOLLOWS_WORDS


def test_only_a_table_of_words_is_one():
    def table(tables, *which):
        return adopt.word_table(load_params("sim", annotation_tables=tables, data_dir="/data"), *which)

    assert table(["a/b_syllables.tsv", "a/b_words.tsv"]).as_posix() == "/data/a/b_words.tsv"
    assert table([]) is table(["b_syllables.tsv", "words/b_phonemes.tsv"]) is None
    assert table([["1_words.tsv"], ["2_words.tsv"]], 1, 2).name == "2_words.tsv"
    assert table([["1_words.tsv"], ["2_words.tsv"]]) is None  # of which of the two the run is, nobody said


# --- what a run says of its sound ---------------------------------------------------------


@pytest.fixture
def listen(small_params, sim_dir, tmp_path):
    """Function: features of the small simulated subject with the film's sound changed."""
    y, rate = soundfile.read(sim_dir / "stimuli/film.wav", dtype="int16")

    def listen(change, **given):
        path = tmp_path / "other.wav"
        soundfile.write(path, change(y, rate), rate)
        params = small_params(audio_path=str(path), **given)
        return params, hearing.read_features(params, prepare.ensure_scan(params))[0]

    return listen


def test_a_shorter_sound_is_refused_unless_allowed(listen):  # A06
    with pytest.raises(
        DataError, match=r"sound stops at 369\.7 s, the scan needs 389\.7 s of it: other\.wav - use the"
    ):
        listen(lambda y, rate: y[: -20 * rate])
    params, made = listen(lambda y, rate: y[: -20 * rate], allow_short=True)
    assert made.duration == pytest.approx(369.7, abs=0.05) and made.alarms == ()
    subject = workflow.open_subject(params)
    assert subject.run.files.n_volumes - 1 - subject.split.test[-1] >= int(20 / 0.608) - 10  # left out, and by no more:
    assert subject.split.test[-1] * 0.608 < 369.7 + 10


@pytest.mark.parametrize(("seconds", "warned"), [(0.27, False), (1.0, True)])
def test_a_longer_sound(listen, seconds, warned):  # A07
    _, made = listen(lambda y, rate: np.concatenate([y, y[: round(seconds * rate)]]))
    assert made.alarms == ()
    assert any("the sound lasts 390.7 s, the run needs 389.7 s" in text for text in made.warnings) == warned


def test_a_sound_out_of_time_is_named_before_any_number(listen):  # A13
    params, made = listen(lambda y, rate: np.roll(y, 5 * rate))
    assert "WARNING: sound is 5 s late against the film's blocks: audio_onset -5" in sentences.about_data(params, made)


# --- adopting a sound ---------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own, and the parameters of ds003688 there."""
    root = tmp_path / "project"
    shutil.copytree(adopt.files.project_root() / "params", root / "params")
    (root / "notebooks").mkdir()
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(root))
    return root, load_params("09", "ds003688")


def test_adopting_records_what_the_sound_is(project, sim_dir):
    root, params = project
    film_file = sim_dir / "stimuli/film.wav"
    said = "\n".join(adopt.adopt_sound(film_file, params, root=root))
    md5 = file_md5(film_file)
    assert f"389.73 s of sound, 44100 Hz, 1 channels, MD5 {md5}" in said
    assert "it follows the film, 0 s off" in said and "WARNING" not in said and "audio_path" not in said
    assert (root / "data/ds003688/stimuli/film.wav").read_bytes() == film_file.read_bytes()
    entry = dvcrepo.sound_entry(root)
    assert (entry.path, entry.bytes, entry.md5) == ("ds003688/stimuli/film.wav", film_file.stat().st_size, md5)
    recorded = yaml.safe_load((root / dvcrepo.SOUND_ENTRY).read_text())["meta"]
    assert recorded["duration"] == pytest.approx(389.728, abs=0.01)
    assert recorded["audit"]["follows"] is True and recorded["audit"]["shift"] == 0
    assert params.audio_files[0] == root / "data/ds003688/stimuli/film.wav"


def test_adopting_a_compressed_sound_out_of_time_says_so(project, sim_dir, tmp_path):
    root, params = project
    y, rate = soundfile.read(sim_dir / "stimuli/film.wav", dtype="int16")
    soundfile.write(tmp_path / "My Film.flac", np.roll(y, -4 * rate), rate)
    said = "\n".join(adopt.adopt_sound(tmp_path / "My Film.flac", params, root=root))
    assert "WARNING: sound is 4 s early against the film's blocks: audio_onset 4 would put it right" in said
    assert "pass -p audio_path stimuli/film.flac" in said
    recorded = yaml.safe_load((root / dvcrepo.SOUND_ENTRY).read_text())["meta"]
    assert recorded["audit"]["shift"] == pytest.approx(-4, abs=0.5)


def test_a_short_sound_is_not_adopted(project, tmp_path):
    root, params = project
    soundfile.write(tmp_path / "short.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 8000 * 60), 8000)
    with pytest.raises(DataError, match=r"sound stops at 60\.0 s, the scan needs 389\.7 s of it"):
        adopt.adopt_sound(tmp_path / "short.wav", params, root=root)
    begun = load_params("09", "ds003688", audio_onset=-10)  # 10 s before the scan
    with pytest.raises(DataError, match=r"sound stops at 60\.0 s, the scan needs 399\.7 s of it"):
        adopt.adopt_sound(tmp_path / "short.wav", begun, root=root)
    assert not (root / "data").exists()


def test_a_sound_is_not_adopted_for_a_dataset_that_lies_elsewhere(project, sim_dir, tmp_path):
    elsewhere = load_params("09", "ds003688", data_dir=str(tmp_path / "else"))
    with pytest.raises(ParameterError, match="DVC keeps data/ds003688 of the project, got .*else - leave out data_dir"):
        adopt.adopt_sound(sim_dir / "stimuli/film.wav", elsewhere, root=project[0])


def test_a_sound_that_begins_later_than_the_scan_may_be_shorter(project, sim_dir, tmp_path):
    y, rate = soundfile.read(sim_dir / "stimuli/film.wav", dtype="int16")
    soundfile.write(tmp_path / "late.wav", y[20 * rate :], rate)  # what the events call 20 s is the first of it
    adopt.adopt_sound(tmp_path / "late.wav", load_params("09", "ds003688", audio_onset=20), root=project[0])


def test_another_sound_than_the_adopted_one_is_named(project, sim_dir, small_params):
    root, params = project
    adopt.adopt_sound(sim_dir / "stimuli/film.wav", params, root=root)
    run = prepare.ensure_scan(small_params())  # any run of that length
    path = root / "data/ds003688/stimuli/film.wav"
    made = cached_mfcc(path, params.cache_path, **audit.SETTINGS)
    assert adopt.judge_sound(made, params, run, params.audio_files[0]).warnings == ()
    with path.open("ab") as handle:
        handle.write(b"more")
    (warning,) = adopt.judge_sound(made, params, run, params.audio_files[0]).warnings
    assert "film.wav is not the sound that was adopted (MD5 " in warning


def test_a_spoilt_record_is_named(project):
    root, _ = project
    (root / "data").mkdir()
    (root / dvcrepo.SOUND_ENTRY).write_text("outs: []\n")
    with pytest.raises(DataError, match="is not the record of a sound - run 'bold-audio adopt-sound' again"):
        dvcrepo.sound_entry(root)
