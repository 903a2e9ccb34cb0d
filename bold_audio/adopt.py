"""The film's sound, which is not in the public release: checked, recorded by whoever has it, recognised again."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bold_audio import dvcrepo, files, registry
from bold_audio.audit import audit_sound
from bold_audio.fetch import check_project_folder
from bold_audio.files import DataError, MachineError
from bold_audio.schema import DEFAULT_DATASET
from bold_audio.sound import open_sound

MATCH = 0.5  # s that a sound may be shorter or longer than the run without a word


def adopt_sound(path, params, *, root):
    """Check the sound of ds003688's film, put it into the dataset, and record its MD5, length and audit for DVC.

    Parameters
    ----------
    path : path
        The sound file. Its bytes are kept as they are, so that its MD5 is that of every copy.
    params : Params
        Of ds003688: ``audio_onset`` and ``allow_short`` count.
    root : path
        The project; ``data/ds003688_sound.dvc`` is written there.

    Returns
    -------
    list of str
        What was found and done, as sentences.

    Raises
    ------
    DataError
        If it is no sound, or ends before the scan; nothing is written then.
    ParameterError
        If the dataset lies elsewhere than in the project.
    MachineError
        If there is no room for it.
    """
    path, root = Path(path), Path(root)
    check_project_folder(root, params.data_path)
    sound, onset = open_sound(path), params.audio_onset or 0.0
    needed = registry.DURATION - onset
    if sound.duration < needed - MATCH and not params.allow_short:
        raise DataError(
            f"sound stops at {sound.duration:.1f} s, the scan needs {needed:.1f} s of it: {path} - adopt the whole "
            "sound, or pass -p allow_short true"
        )
    events = pd.read_csv(io.StringIO(registry.film_events()), sep="\t")
    found = audit_sound(path, params.cache_path, events, onset=onset, words=word_table(params))
    target = root / "data" / "ds003688" / "stimuli" / f"film{path.suffix.lower()}"
    item = registry.ReleaseFile(
        registry.SHARED, "sound", f"stimuli/{target.name}", path.stat().st_size, files.file_md5(path)
    )
    try:
        if not registry.is_right(target, item):
            with files.write_whole(target) as part:
                shutil.copyfile(path, part)
        meta = {"duration": round(sound.duration, 3), "sample_rate": sound.rate, "channels": sound.channels}
        about = {"meta": meta | {"audio_onset": onset, "warnings": list(sound.warnings), "audit": found.facts()}}
        text = dvcrepo.entries_text([item], command="adopt-sound", what="the film's sound", **about)
        files.write_text(root / dvcrepo.SOUND_ENTRY, text)
    except OSError as error:
        raise MachineError(f"{error.filename or target}: {error.strerror} - free space or permit writing") from error
    said = [f"{sound.duration:.2f} s of sound, {sound.rate} Hz, {sound.channels} channels, MD5 {item.md5}: {target}"]
    said += [f"warning: {text}" for text in (*sound.warnings, *length_warnings(sound.duration, needed))]
    alarms = found.alarms(onset)
    said += [f"WARNING: {text}" for text in alarms]
    if not alarms and found.follows:
        said.append(f"it follows the film, {abs(found.shift):.2g} s off")
    said.append(
        f"recorded in {root / dvcrepo.SOUND_ENTRY} - commit it; 'bold-audio publish' puts the sound on your remote"
    )
    if target.name != (params.audio_files or [Path("film.wav")])[0].name:
        said.append(f"pass -p audio_path {item.path}, or set it in params/ds003688.yaml")
    return said


def word_table(params, k=0, n_runs=1):
    """Return the path of a run's table of words, there or not; None where the dataset names none for it.

    Parameters
    ----------
    params : Params
        ``annotation_tables``: a list for each run, or one that serves all.
    k, n_runs : int
        Which of the runs that are read, counted from 0, and how many there are.

    Returns
    -------
    Path or None
        None also where there are lists for other runs than those that are read: which is whose is not known.
    """
    tables = params.annotation_tables
    tables = [tables] if tables and isinstance(tables[0], str) else tables
    if len(tables) not in (1, n_runs):
        return None
    # What counts as following is known of words alone: syllables and phonemes have other rhythms.
    words = [name for name in tables[k % len(tables)] if "word" in Path(name).name]
    return params.data_path / words[0] if words else None


def length_warnings(duration, needed):
    """Return a sentence where a sound is longer than the run needs, in seconds both."""
    if duration <= needed + MATCH:
        return ()
    return (f"the sound lasts {duration:.1f} s, the run needs {needed:.1f} s: {duration - needed:.1f} s are not used",)


def judge_sound(made, params, run, path, *, words=None):
    """Add to the features of a sound file what its length, its record and the film's blocks say of it.

    Parameters
    ----------
    made : SoundFeatures
        MFCCs of the sound at ``path``.
    params : Params
    run : runs.RunFiles
    path : Path
    words : Path, optional
        The run's table of words, from `word_table`.

    Returns
    -------
    SoundFeatures
        With more warnings and alarms.
    """
    warnings = made.warnings + length_warnings(made.duration, run.heard)
    entry = dvcrepo.sound_entry(files.project_root()) if params.dataset == DEFAULT_DATASET else None
    if entry is not None and files.file_md5(path) != entry.md5:
        warnings += (f"{path.name} is not the sound that was adopted (MD5 {entry.md5})",)
    heard = {"onset": run.onset, "words": words, "made": made}
    found = audit_sound(path, params.cache_path, run.events, **heard)
    return replace(made, warnings=warnings, alarms=made.alarms + found.alarms(run.onset))
