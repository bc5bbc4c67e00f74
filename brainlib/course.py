"""The ``brainlib`` command: run chapters, make data, check, measure.

Exit codes: 0 done, 1 something that the user can mend (the message says how), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import brainlib
from brainlib import cluster
from brainlib.cluster import plan_trainings
from brainlib.files import DataError, data_root

#: What `brainlib weights NAME` shows of a record, as far as it has them.
MAIN_METRICS = ("accuracy", "macro_f1", "auroc", "dice_wt", "dice_tc", "dice_et", "dice_mean")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return options.action(options)
    except DataError as error:
        print(f"brainlib: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"papermill", "nbformat", "nbclient", "yaml", "ipykernel"}:
            raise
        print(
            f"brainlib: {error.name} is missing: 'pip install -r requirements.txt' in the folder of the course "
            "installs what runs its chapters",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nbrainlib: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in 'brainlib check | head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the ``brainlib`` command; each subcommand sets ``action``, a function of the parsed options."""
    parser = argparse.ArgumentParser(
        prog="brainlib",
        description="Commands of the course 'Deep Learning for Brain MRI'. "
        "For teaching and research, not a medical device.",
        epilog="Data, checkpoints and full runs lie under $BRAINLIB_DATA, else under the user's cache folder.",
    )
    parser.add_argument("--version", action="version", version=f"brainlib {brainlib.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="execute chapters",
        description="Execute chapters from top to bottom, in the order of the book. A chapter whose code, library and "
        "results have not changed since it was executed is skipped. A plain demo run replaces the outputs in "
        "chapters/; any other run is kept under runs/ in the data folder.",
    )
    run.add_argument("chapters", nargs="*", metavar="CHAPTER", help="such as 05 or 05_custom_cnn (default: all)")
    run.add_argument("--profile", choices=("demo", "full"), help="demo: the phantom (default); full: the real data")
    run.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter of the chapter"
    )
    run.add_argument("--output", type=Path, metavar="DIR", help="write the executed notebooks to this folder")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--force", action="store_true", help="execute fresh chapters too")
    which.add_argument(
        "--here", action="store_true", help="execute all chapters that this machine has not executed yet"
    )
    which.add_argument("--check", action="store_true", help="execute nothing; say what would be, exit 1 if anything")
    run.set_defaults(action=run_command)

    check = commands.add_parser(
        "check",
        help="check the committed chapters",
        description="Check the chapters as they are on disk: fresh outputs, figures with alt text and captions, no "
        "warnings, paths or typed-in numbers, exercises with solutions and checks.",
    )
    check.add_argument("chapters", nargs="*", metavar="CHAPTER", help="such as 05 or 05_custom_cnn (default: all)")
    check.set_defaults(action=check_command)

    data = commands.add_parser("data", help="make or look at data", description="Make or look at data.")
    kinds = data.add_subparsers(required=True, metavar="WHAT")
    phantom = kinds.add_parser(
        "phantom", help="make the phantom", description="Make the artificial patients that the demo profile uses."
    )
    phantom.add_argument(
        "--root", type=Path, metavar="DIR", help="folder for it (default: phantom/ in the data folder)"
    )
    phantom.add_argument("--seed", type=int, default=0, help="another seed makes other patients (default: 0)")
    phantom.add_argument("--workers", type=int, metavar="N", help="processes to use (default: one for each core)")
    phantom.set_defaults(action=phantom_command)
    kaggle = kinds.add_parser(
        "kaggle",
        help="download the real data",
        description="Download the two data sets of the study from Kaggle: mri (Brain Tumor MRI Dataset, 7023 images, "
        "0.2 GB) and brats (BraTS 2020 training data, 369 patients, 7 GB). A download that was broken off goes on. "
        "Kaggle may ask for a token (https://www.kaggle.com/settings/api), in KAGGLE_API_TOKEN or "
        "~/.kaggle/access_token; it is never shown or saved.",
    )
    kaggle.add_argument("name", nargs="?", choices=("mri", "brats"), help="which one (default: both)")
    kaggle.add_argument("--root", type=Path, metavar="DIR", help="put it there instead of the data folder")
    kaggle.add_argument("--force", action="store_true", help="replace what is there; the old folder is kept as .old")
    kaggle.add_argument("--archive", type=Path, metavar="FILE", help="unpack this zip, downloaded by hand")
    kaggle.add_argument("--version", type=int, metavar="N", help="version on Kaggle (default: the newest)")
    kaggle.add_argument("--accept-counts", action="store_true", help="keep a version with other numbers of files")
    kaggle.set_defaults(action=kaggle_command)
    look = kinds.add_parser(
        "check",
        help="say which data are there",
        description="Say which data are there and complete and how to get the others, and draw samples of each set.",
    )
    look.add_argument("--no-pictures", dest="pictures", action="store_false", help="draw no samples")
    look.set_defaults(action=data_command)

    train = commands.add_parser(
        "train",
        help="train classifiers and segmenters and record them",
        description="Train classifiers of Part II on the real slices, or segmenters of Part III on the real volumes, "
        "test them, and write a record of each to book/results/08_comparing_classifiers/ or "
        "book/results/14_comparing_segmenters/. A training that was stopped goes on from its last epoch; one that is "
        "finished is only tested and recorded. Under torchrun, all processes train one model.",
    )
    train.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="such as alexnet or classic_unet; 'all' for every classifier, 'segmenters' for every segmenter",
    )
    train.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="classifiers: study, official, grouped (default: official); segmenters: study, patient (default: patient)",
    )
    train.add_argument("--seed", nargs="+", type=int, default=[0], metavar="N", help="one or more (default: 0)")
    train.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's; a shorter run is labeled so")
    train.add_argument(
        "--habits",
        choices=("own", "course"),
        default="own",
        help="segmenters: their own recipe, or the one of compact_unet with another network (default: own)",
    )
    train.add_argument("--root", type=Path, metavar="DIR", help="folder of the data set (default: in the data folder)")
    train.add_argument("--weights", action="store_true", help="save the weights of the first network too (float16)")
    train.set_defaults(action=train_command)

    cluster.add_parser(commands)

    weights = commands.add_parser(
        "weights",
        help="list trained models, or describe one",
        description="List the recorded models; with NAME load one, and say what it is and what its record says of it. "
        "In Python: brainlib.results.load_model(NAME).",
    )
    weights.add_argument("name", nargs="?", metavar="NAME", help="such as 05_custom_cnn/official (default: list all)")
    weights.set_defaults(action=weights_command)

    bench = commands.add_parser("bench", help="measure speed", description="Run the scripts in benchmarks/.")
    bench.add_argument("names", nargs="*", metavar="NAME", help="scripts to run (default: all)")
    bench.set_defaults(action=bench_command)
    return parser


def run_command(options: argparse.Namespace) -> int:
    """``brainlib run``"""
    from brainlib import execute, notebooks

    root = notebooks.course_root()
    paths = notebooks.find_chapters(root, options.chapters)
    settings = read_settings(options)
    if options.check:
        stale = 0
        for path in paths:
            execute.check_parameters(path.stem, notebooks.read(path), settings)
            reasons = execute.stale_reasons(root, path, settings)
            stale += bool(reasons)
            print(f"{path.stem}: {'; '.join(reasons) or 'fresh'}")
        return int(stale > 0)
    return int(execute.run_chapters(root, paths, settings) > 0)


def read_settings(options: argparse.Namespace) -> Any:
    """The settings of a run from parsed options; ``-p profile full`` is the same as ``--profile full``."""
    from brainlib.execute import PROFILES, Settings

    parameters = {name: parse_value(value) for name, value in options.p}
    profile = parameters.pop("profile", options.profile or "demo")
    if profile not in PROFILES:
        raise DataError(f"profile {profile!r}: choose one of {', '.join(PROFILES)}")
    if options.profile not in (None, profile):
        raise DataError(f"--profile {options.profile} and -p profile {profile} contradict each other")
    output = options.output.resolve() if options.output else None
    return Settings(profile, parameters, output, options.force, options.here)


def parse_value(text: str) -> Any:
    """A Python literal where ``text`` is one (``3``, ``0.1``, ``True``, ``[1, 2]``), else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_command(options: argparse.Namespace) -> int:
    """``brainlib check``"""
    from brainlib import checks, notebooks

    root = notebooks.course_root()
    paths = notebooks.find_chapters(root, options.chapters)
    problems = checks.check_chapters(root, paths)
    for problem in problems:
        print(problem)
    print(f"{len(paths)} chapters checked, {len(problems) or 'no'} problems")
    return int(bool(problems))


def phantom_command(options: argparse.Namespace) -> int:
    """``brainlib data phantom``"""
    from brainlib.data.phantom import make_phantom

    print(f"the phantom is in {make_phantom(options.root, options.seed, workers=options.workers)}")
    return 0


def kaggle_command(options: argparse.Namespace) -> int:
    """``brainlib data kaggle``"""
    from brainlib.data.kaggle import SETS, download

    if options.name is None and (options.archive or options.version):
        raise DataError(f"--archive and --version need the name of the data set: one of {', '.join(SETS)}")
    for name in [options.name] if options.name else list(SETS):
        folder = download(
            name,
            options.root,
            force=options.force,
            archive=options.archive,
            version=options.version,
            accept_counts=options.accept_counts,
        )
        print(f"{name} is in {folder}", flush=True)
    return 0


def data_command(options: argparse.Namespace) -> int:
    """``brainlib data check``: exit 1 when something that is there is incomplete; what is not there is only named."""
    from brainlib.datacheck import check_data

    print(f"data folder: {data_root()} ({'from BRAINLIB_DATA' if os.environ.get('BRAINLIB_DATA') else 'the default'})")
    findings = check_data(pictures=options.pictures)
    for finding in findings:
        print(f"{finding.name}: {'' if finding.state == 'absent' else finding.state + ', '}{finding.text}")
        if finding.sheet:
            print(f"  samples: {finding.sheet}")
    return int(any(finding.state == "incomplete" for finding in findings))


def train_command(options: argparse.Namespace) -> int:
    """``brainlib train``"""
    if options.epochs is not None and options.epochs < 1:
        raise DataError(f"--epochs {options.epochs}: it must be 1 or more")
    models, splits, segmenters = plan_trainings(options.models, options.split, options.habits)
    return (train_segmenters if segmenters else train_classifiers)(models, splits, options)


def train_classifiers(models: Sequence[str], splits: Sequence[str], options: argparse.Namespace) -> int:
    from brainlib.data import load_mri
    from brainlib.distributed import is_main_process
    from brainlib.experiments import checkpoint_folder, describe, train_classifier
    from brainlib.results import save_record

    main = is_main_process()  # of several under torchrun, one writes and speaks
    data = load_mri(options.root, progress=main)
    for name, split, seed in itertools.product(models, splits, options.seed):
        trained = train_classifier(
            name, data, split, seed, epochs=options.epochs, checkpoints=checkpoint_folder(), progress=main
        )
        if main:
            record = describe(trained, data)
            predictions = {"test": trained.test, "validation": trained.validation}
            path = save_record(record, trained.networks[0] if options.weights else None, predictions=predictions)
            print(f"{record.run}: accuracy {record.metrics['accuracy']}, in {path}", flush=True)
    return 0


def train_segmenters(models: Sequence[str], splits: Sequence[str], options: argparse.Namespace) -> int:
    from brainlib.data import load_brats
    from brainlib.distributed import is_main_process
    from brainlib.results import save_record
    from brainlib.segmenters import (
        describe_segmenter,
        get_segmenter_recipe,
        score_segmenter,
        segmenter_checkpoints,
        train_segmenter,
    )

    main = is_main_process()
    dataset = load_brats(options.root, progress=main)
    for name, split, seed in itertools.product(models, splits, options.seed):
        recipe = get_segmenter_recipe(name, options.habits)
        trained = train_segmenter(
            recipe, dataset, split, seed, epochs=options.epochs, checkpoints=segmenter_checkpoints(), progress=main
        )
        if main:
            scores = score_segmenter(trained.network, trained.test, distances=split == "patient")
            record = describe_segmenter(trained, scores)
            path = save_record(record, trained.network if options.weights else None)
            score = "dice_mean" if split == "study" else "dice_wt"
            print(f"{record.run}: {score} {record.metrics[score]}, in {path}", flush=True)
    return 0


def weights_command(options: argparse.Namespace) -> int:
    """``brainlib weights``"""
    from brainlib.results import find_record, list_weights, weights_problem

    if options.name is not None:
        return describe_weights(options.name)
    names = list_weights()
    for name in names:
        if problem := weights_problem(name):
            print(f"{name}: cannot be used, the file {problem}")
            continue
        record = find_record(name)
        print(f"{name}: {record.model}, {record.profile} profile, {record.data['name']}")
    print(f"{len(names) or 'no'} recorded models")
    return 0


def describe_weights(name: str) -> int:
    """What is known of one recorded model, which is loaded for it."""
    from brainlib.models import count_parameters
    from brainlib.results import find_record, load_model, weights_file

    path = weights_file(name)
    model, record = load_model(name), find_record(name)
    main = [metric for metric in MAIN_METRICS if metric in record.metrics] or list(record.metrics)[:3]
    print(f"{name}: {record.model}, {count_parameters(model):,} parameters, {path.stat().st_size / 1e6:.1f} MB")
    print(f"  {path}")
    print(f"  {record.profile} profile, {record.data['name']}, split {record.data['split']}, seeds {record.seeds}")
    for metric in main:
        print(f"  {metric}: {record.metrics[metric]}")
    print("For teaching and research, not a medical device.")
    return 0


def bench_command(options: argparse.Namespace) -> int:
    """``brainlib bench``"""
    from brainlib.notebooks import course_root

    scripts = {path.stem: path for path in sorted((course_root() / "benchmarks").glob("*.py"))}
    names = [Path(name).stem for name in options.names] or list(scripts)
    for name in names:
        if name not in scripts:
            raise DataError(f"{name}: no such benchmark. There are: {', '.join(scripts) or 'none yet'}")
    failed = []
    for position, name in enumerate(names, 1):
        print(f"benchmark {position} of {len(names)}: {name}", flush=True)
        if subprocess.run([sys.executable, str(scripts[name])], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"brainlib: {len(failed)} of {len(names)} benchmarks failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))
