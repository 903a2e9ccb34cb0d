"""The command line ``bold-audio``: its commands and their options."""

import argparse
import sys
from pathlib import Path

from bold_audio import __version__, commands, warm
from bold_audio.ending import terminated_as_interrupted, warnings_shown


def main(arguments=None):
    """Run the command line and exit with its status: 0 only when all that was asked is done."""
    warm.end_with_parent()
    options = _parser().parse_args(arguments)
    try:
        with warnings_shown(), terminated_as_interrupted():
            status = options.work(options)
    except KeyboardInterrupt as error:
        status = 128 + error.args[0] if error.args else 130
        status = commands.tell(options, "stopped - run the same command again to go on", status)
    except Exception as error:  # nothing ends with a traceback that nobody asked for
        if options.debug:
            raise
        status = commands.tell_error(options, error)
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one line."""

    def error(self, message):
        self.exit(2, f"bold_audio: {message} - see '{self.prog} --help'\n")


PARAMETER = "a parameter of params/common.yaml, value as YAML; again for the next one"
DATASET = "a file in params/, or any name with -p data_dir"
USUAL = f"{DATASET} (default: sim for sim, else ds003688)"
EXAMPLES = {
    "simulate": "bold-audio simulate data/sim",
    "fetch": "bold-audio fetch --subject 09 --subject 13",
    "publish": "bold-audio publish -p dvc_url https://dav.example.org/ds003688",
    "adopt-sound": "bold-audio adopt-sound film.mp4",
    "track": "bold-audio track -p dvc_url https://dav.example.org/ds003688",
    "print-token": "bold-audio print-token",
    "run": "bold-audio run --subject 09 -p audio_path film.wav",
    "group": "bold-audio group --dataset ds003688",
    "report": "bold-audio report --subject 09",
    "predict": "bold-audio predict --subject 09 --sound other.wav",
    "mlflow-sync": "bold-audio mlflow-sync -p mlflow_uri http://127.0.0.1:8080",
    "serve": "bold-audio serve --models-dir triton_models",
}


def _from_one_on(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text[:60]!r}")
    return int(text)


def _parser():
    parser = _Parser(prog="bold-audio", description="Which parts of the brain follow the sound: from scan to report.")
    parser.add_argument("--version", action="version", version=f"bold-audio {__version__}", help="show the version")
    added = parser.add_subparsers(dest="command", required=True)

    simulate = added.add_parser("simulate", help="make a SIMULATED subject with a known answer")
    simulate.add_argument("directory", type=Path, help="where the dataset is, or is made")
    simulate.add_argument("--subject", default="sim", help="label (default sim)")
    simulate.add_argument("--seed", type=int, default=0, help="noise of the subject (default 0)")
    simulate.add_argument("--film-seed", type=int, default=0, help="the film's sound (default 0)")
    simulate.add_argument("--volumes", type=int, default=641, help="of each run (default 641)")
    simulate.add_argument(
        "--shape", type=int, nargs=3, default=(40, 64, 64), metavar="N", help="voxels (default 40 64 64)"
    )
    simulate.add_argument(
        "--delay", type=float, nargs=2, default=(5.0, 6.5), metavar="S", help="left and right, s (default 5 6.5)"
    )
    simulate.add_argument(
        "--response", choices=("delay", "hrf"), default="hrf", help="haemodynamic, or a delay alone (default hrf)"
    )
    simulate.add_argument("--strength", type=float, default=0.25, help="r2 at the regions' centres (default 0.25)")
    simulate.add_argument("--motion", type=float, default=0.0, help="slow head motion, mm (default 0)")
    simulate.add_argument("--nonlinear", action="store_true", help="regions that answer above a threshold only")
    simulate.add_argument("--null", action="store_true", help="plant nothing")
    simulate.add_argument("--runs", type=int, default=1, help="runs, each with a film of its own (default 1)")
    simulate.add_argument("--annotations", type=Path, help="table of real syllable times for the speech")
    simulate.set_defaults(work=commands.simulate)

    fetch = added.add_parser("fetch", help="get subjects of ds003688, by DVC or from OpenNeuro, checked by MD5")
    fetch.add_argument("--subject", action="append", required=True, help="once for each subject")
    fetch.add_argument(
        "--source",
        choices=("auto", "dvc", "openneuro"),
        default="auto",
        help="auto, the default: DVC where the token is set, else OpenNeuro",
    )
    fetch.add_argument("--data-dir", type=Path, help="default: data/ds003688")
    fetch.set_defaults(work=commands.fetch)

    publish = added.add_parser("publish", help="put the complete dataset on a WebDAV remote of one's own (dvc_url)")
    publish.add_argument("--subject", action="append", help="default: all of ds003688")
    publish.set_defaults(work=commands.publish)

    adopt = added.add_parser("adopt-sound", help="check the sound of ds003688's film, record it, give it to DVC")
    adopt.add_argument("path", type=Path, help="wav, flac, ogg, mp3; mp4 or mkv with ffmpeg")
    adopt.set_defaults(work=commands.adopt)

    track = added.add_parser("track", help="write .dvc/config and data/ds003688.dvc from parameters and registry")
    track.set_defaults(work=commands.track)

    token = added.add_parser("print-token", help="print the token of DVC's remote, for DVC itself")
    token.set_defaults(work=commands.print_token)

    run = added.add_parser("run", help="run the notebooks for one or more subjects and write their reports")
    who = run.add_mutually_exclusive_group(required=True)
    who.add_argument("--subject", action="append", help="once for each subject")
    who.add_argument("--subjects", choices=("all",), help="everybody in the dataset")
    run.add_argument("--dataset", help=USUAL)
    run.add_argument("--steps", default="00-06", help="such as 00-06, 03 or 02,03 (default 00-06)")
    run.add_argument("--force", action="store_true", help="run steps again whose inputs have not changed")
    where = run.add_argument_group("several subjects at once, by Dask")
    where.add_argument(
        "--workers", type=_from_one_on, metavar="N", help="programs at a time on this machine, or Slurm jobs"
    )
    engine = where.add_mutually_exclusive_group()
    engine.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, such as tcp://10.0.0.1:8786")
    engine.add_argument("--slurm", action="store_true", help="workers are Slurm jobs, by dask-jobqueue")
    where.add_argument(
        "--slurm-option",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="an option of dask_jobqueue.SLURMCluster, such as queue short; again for the next one",
    )
    where.add_argument("--threads", type=_from_one_on, metavar="N", help="threads of each program (default 1)")
    where.add_argument("--dry-run", action="store_true", help="show what would be run, and Slurm's job script")
    run.set_defaults(work=commands.run)

    group = added.add_parser("group", help="say what holds over the finished subjects of a dataset (notebook 07)")
    group.add_argument("--dataset", required=True, help=DATASET)
    group.set_defaults(work=commands.group)

    report = added.add_parser("report", help="write the report's pages again, from the executed notebooks")
    report.add_argument("--subject", action="append", required=True, help="once for each subject")
    report.add_argument("--dataset", help=USUAL)
    report.set_defaults(work=commands.report)

    predict = added.add_parser("predict", help="predict the volumes that a new sound would make, without a scan")
    predict.add_argument("--subject", required=True, help="whose model")
    predict.add_argument("--dataset", help=USUAL)
    predict.add_argument(
        "--sound", type=Path, required=True, help="sound file; its first sample is taken as the start of the run"
    )
    predict.add_argument("--model-version", type=int, help="default: the newest")
    predict.add_argument("--out", type=Path, help="the NIfTI file to write (default: in the subject's outputs)")
    predict.set_defaults(work=commands.predict)

    sync = added.add_parser("mlflow-sync", help="send runs that were logged locally to the MLflow server")
    sync.set_defaults(work=commands.mlflow_sync)

    serve = added.add_parser("serve", help="serve triton_models by a Triton server on this machine, without Docker")
    serve.add_argument("--models-dir", type=Path, help="default: triton_models")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        serve.add_argument(f"--{name}-port", type=int, default=port, metavar="N", help=f"default: {port}")
    serve.set_defaults(work=commands.serve)

    for command in (fetch, publish, adopt, track, run, group, report, predict, sync):
        command.add_argument(
            "-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=PARAMETER
        )
    for command in (simulate, fetch, publish, adopt, track, token, run, group, report, predict, sync, serve):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name, command in added.choices.items():
        command.epilog = f"Example: {EXAMPLES[name]}"
    return parser
