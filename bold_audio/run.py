"""The command line: simulate and fetch subjects, run the notebooks with papermill, write the reports."""

import argparse
import contextlib
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from bold_audio import cohort, machine
from bold_audio.ending import terminated_as_interrupted, told, warnings_shown
from bold_audio.execution import run_subject
from bold_audio.files import (
    BoldAudioError,
    DataError,
    ParameterError,
    project_root,
    without_credentials,
)
from bold_audio.locking import lock
from bold_audio.params import DEFAULT_DATASET, SIMULATED, load_params, normalise_subject
from bold_audio.plain_yaml import read_yaml
from bold_audio.registry import fmri_subjects
from bold_audio.steps import chosen_steps

LONGEST_VALUE = 100_000  # characters of a value, which YAML takes its time to read


def main(arguments=None):
    """Run the command line and exit with its status: 0 only when all that was asked is done."""
    cohort.end_with_parent()
    options = _parser().parse_args(arguments)
    try:
        with warnings_shown(), terminated_as_interrupted():
            status = options.work(options)
    except KeyboardInterrupt as error:
        status = _tell(options, "stopped - run the same command again to go on", 143 if error.args else 130)
    except Exception as error:  # nothing ends with a traceback that nobody asked for
        if options.debug:
            raise
        status = _fail(options, error)
    sys.exit(status)


def _fail(options, error):
    """Tell an error in one line: the exit status."""
    outputs = "outputs"
    with contextlib.suppress(BoldAudioError):  # it may be the parameters that are at fault
        outputs = parse_given(getattr(options, "given", [])).get("outputs_dir") or outputs
    return _tell(options, *told(error, outputs=outputs, command=options.command))


def _tell(options, message, status):
    who = f"sub-{options.current}: " if getattr(options, "current", None) else ""
    sys.stderr.write(f"bold_audio: {who}{' '.join(message.split())}\n")
    return status


def _say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one line."""

    def error(self, message):
        self.exit(2, f"bold_audio: {message} - see '{self.prog} --help'\n")


def _from_one_on(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text[:60]!r}")
    return int(text)


def _parser():
    parser = _Parser(prog="bold-audio", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    simulate = commands.add_parser("simulate", help="make a SIMULATED subject with a known answer")
    simulate.add_argument("directory", type=Path)
    simulate.add_argument("--subject", default="sim")
    simulate.add_argument("--seed", type=int, default=0, help="noise of the subject (default 0)")
    simulate.add_argument("--film-seed", type=int, default=0, help="the film's sound (default 0)")
    simulate.add_argument("--volumes", type=int, default=641)
    simulate.add_argument("--shape", type=int, nargs=3, default=(40, 64, 64), metavar="N")
    simulate.add_argument("--delay", type=float, nargs=2, default=(5.0, 6.5), metavar="S", help="left and right, s")
    simulate.add_argument("--response", choices=("delay", "hrf"), default="hrf")
    simulate.add_argument("--strength", type=float, default=0.25, help="r2 at the regions' centres (default 0.25)")
    simulate.add_argument("--motion", type=float, default=0.0, help="slow head motion, mm (default 0)")
    simulate.add_argument("--nonlinear", action="store_true", help="regions that answer above a threshold only")
    simulate.add_argument("--null", action="store_true", help="plant nothing")
    simulate.add_argument("--runs", type=int, default=1, help="runs, each with a film of its own (default 1)")
    simulate.add_argument("--annotations", type=Path, help="table of real syllable times for the speech")
    simulate.set_defaults(work=_simulate)

    fetch = commands.add_parser("fetch", help="get subjects of ds003688, by DVC or from OpenNeuro, checked by MD5")
    fetch.add_argument("--subject", action="append", required=True)
    fetch.add_argument("--source", choices=("auto", "dvc", "openneuro"), default="auto")
    fetch.add_argument("--data-dir", type=Path, help="default: data/ds003688")
    fetch.set_defaults(work=_fetch)

    publish = commands.add_parser("publish", help="put the complete dataset on a WebDAV remote of one's own (dvc_url)")
    publish.add_argument("--subject", action="append", help="default: all of ds003688")
    publish.set_defaults(work=_publish)

    adopt = commands.add_parser("adopt-sound", help="check the sound of ds003688's film, record it, give it to DVC")
    adopt.add_argument("path", type=Path, help="wav, flac, ogg, mp3; mp4 or mkv with ffmpeg")
    adopt.set_defaults(work=_adopt)

    track = commands.add_parser("track", help="write .dvc/config and data/ds003688.dvc from parameters and registry")
    track.set_defaults(work=_track)

    token = commands.add_parser("print-token", help="print the token of DVC's remote, for DVC itself")
    token.set_defaults(work=_print_token)

    run = commands.add_parser("run", help="run the notebooks for one or more subjects and write their reports")
    who = run.add_mutually_exclusive_group(required=True)
    who.add_argument("--subject", action="append", help="once for each subject")
    who.add_argument("--subjects", choices=("all",), help="everybody in the dataset")
    run.add_argument("--dataset")
    run.add_argument("--steps", default="00-06", help="such as 00-06, 03 or 02,03 (default 00-06)")
    run.add_argument("--force", action="store_true", help="run steps again whose inputs have not changed")
    where = run.add_argument_group("several subjects at once, by Dask")
    where.add_argument(
        "--workers", type=_from_one_on, metavar="N", help="programs at a time on this machine, or Slurm jobs"
    )
    engine = where.add_mutually_exclusive_group()
    engine.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, such as tcp://10.0.0.1:8786")
    engine.add_argument("--slurm", action="store_true", help="workers are Slurm jobs, by dask-jobqueue")
    where.add_argument("--slurm-option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    where.add_argument("--threads", type=_from_one_on, default=1, help="threads of each program (default 1)")
    where.add_argument("--dry-run", action="store_true", help="show what would be run, and Slurm's job script")
    run.set_defaults(work=_run)

    report = commands.add_parser("report", help="write the report's pages again, from the executed notebooks")
    report.add_argument("--subject", action="append", required=True)
    report.add_argument("--dataset")
    report.set_defaults(work=_report)

    predict = commands.add_parser("predict", help="predict the volumes that a new sound would make, without a scan")
    predict.add_argument("--subject", required=True, help="whose model")
    predict.add_argument("--dataset")
    predict.add_argument("--sound", type=Path, required=True, help="sound file that begins with the run")
    predict.add_argument("--model-version", type=int, help="default: the newest")
    predict.add_argument("--out", type=Path, help="the NIfTI file to write (default: in the subject's outputs)")
    predict.set_defaults(work=_predict)

    sync = commands.add_parser("mlflow-sync", help="send runs that were logged locally to the MLflow server")
    sync.set_defaults(work=_mlflow_sync)

    serve = commands.add_parser("serve", help="serve triton_models by a Triton server on this machine, without Docker")
    serve.add_argument("--models-dir", type=Path, help="default: triton_models")
    serve.add_argument("--http-port", type=int, default=8000)
    serve.add_argument("--grpc-port", type=int, default=8001)
    serve.add_argument("--metrics-port", type=int, default=8002)
    serve.set_defaults(work=_serve)

    for command in (fetch, publish, adopt, track, run, report, predict, sync):
        command.add_argument("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    for command in (simulate, fetch, publish, adopt, track, token, run, report, predict, sync, serve):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _simulate(options):
    from bold_audio.simulate import simulate_subject

    options.current = normalise_subject(options.subject)
    _say(f"simulating sub-{options.current} in {options.directory} (about half a minute at full size) …")
    path = simulate_subject(
        options.directory,
        subject=options.current,
        seed=options.seed,
        film_seed=options.film_seed,
        n_volumes=options.volumes,
        shape=tuple(options.shape),
        delays=tuple(options.delay),
        response=options.response,
        strength=options.strength,
        motion=options.motion,
        nonlinear=options.nonlinear,
        null=options.null,
        runs=options.runs,
        annotations=options.annotations,
    )
    _say(f"SIMULATED scan: {path}")
    return 0


def _fetch(options):
    from bold_audio.fetch import fetch_sound, fetch_subjects, remote_of

    given = parse_given(options.given) | {"data_dir": options.data_dir and str(options.data_dir)}
    all_params = [load_params(subject, DEFAULT_DATASET, **given) for subject in options.subject]
    subjects, params = [one.subject for one in all_params], all_params[0]
    options.current = subjects[0] if len(subjects) == 1 else None
    ours = {"remote": remote_of(params), "root": project_root()}
    fetched = fetch_subjects(subjects, params.data_path, source=options.source, say=_say, **ours)
    how = f"{len(fetched.paths)} files fetched {fetched.source}" if fetched.paths else "nothing was missing"
    _say(f"{', '.join(f'sub-{one}' for one in subjects)}: {how}; all files checked by MD5: {params.data_path}")
    by_dvc = options.source == "dvc" or (fetched.source or "").startswith("by DVC")
    if by_dvc and (sound := fetch_sound(**ours)):
        _say(f"sound of the film: {sound}")
    return 0


def _publish(options):
    from bold_audio.fetch import publish, remote_of

    subjects = [normalise_subject(subject) for subject in options.subject or fmri_subjects()]
    params = load_params(subjects[0], DEFAULT_DATASET, **parse_given(options.given))
    sent, there = publish(subjects, params.data_path, remote=remote_of(params), root=project_root())
    _say(f"{there} files are at {params.dvc_url}, {sent} of them sent now")
    return 0


def _adopt(options):
    from bold_audio.adopt import adopt_sound

    params = load_params(fmri_subjects()[0], DEFAULT_DATASET, **parse_given(options.given))
    for line in adopt_sound(options.path, params, root=project_root()):
        _say(line)
    return 0


def _track(options):
    from bold_audio import dvcrepo
    from bold_audio.fetch import remote_of
    from bold_audio.registry import release_files

    params = load_params(fmri_subjects()[0], DEFAULT_DATASET, **parse_given(options.given))
    for path in dvcrepo.track(project_root(), remote_of(params), release_files()):
        _say(f"{path} - commit it")
    return 0


def _print_token(options):
    from bold_audio.access import read_token

    _say(read_token())
    return 0


def _predict(options):
    from bold_audio import brain, serving
    from bold_audio.new_sound import predict_sound

    given = parse_given(options.given)
    if options.model_version is not None:
        given["model_version"] = options.model_version
    params = load_params(options.subject, options.dataset, **given)
    options.current = params.subject
    if options.out is not None and not options.out.name.endswith(".nii.gz"):
        raise ParameterError(f"out must end in .nii.gz, got {options.out.name} - give it that ending")
    if options.out is not None and params.data_path in options.out.resolve().parents:
        raise ParameterError(
            f"out must lie outside the data, got {options.out} inside {params.data_path} - choose another folder"
        )
    if not options.sound.is_file():
        raise DataError(f"no sound file at {options.sound} - give the path of a wav, flac, ogg or mp3 file")
    predictor = serving.open_named(params, params.exported_as(params.served_model))
    volumes, heard = predict_sound(predictor, options.sound)
    facts, mask = predictor.facts, predictor.bundle.arrays["mask"]
    said = {
        "Description": f"no scan: what the sound alone would make, by {facts['model_name']} version "
        f"{facts['model_version']} from the mean volume of train on; 0 outside the mask",
        "Sound": options.sound.name,
        "Delay": facts["delay"],
        "VolumesWithoutSound": int((~heard).sum()),
        "ModelTrainedOn": facts["sound"],
    }
    name = re.sub("[^A-Za-z0-9]", "", options.sound.stem) or "sound"
    path = options.out or params.subject_path / f"sub-{params.subject}_task-{name}_desc-predicted_bold.nii.gz"
    brain.write_volumes(path, volumes, mask=mask, affine=np.array(facts["affine"]), t_r=facts["t_r"], about=said)
    silent = (
        f"; {int((~heard).sum())} of them, which no sound reaches yet, are the mean volume" if not all(heard) else ""
    )
    _say(f"predicted without a scan: {len(volumes)} volumes at Δt = {facts['delay']:g} s{silent}: {path}")
    return 0


def _mlflow_sync(options):
    from bold_audio import tracking

    params = load_params(fmri_subjects()[0], DEFAULT_DATASET, **parse_given(options.given))
    if not (params.mlflow_uri or "").startswith("http"):
        raise ParameterError("mlflow_uri must be the address of a server - pass -p mlflow_uri http://127.0.0.1:8080")
    sent, known = tracking.send_runs(params.mlflow_path, params.mlflow_uri)
    _say(f"{sent} runs sent to {without_credentials(params.mlflow_uri)}; {known} were there already")
    return 0


def _serve(options):
    from bold_audio import server

    folder = server.install()
    models_dir = options.models_dir or project_root() / "triton_models"
    ports = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    with server.TritonServer(models_dir, ports=ports, folder=folder).start() as running:
        _say(f"Triton serves {models_dir}: grpc {running.url('grpc')}, http {running.url('http')}; Ctrl-C stops it")
        return running.process.wait()


def parse_given(pairs):
    """``-p NAME VALUE`` pairs as a dictionary; values are read as YAML."""
    given = {}
    for name, value in pairs:
        if name in ("subject", "dataset"):
            raise ParameterError(f"-p {name} has an option of its own - use --{name} {value}")
        if len(value) > LONGEST_VALUE:
            raise ParameterError(f"-p {name}: {len(value)} characters are too many - give at most {LONGEST_VALUE}")
        try:
            given[name] = read_yaml(value)
        except yaml.YAMLError:
            raise ParameterError(f"-p {name}: cannot read {value[:60]!r} - quote it") from None
    return given


def _run(options):
    """Run the notebooks subject by subject; one that fails does not stop the others."""
    steps, given = chosen_steps(options.steps), parse_given(options.given)
    if options.subjects:
        options.subject = _everybody(options.dataset, given)
    all_params = [load_params(subject, options.dataset, **given) for subject in options.subject]
    if options.workers is not None or options.scheduler or options.slurm or options.dry_run:
        return _run_cohort(options, all_params, steps, given)
    ended = []
    for params in all_params:
        options.current, started, status, said = params.subject, time.perf_counter(), 0, ""
        try:
            with lock(params.subject_path / ".lock", doing=f"sub-{params.subject} of {params.label}", told=True):
                index = run_subject(params, steps, given | _whose(params), say=_say, force=options.force)
            seconds = time.perf_counter() - started
            _say(f"sub-{params.subject}: done in {seconds:.0f} s, report: {os.path.relpath(index)}")
        except Exception as error:
            if options.debug:
                raise
            status, said = _fail(options, error), " ".join(str(error).split())
        ended.append(cohort.Ended(params.subject, status, said, time.perf_counter() - started))
    return _say_who_ended(ended)


def _say_who_ended(ended, left_alone=0):
    """The table of several people at the end: the highest exit status."""
    from bold_audio import cohort_table

    if len(ended) + left_alone > 1:
        for line in cohort_table.lines_at_the_end(ended, left_alone):
            _say(line)
    return max(one.status for one in ended)


def _everybody(dataset, given):
    """All subjects of a dataset: those in its tree and, of ds003688, all who have fMRI."""
    from bold_audio import bids

    listed = fmri_subjects() if dataset in (None, DEFAULT_DATASET) else []
    subject = listed[0] if listed else SIMULATED
    there = listed or bids.known_subjects(load_params(subject, dataset, **given))
    if not there:
        raise DataError(f"nobody is there in dataset {dataset} - set data_dir, or name subjects with --subject")
    return there


def _run_cohort(options, all_params, steps, given):
    """Run subjects on workers, each in a program of its own; a line for each that ends, and a table at the end."""
    from bold_audio import cohort_table

    lacking = cohort.plan(all_params, steps, force=options.force)
    tasks = [
        cohort.make_task(one, options.steps, given, force=options.force) for one in all_params if lacking[one.subject]
    ]
    needed = max((cohort.memory_of(one) for one in all_params if lacking[one.subject]), default=0.0)
    slurm = cohort.slurm_cluster(parse_given(options.slurm_option)) if options.slurm else None
    if options.dry_run:
        for subject, whys in lacking.items():
            for step, why in whys.items():
                _say(f"sub-{subject}: {step} ({why})")
        if slurm is not None:
            _say(slurm.job_script())
        return 0
    if not tasks:
        _say("everything is done, and nothing that it was made from has changed")
        return 0
    n = options.workers or 1
    if not (options.scheduler or slurm) and (fits := cohort.fitting_workers(n, needed, machine.free_memory())) < n:
        _say(f"{fits} workers instead of {n}: a subject takes up to {needed / 1e9:.1f} GB")
        n = fits
    if slurm is not None:
        slurm.scale(n)
    ended = {}
    with (
        cohort.open_executor(n, scheduler=options.scheduler, cluster=slurm) as executor,
        cohort_table.live_table(tasks, ended, stream=sys.stdout) as draw,
    ):
        for one in cohort.follow(tasks, executor, threads=options.threads, root=project_root()):
            if one is not None:
                ended[one.subject] = one
                _say(cohort_table.line_of(one))
            draw()
    return _say_who_ended(list(ended.values()), len(all_params) - len(tasks))


def _whose(params):
    return {"subject": params.subject, "dataset": params.dataset}


def _report(options):
    """Write the pages of executed notebooks again, and the indexes."""
    from bold_audio.report import write_report

    given, status = parse_given(options.given), 0
    for subject in options.subject:
        params = load_params(subject, options.dataset, **given)
        options.current = params.subject
        folder, doing = params.subject_path, f"sub-{params.subject} of {params.label}"
        try:
            with lock(folder / ".lock", doing=doing) if folder.is_dir() else contextlib.nullcontext():
                _say(f"sub-{params.subject}: report: {os.path.relpath(write_report(params, anew=True))}")
        except Exception as error:
            if options.debug:
                raise
            status = max(status, _fail(options, error))
    return status
