"""What each command of ``bold-audio`` does: from its options to its exit status."""

import contextlib
import math
import os
import re
import shlex
import sys
import time

import numpy as np

from bold_audio import cohort, machine
from bold_audio.ending import told
from bold_audio.execution import run_subject
from bold_audio.files import (
    BoldAudioError,
    DataError,
    MachineError,
    ParameterError,
    fingerprint,
    one_line,
    project_root,
)
from bold_audio.locking import lock
from bold_audio.params import load_params, normalise_subject, parse_given
from bold_audio.registry import fmri_subjects
from bold_audio.schema import DEFAULT_DATASET, SIMULATED
from bold_audio.steps import STEPS, chosen_steps

LEAST_MEMORY = 4e9  # of a Slurm job, bytes; also where no scan is there to say more


def tell_error(options, error):
    """Tell an error in one line: the exit status."""
    outputs = "outputs"
    with contextlib.suppress(BoldAudioError):  # it may be the parameters that are at fault
        outputs = parse_given(getattr(options, "given", [])).get("outputs_dir") or outputs
    return tell(options, *told(error, outputs=outputs, command=options.command))


def tell(options, message, status):
    """Write one line to stderr, with the subject it is about: the exit status."""
    who = f"sub-{options.current}: " if getattr(options, "current", None) else ""
    sys.stderr.write(f"bold_audio: {who}{' '.join(message.split())}\n")
    return status


def say(text):
    """Write one line to stdout, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def simulate(options):
    """Make a SIMULATED subject with a known answer."""
    from bold_audio.simulate import simulate_subject

    options.current = normalise_subject(options.subject)
    say(f"simulating sub-{options.current} in {options.directory} (about half a minute at full size) …")
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
    say(f"SIMULATED scan: {path}")
    return 0


def fetch(options):
    """Get subjects of ds003688, and the sound where DVC has it."""
    from bold_audio.fetch import fetch_sound, fetch_subjects, remote_of

    given = parse_given(options.given) | ({"data_dir": str(options.data_dir)} if options.data_dir else {})
    all_params = [load_params(subject, DEFAULT_DATASET, **given) for subject in options.subject]
    subjects, params = [one.subject for one in all_params], all_params[0]
    options.current = subjects[0] if len(subjects) == 1 else None
    ours = {"remote": remote_of(params), "root": project_root()}
    fetched = fetch_subjects(subjects, params.data_path, source=options.source, say=say, **ours)
    how = f"{len(fetched.paths)} files fetched {fetched.source}" if fetched.paths else "nothing was missing"
    say(f"{', '.join(f'sub-{one}' for one in subjects)}: {how}; all files checked by MD5: {params.data_path}")
    by_dvc = options.source == "dvc" or (fetched.source or "").startswith("by DVC")
    if by_dvc and (sound := fetch_sound(**ours)):
        say(f"sound of the film: {sound}")
    return 0


def publish(options):
    """Put the complete dataset on a WebDAV remote."""
    from bold_audio.fetch import publish, remote_of

    subjects = [normalise_subject(subject) for subject in options.subject or fmri_subjects()]
    params = load_params(subjects[0], DEFAULT_DATASET, **parse_given(options.given))
    sent, there = publish(subjects, params.data_path, remote=remote_of(params), root=project_root())
    say(f"{there} files are at {params.dvc_url}, {sent} of them sent now")
    return 0


def adopt(options):
    """Check the film's sound, record it, give it to DVC."""
    from bold_audio.adopt import adopt_sound

    params = load_params(fmri_subjects()[0], DEFAULT_DATASET, **parse_given(options.given))
    for line in adopt_sound(options.path, params, root=project_root()):
        say(line)
    return 0


def track(options):
    """Write DVC's configuration and the list of the dataset's files."""
    from bold_audio import dvcrepo
    from bold_audio.fetch import remote_of
    from bold_audio.registry import release_files

    params = load_params(fmri_subjects()[0], DEFAULT_DATASET, **parse_given(options.given))
    for path in dvcrepo.track(project_root(), remote_of(params), release_files()):
        say(f"{path} - commit it")
    return 0


def print_token(options):
    """Print the token of DVC's remote."""
    from bold_audio.access import read_token

    say(read_token())
    return 0


def predict(options):
    """Predict the volumes that a new sound would make, and write them."""
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
    predictor = serving.open_named(params, serving.exported_name(params, params.served_model))
    volumes, heard, warnings = predict_sound(predictor, options.sound)
    for warning in warnings:
        say(f"{options.sound.name}: {warning}")
    facts, mask = predictor.facts, predictor.bundle.arrays["mask"]
    said = {
        "Description": f"no scan: what the sound alone would make, by {facts['model_name']} version "
        f"{facts['model_version']} from the mean volume of train on; 0 outside the mask",
        "Sound": options.sound.name,
        "Delay": facts["delay"],
        "VolumesNotPredicted": int((~heard).sum()),
        "ModelTrainedOn": facts["sound"],
        "BundleHash": facts["bundle_hash"],
        "Warnings": warnings,
    }
    name = _task_of(options.sound.stem)
    model = f"{facts['kind'].replace('_', '')}V{facts['model_version']}"
    name = f"sub-{params.subject}_task-{name}_desc-{model}NewSound_bold.nii.gz"
    path = options.out or params.subject_path / "new_sounds" / name
    brain.write_volumes(path, volumes, mask=mask, affine=np.array(facts["affine"]), t_r=facts["t_r"], about=said)
    why = "before the delay and the response to it have passed, or after the sound's end"
    silent = f"; {int((~heard).sum())} of them ({why}) are the mean volume" if not all(heard) else ""
    say(f"predicted without a scan: {len(volumes)} volumes at Δt = {facts['delay']:g} s{silent}: {path}")
    return 0


def _task_of(stem):
    """The name of a sound as a BIDS label; one that loses characters gets a hash, so that two sounds stay two.

    Examples
    --------
    >>> _task_of("other"), _task_of("a-1"), _task_of("музыка")
    ('other', 'a1xe77c39a2', 'soundxcb21b4d8')
    """
    kept = re.sub("[^A-Za-z0-9]", "", stem)
    return kept if kept == stem else f"{kept or 'sound'}x{fingerprint(stem)[:8]}"


def mlflow_sync(options):
    """Send runs that were logged locally to the server."""
    from bold_audio import tracking

    params = load_params(fmri_subjects()[0], DEFAULT_DATASET, **parse_given(options.given))
    if params.mlflow_uri is None:
        raise ParameterError("mlflow-sync needs the address of a server - pass -p mlflow_uri http://127.0.0.1:8080")
    sent, known = tracking.send_runs(params.mlflow_path, params.mlflow_uri)
    say(f"{sent} runs sent to {params.mlflow_uri}; {known} were there already")
    return 0


def serve(options):
    """Serve the models until Ctrl-C."""
    from bold_audio import server

    models_dir = options.models_dir or project_root() / "triton_models"
    ports = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    if not models_dir.is_dir():
        raise ParameterError(f"no folder {models_dir} - run notebook 05, or give the repository that it exports to")
    folder = server.install()
    try:
        with server.TritonServer(models_dir, ports=ports, folder=folder).start() as running:
            say(f"Triton serves {models_dir}: grpc {running.url('grpc')}, http {running.url('http')}; Ctrl-C stops it")
            ready, failed = running.models()
            say(f"ready: {', '.join(ready) or 'no models yet; what is exported is served within seconds'}")
            for name, reason in failed.items():
                say(f"not served: {name}: {one_line(reason)[:300]}")
            status = running.process.wait()
    except KeyboardInterrupt as error:
        if error.args:  # SIGTERM or a closed terminal, not Ctrl-C: the status says so
            raise
        say("Triton is stopped")
        return 0
    if status < 0:
        raise MachineError(f"Triton was ended by signal {-status} - start it again")
    return status


def run(options):
    """Run the notebooks subject by subject; one that fails does not stop the others."""
    from bold_audio import bids

    steps, given = chosen_steps(options.steps), parse_given(options.given)
    on_workers = options.workers is not None or options.scheduler or options.slurm
    for name, counts, where in (
        ("--slurm-option", options.slurm, "--slurm"),
        ("--threads", on_workers, "--workers, --scheduler or --slurm"),
    ):
        if not counts and getattr(options, name[2:].replace("-", "_")):
            raise ParameterError(f"{name} counts with {where} only - add it, or leave {name} out")
    if options.workers is not None and options.scheduler:
        raise ParameterError("the workers are those of the scheduler - give --workers or --scheduler, not both")
    if options.debug and on_workers:
        raise ParameterError("--debug shows a traceback of this program - leave out --workers, --scheduler and --slurm")
    if options.subjects:
        options.subject = _everybody(options.dataset, given)
    all_params = [load_params(subject, options.dataset, **given) for subject in options.subject]
    all_params = list({one.subject: one for one in all_params}.values())  # 9 and 09 are one person
    if on_workers or options.dry_run:
        return _run_cohort(options, all_params, steps, given)
    ended = []
    for params in all_params:
        options.current, started, status, said = params.subject, time.perf_counter(), 0, ""
        try:
            bids.check_subject(params)
            with lock(params.subject_path / ".lock", doing=f"sub-{params.subject} of {params.label}", told=True):
                index = run_subject(params, steps, given | _whose(params), say=say, force=options.force)
            seconds = time.perf_counter() - started
            say(f"sub-{params.subject}: done in {seconds:.0f} s, report: {os.path.relpath(index)}")
        except Exception as error:
            if options.debug:
                raise
            status, said = tell_error(options, error), " ".join(str(error).split())
        ended.append(cohort.Ended(params.subject, status, said, time.perf_counter() - started))
    return _say_who_ended(options, ended, steps)


def _say_who_ended(options, ended, steps, *, left_alone=0):
    """The table of several people at the end, and how to go on: the highest exit status."""
    from bold_audio import cohort_table

    if len(ended) + left_alone > 1:
        for line in cohort_table.lines_at_the_end(ended, left_alone):
            say(line)
    if STEPS[-1] in steps and left_alone + sum(one.status == 0 for one in ended) > 1:
        dataset = options.dataset or DEFAULT_DATASET  # the simulated subject alone is never several
        words = ["bold-audio", "group", "--dataset", dataset, *(w for pair in options.given for w in ("-p", *pair))]
        say(f"what holds over them: {shlex.join(words)}")
    return max(one.status for one in ended)


def _everybody(dataset, given):
    """All subjects of a dataset: those in its tree and, of ds003688, all who have fMRI."""
    from bold_audio import bids

    listed = fmri_subjects() if dataset in (None, DEFAULT_DATASET) else []
    there = listed or bids.known_subjects(load_params(SIMULATED, dataset, **given))
    if not there:
        raise DataError(f"nobody is there in dataset {dataset} - set data_dir, or name subjects with --subject")
    return there


def group(options):
    """Execute the group notebook on what the dataset's subjects left."""
    from bold_audio.execution import run_group
    from bold_audio.group import folder_of

    given = parse_given(options.given)
    somebody = load_params(SIMULATED, options.dataset, **given)
    there = sorted(path.name for path in somebody.subject_path.parent.glob("sub-*") if path.is_dir())
    if not there:
        raise DataError(f"nobody in {somebody.subject_path.parent} - run 'bold-audio run --subjects all' first")
    params = load_params(there[0], options.dataset, **given)
    with lock(folder_of(params) / ".lock", doing=f"the group answer of {params.label}"):
        page = run_group(params, given | _whose(params))
    say(f"{params.label}: report: {os.path.relpath(page)}")
    return 0


def _run_cohort(options, all_params, steps, given):
    """Run subjects on workers, each in a program of its own; a line for each that ends, and a table at the end."""
    lacking = cohort.plan(all_params, steps, force=options.force)
    todo = [params for params in all_params if lacking[params.subject]]
    slurm = _slurm(options, todo) if options.slurm else None
    if options.dry_run:
        return _show_plan(lacking, slurm)
    if not todo:
        say("everything is done, and nothing that it was made from has changed")
        return 0
    n = options.workers or 1
    if slurm is not None:
        slurm.scale(n)
    elif not options.scheduler:
        n = _fitting_workers(n, todo)
    tasks = [cohort.make_task(one, options.steps, given, force=options.force) for one in todo]
    with cohort.open_executor(n, scheduler=options.scheduler, cluster=slurm) as executor:
        ended = _follow(tasks, cohort.follow(tasks, executor, threads=options.threads or 1, root=project_root()))
    return _say_who_ended(options, ended, steps, left_alone=len(all_params) - len(tasks))


def _slurm(options, all_params):
    """The cluster, with jobs of as much memory as a subject takes where nobody says how much."""
    needed = max([cohort.memory_of(params) for params in all_params], default=0)
    usual = {"memory": f"{math.ceil(max(needed, LEAST_MEMORY) / 1e9)}GB"}
    return cohort.slurm_cluster(usual | parse_given(options.slurm_option, null=True))


def _show_plan(lacking, slurm):
    """Show what would be run and why, and Slurm's job script."""
    for subject, whys in lacking.items():
        for step, why in whys.items():
            say(f"sub-{subject}: {step} ({why})")
    if slurm is not None:
        say(slurm.job_script())
    return 0


def _fitting_workers(wanted, all_params):
    """How many of the workers wanted fit into this machine's memory; fewer is said."""
    needed = max(cohort.memory_of(params) for params in all_params)
    n = cohort.fitting_workers(wanted, needed, machine.free_memory())
    if n < wanted:
        say(f"{n} workers instead of {wanted}: a subject takes up to {needed / 1e9:.1f} GB")
    return n


def _follow(tasks, ending):
    """Say of each subject that it has ended, as it ends, under a table that lives: list of cohort.Ended."""
    from bold_audio import cohort_table

    ended = {}
    with cohort_table.live_table(tasks, ended, stream=sys.stdout) as draw:
        for one in ending:
            if one is not None:
                ended[one.subject] = one
                say(cohort_table.line_of(one))
            draw()
    return list(ended.values())


def _whose(params):
    return {"subject": params.subject, "dataset": params.dataset}


def report(options):
    """Write the pages of executed notebooks again, and the indexes."""
    from bold_audio.report import write_report

    given, status = parse_given(options.given), 0
    for subject in options.subject:
        params = load_params(subject, options.dataset, **given)
        options.current = params.subject
        folder, doing = params.subject_path, f"sub-{params.subject} of {params.label}"
        try:
            with lock(folder / ".lock", doing=doing) if folder.is_dir() else contextlib.nullcontext():
                say(f"sub-{params.subject}: report: {os.path.relpath(write_report(params, anew=True))}")
        except Exception as error:
            if options.debug:
                raise
            status = max(status, tell_error(options, error))
    return status
