"""``brainlib submit``: chapters and trainings as an array of SLURM jobs, through submitit.

A task that nears its time limit, or is preempted, goes back into the queue and continues from its last finished epoch.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainlib.files import DataError, data_root, explain

SIGNAL_SECONDS = 120  # a task hears so long before its end that it must stop
MAX_TIMEOUTS = 50  # against a training whose first epoch takes longer than the time limit


@dataclass(frozen=True)
class Resources:
    """What each task asks SLURM for.

    Attributes:
        partition: None for the cluster's default.
        gpus: for each task; 0 asks for none, which works on a cluster that has none.
        minutes: time limit; a longer training is requeued until it is done.
        cpus: processor cores for each task.
        memory: GB for each task; None for the cluster's default.
    """

    partition: str | None = None
    gpus: int = 0
    minutes: int = 480
    cpus: int = 2
    memory: float | None = None

    def parameters(self) -> dict[str, Any]:
        """As submitit wants them."""
        chosen: dict[str, Any] = {"timeout_min": self.minutes, "cpus_per_task": self.cpus, "tasks_per_node": 1}
        if self.memory is not None:
            chosen["mem_gb"] = self.memory
        if self.gpus:
            chosen["gpus_per_node"] = self.gpus
        if self.partition is not None:
            chosen["slurm_partition"] = self.partition
        return chosen | {
            "nodes": 1,
            "slurm_signal_delay_s": SIGNAL_SECONDS,
            "slurm_additional_parameters": {"requeue": True},
        }


@dataclass(frozen=True)
class Task:
    """One command of a job array, called on a compute node; a ``submitit`` callable that can be requeued."""

    arguments: tuple[str, ...]  # of the brainlib command
    root: str  # the folder of the course
    data: str  # BRAINLIB_DATA
    cpus: int = 1
    processes: int = 1

    @property
    def command(self) -> list[str]:
        """What is run: brainlib in this interpreter, or under torchrun in several processes."""
        if self.processes == 1:
            return [sys.executable, "-m", "brainlib", *self.arguments]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        return [sys.executable, *torchrun, "-m", "brainlib", *self.arguments]

    def __call__(self) -> int:
        threads = os.environ.get("OMP_NUM_THREADS", str(self.cpus))
        environment = {**os.environ, "BRAINLIB_DATA": self.data, "OMP_NUM_THREADS": threads}
        print("+ brainlib", shlex.join(self.arguments), flush=True)
        # SLURM sends its warning to all processes of a task. The command must not die of it before this one, which
        # answers by requeuing (submitit does), has heard it.
        ignore = lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # noqa: E731
        status = subprocess.run(self.command, cwd=self.root, env=environment, preexec_fn=ignore).returncode
        if status:
            raise RuntimeError(f"brainlib {shlex.join(self.arguments)} ended with exit code {status}")
        return status

    def checkpoint(self) -> Any:
        """What to submit when the task is requeued: itself. Its state lies in the checkpoints of its trainings."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def chapter_arguments(
    chapters: Sequence[str], seeds: Sequence[int], profile: str, root: Path | None = None
) -> list[list[str]]:
    """Arguments of the brainlib command: every chapter with every seed, or as it is without seeds.

    Raises:
        DataError: an unknown chapter, or one that has no such parameter.
    """
    from brainlib import execute, notebooks

    root = root or notebooks.course_root()
    found = []
    for path in notebooks.find_chapters(root, chapters):
        settings = execute.Settings(profile, {"seed": seeds[0]} if seeds else {})
        execute.check_parameters(path.stem, notebooks.read(path), settings)
        command = ["run", path.stem, "--profile", profile]
        found += [[*command, "-p", "seed", str(seed)] for seed in seeds] or [command]
    return found


def plan_trainings(
    words: Sequence[str], splits: Sequence[str] | None = None, habits: str = "own"
) -> tuple[list[str], list[str], bool]:
    """What the words after ``brainlib train`` and ``brainlib submit --train`` mean: models, splits, and of which kind.

    Args:
        words: models; ``"all"`` stands for every classifier, ``"segmenters"`` for every segmenter.
        splits: of that kind; None for its usual one.
        habits: other than ``"own"`` for segmenters only.

    Returns:
        The models, the splits, and whether the models are segmenters.

    Raises:
        DataError: a model without a recipe, classifiers and segmenters together, or an unknown split.
    """
    from brainlib import experiments, segmenters
    from brainlib.recipes import RECIPES

    outliners = segmenters.SEGMENTER_RECIPES
    groups = {"all": list(RECIPES), "segmenters": list(outliners)}
    models = [name for word in words for name in groups.get(word, [word])]
    for name in models:
        if name not in RECIPES and name not in outliners:
            raise DataError(
                f"there is no recipe for {name!r}; there are recipes for the classifiers {', '.join(RECIPES)} (all of "
                f"them: all) and for the segmenters {', '.join(outliners)} (all of them: segmenters)"
            )
    kinds = {name in outliners for name in models}
    if len(kinds) > 1:
        raise DataError("train classifiers and segmenters with two commands: their data and splits differ")
    segment = kinds == {True}
    if habits != "own" and not segment:
        raise DataError(f"--habits {habits}: only segmenters have a choice of habits")
    known, usual = (segmenters.PROTOCOLS, "patient") if segment else (experiments.PROTOCOLS, "official")
    for split in splits or []:
        if split not in known:
            raise DataError(f"--split {split}: choose from {', '.join(known)}")
    return models, list(splits or [usual]), segment


def train_arguments(
    words: Sequence[str],
    splits: Sequence[str] | None,
    seeds: Sequence[int],
    habits: str = "own",
    weights: bool = False,
) -> list[list[str]]:
    """Arguments of the brainlib command: every model with every split and seed, see `plan_trainings`."""
    models, splits, _ = plan_trainings(words, splits, habits)
    more = (["--habits", habits] if habits != "own" else []) + (["--weights"] if weights else [])
    combinations = itertools.product(models, splits, seeds or [0])
    return [["train", model, "--split", split, "--seed", str(seed), *more] for model, split, seed in combinations]


def submit(tasks: Sequence[Task], resources: Resources, folder: Path, name: str) -> list[str]:
    """Submit ``tasks`` as one job array; returns the numbers of the jobs as SLURM names them.

    Args:
        folder: for logs and the files of submitit; it is made, and must be on a disk that all nodes share.

    Raises:
        DataError: there is no submitit or no SLURM, the folder cannot be made, or SLURM refuses the job.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise DataError(
            "there is no SLURM on this machine (no sbatch and srun): give the command on a login node of your cluster"
        )
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error.name} is missing, which 'brainlib submit' needs: 'pip install \"submitit>=1.5,<2\"', or use the "
            "scripts in jobs/, which need nothing"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        executor = AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(name=name, **resources.parameters())
        return [str(job.job_id) for job in executor.submit_array(list(tasks))]
    except OSError as error:
        raise explain(error, folder) from error
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        raise DataError(f"SLURM refused the job: {str(error).strip()}") from error


# The command line -----------------------------------------------------------------------------------------------------


def add_parser(commands: Any) -> None:
    """Add ``submit`` to the subcommands of ``brainlib``."""
    parser = commands.add_parser(
        "submit",
        help="send chapters or trainings to a SLURM cluster",
        description="Send chapters or trainings to a SLURM cluster, as an array with one task for each combination. "
        "What else the cluster wants to know (account, quality of service) is read from SBATCH_ACCOUNT, SBATCH_QOS and "
        "the like. A task that is preempted or reaches its time limit is requeued and goes on from its last epoch. "
        "Logs: jobs/ in the data folder.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--chapters", nargs="+", metavar="CHAPTER", help="such as 05 or 05_custom_cnn")
    what.add_argument("--train", nargs="+", metavar="MODEL", help="names for 'brainlib train', or all, or segmenters")
    parser.add_argument("--profile", choices=("demo", "full"), help="of chapters (default: full)")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="of trainings (default: official, or patient)")
    parser.add_argument("--habits", choices=("own", "course"), default="own", help="of segmenters (default: own)")
    parser.add_argument("--weights", action="store_true", help="of trainings: save the weights too")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="one task for each")
    parser.add_argument("--partition", metavar="NAME", help="where to run (default: the cluster's)")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="a task; a training takes all (default: 0)")
    parser.add_argument("--time", default="8:00:00", metavar="LIMIT", help="minutes, H:MM:SS or D-H (default: 8:00:00)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="processor cores a process (default: 2)")
    parser.add_argument("--mem", type=float, metavar="GB", help="memory a task (default: the cluster's)")
    parser.add_argument("--dry-run", action="store_true", help="submit nothing, say what would be")
    parser.set_defaults(action=submit_command)


def submit_command(options: argparse.Namespace) -> int:
    """``brainlib submit``"""
    from brainlib.notebooks import course_root

    root = course_root()
    tasks, resources = plan(options, root)
    name = "brainlib-chapters" if options.chapters else "brainlib-train"
    folder = data_root().absolute() / "jobs" / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{name}"
    memory = "" if resources.memory is None else f", {resources.memory:g} GB"
    print(
        f"{len(tasks)} tasks, each: {resources.gpus} GPUs, {resources.cpus} cores{memory}, "
        f"{resources.minutes} minutes, partition {resources.partition or '(default)'}"
    )
    for number, task in enumerate(tasks):
        print(f"  {number}: {'torchrun, ' if task.processes > 1 else ''}brainlib {shlex.join(task.arguments)}")
    if options.dry_run:
        print("nothing was submitted")
        return 0
    jobs = submit(tasks, resources, folder, name)
    print(f"submitted: {jobs[0]}{f' to {jobs[-1]}' if len(jobs) > 1 else ''}\nlogs: {folder}")
    return 0


def plan(options: argparse.Namespace, root: Path) -> tuple[list[Task], Resources]:
    """Tasks and resources from parsed options.

    Raises:
        DataError: options that do not go together, or make no sense.
    """
    if options.chapters and options.split:
        raise DataError("--split belongs to --train; chapters have their own splits")
    if options.chapters and (options.habits != "own" or options.weights):
        raise DataError("--habits and --weights belong to --train")
    if options.train and options.profile:
        raise DataError("--profile belongs to --chapters; trainings use the real data")
    if options.chapters and options.gpus > 1:
        raise DataError("--gpus: a chapter runs in one process and uses one GPU; --train can use several")
    if options.gpus < 0 or options.cpus < 1 or (options.mem is not None and options.mem <= 0):
        raise DataError("--gpus must be 0 or more, --cpus 1 or more, --mem more than 0")
    if options.chapters:
        arguments = chapter_arguments(options.chapters, options.seeds, options.profile or "full", root)
    else:
        arguments = train_arguments(options.train, options.split, options.seeds, options.habits, options.weights)
    if len({tuple(a) for a in arguments}) < len(arguments):
        raise DataError("the same chapter or training twice: two tasks would write the same files")
    processes = max(1, options.gpus)
    data = str(data_root().absolute())
    tasks = [Task(tuple(a), str(root), data, options.cpus, processes) for a in arguments]
    minutes = parse_minutes(options.time)
    return tasks, Resources(options.partition, options.gpus, minutes, options.cpus * processes, options.mem)


def parse_minutes(text: str) -> int:
    """Minutes of a time as SLURM writes it: ``M``, ``M:SS``, ``H:MM:SS``, ``D-H``, ``D-H:MM`` or ``D-H:MM:SS``."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise DataError(f"--time {text}: give minutes, H:MM:SS or D-H, such as 90, 8:00:00 or 1-12")
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise DataError(f"--time {text}: it must be a minute or more")
    return total
