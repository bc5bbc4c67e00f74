"""The job scripts and `brainlib submit`, against a real SLURM: killed in the middle, requeued, and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import slurm
from safetensors import safe_open
from tiny_course import chapter, code, write_course

from brainlib import cluster, course
from brainlib.cluster import Resources, Task, parse_minutes
from brainlib.files import DataError
from brainlib.results import load_records

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "jobs").glob("*.sbatch"))
# A training stands still in the second batch of the epoch after KILLED, unless a file lets it go on; one that begins
# with the epoch after KILLED, as it must when it is resumed, has not so many batches.
EPOCHS, KILLED = 8, 4
TRAINING = f"""\
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
import torch
from helpers import striped_slices, tiny_network
from torch.optim import Adam
from torch.nn import functional as F
from brainlib.data import Augment
from brainlib.files import data_root
from brainlib.results import Record, save_record
from brainlib.train import fit, seed_everything

torch.set_num_threads(1)
batches = []

def cross_entropy(outputs, targets):
    batches.append(len(targets))
    gate = Path(os.environ.get("GATES", ".")) / f"{{name}}-{{seed}}"
    waited = 0 if "GATES" in os.environ and len(batches) == 2 * {KILLED} + 2 else 180
    while waited < 180 and not gate.exists():
        time.sleep(0.05)
        waited += 0.05
    return F.cross_entropy(outputs, targets)

seed_everything(seed)
net = tiny_network()
history = fit(
    net, striped_slices(32), loss=cross_entropy, optimizer=Adam(net.parameters(), lr=3e-3), epochs={EPOCHS},
    batch_size=16, seed=seed, augment=Augment(), precision="32-true",
    checkpoint=data_root() / "runs" / name / f"seed-{{seed}}.safetensors",
)
save_record(
    Record(
        name, f"run-{{seed}}", "tiny", profile,
        {{"name": "noise", "fingerprint": "0", "split": "all", "train": 32, "validation": 0, "test": 0}},
        {{"epochs_in_this_process": len(batches) // 2}}, [seed], {{}}, 1.0,
        tables={{"train_loss": history.train_loss}},
    ),
    root=data_root() / "results",
)"""


@pytest.fixture(scope="session")
def cluster_environment():
    """The environment of a running SLURM; the tests that use it are skipped where there can be none."""
    slurm.install()
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, since a path of a socket must be
    try:
        with slurm.running(folder) as environment:
            yield environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A course of two chapters that train, with the job scripts."""
    chapters = {stem: chapter(code("train", f"name = {stem!r}\n{TRAINING}")) for stem in ("01_a", "02_b")}
    root = write_course(tmp_path / "course", **chapters)
    shutil.copytree(ROOT / "jobs", root / "jobs")
    return root


def settings(environment: dict[str, str], data: Path, **more: str) -> dict[str, str]:
    """The environment in which a user gives the commands."""
    ours = {"BRAINLIB_DATA": str(data), "PYTHON": sys.executable, "ACTIVATE": "", "OMP_NUM_THREADS": "1"}
    return environment | ours | {"PYTHONPATH": str(ROOT)} | more


def epochs_in(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as stored:
        return len(json.loads(stored.metadata()["brainlib"])["history"]["train_loss"])


def straight(name: str, seed: int, data: Path, monkeypatch) -> list[float]:
    """The losses of the same training, in this process and without a stop."""
    monkeypatch.setenv("BRAINLIB_DATA", str(data))
    exec(TRAINING, {"name": name, "seed": seed, "profile": "full"})
    (record,) = load_records(name, root=data / "results")
    assert record.settings["epochs_in_this_process"] == EPOCHS
    return record.tables["train_loss"]


def job(environment: dict[str, str], number: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    return dict(re.findall(r"(\w+)=(\S*)", slurm.ask(environment, "scontrol", "show", "job", "--oneliner", number)))


def finish(environment: dict[str, str], *numbers: str) -> list[dict[str, str]]:
    """What SLURM knows of jobs that have come to their end."""
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
    slurm.wait(lambda: all(job(environment, n).get("JobState") in over for n in numbers), 180)
    return [job(environment, number) for number in numbers]


# Against a real SLURM -------------------------------------------------------------------------------------------------


def test_an_array_of_chapters_that_is_killed_and_requeued(cluster_environment, tiny, tmp_path, monkeypatch):
    data = tmp_path / "data"
    user = settings(cluster_environment, data, CHAPTERS="01_a 02_b", SEEDS="1", GATES=str(tmp_path))
    command = ["sbatch", "--parsable", "--array=0-2", "--cpus-per-task=1", "jobs/chapters.sbatch"]
    number = subprocess.run(command, cwd=tiny, env=user, capture_output=True, text=True, check=True).stdout.strip()

    checkpoints = [data / "runs" / name / "seed-1.safetensors" for name in ("01_a", "02_b")]
    assert slurm.wait(lambda: all(epochs_in(path) == KILLED for path in checkpoints), 180), logs(tiny)
    # One hears that its time is nearly up, as SLURM says it before the limit; the other is taken off its node.
    slurm.ask(cluster_environment, "scancel", "--batch", "--signal=USR1", f"{number}_0")
    slurm.ask(cluster_environment, "scontrol", "requeue", f"{number}_1")
    first, second, superfluous = finish(cluster_environment, *(f"{number}_{i}" for i in range(3)))

    text = logs(tiny)
    assert (first["JobState"], second["JobState"], superfluous["JobState"]) == ("COMPLETED",) * 3, text
    assert (first["Restarts"], second["Restarts"], superfluous["Restarts"]) == ("1", "1", "0")
    assert "nears its time limit: back into the queue" in text and "nothing to do: there are 2 combinations" in text
    for name in ("01_a", "02_b"):
        (record,) = load_records(name, root=data / "results")
        assert record.run == "run-1"
        assert record.settings["epochs_in_this_process"] == EPOCHS - KILLED
        assert record.tables["train_loss"] == straight(name, 1, tmp_path / "straight" / name, monkeypatch)
        assert {path.name for path in (data / "runs" / name).iterdir()} == {"full-seed-1.ipynb", "seed-1.safetensors"}


def test_submit_sends_an_array_that_is_preempted_and_requeued(cluster_environment, tiny, tmp_path):
    data = tmp_path / "data"
    user = settings(cluster_environment, data, GATES=str(tmp_path))
    (tmp_path / "01_a-1").touch()  # seed 1 is left alone
    command = [sys.executable, "-m", "brainlib", "submit", "--chapters", "01", "--seeds", "1", "2", "--cpus", "1"]
    answer = subprocess.run(command, cwd=tiny, env=user, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    number = re.search(r"submitted: (\d+)_0 to \1_1", answer.stdout)[1]
    folder = Path(re.search(r"logs: (.*)", answer.stdout)[1])
    assert folder.parent == data / "jobs"

    assert slurm.wait(lambda: epochs_in(data / "runs" / "01_a" / "seed-2.safetensors") == KILLED, 180), logs(folder)
    slurm.ask(cluster_environment, "scancel", "--signal=USR2", f"{number}_1")  # to all its processes
    first, second = finish(cluster_environment, f"{number}_0", f"{number}_1")

    assert (first["JobState"], second["JobState"]) == ("COMPLETED", "COMPLETED"), logs(folder)
    assert (first["Restarts"], second["Restarts"]) == ("0", "1"), logs(folder)
    records = load_records("01_a", root=data / "results")  # of one chapter, at the same time: each has its own files
    assert [record.run for record in records] == ["run-1", "run-2"]
    assert records[0].settings["epochs_in_this_process"] == EPOCHS
    assert records[1].settings["epochs_in_this_process"] == EPOCHS - KILLED
    assert {path.name for path in (data / "runs" / "01_a").glob("*.ipynb")} == {
        "full-seed-1.ipynb",
        "full-seed-2.ipynb",
    }


def test_srun_starts_processes_that_train_together(cluster_environment, tmp_path):
    """Without torchrun: Lightning Fabric reads what srun has set."""
    script = ["#!/bin/bash", f"srun {sys.executable} {ROOT / 'tests' / 'two_processes.py'} {tmp_path} long"]
    (tmp_path / "job.sh").write_text("\n".join(script))
    command = ["sbatch", "--parsable", "--ntasks-per-node=2", "--output=log", "job.sh"]
    user = settings(cluster_environment, tmp_path)
    number = subprocess.run(command, cwd=tmp_path, env=user, capture_output=True, text=True, check=True).stdout.strip()
    (state,) = finish(cluster_environment, number)
    assert state["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    histories = [json.loads((tmp_path / f"long-{rank}.json").read_text()) for rank in (0, 1)]
    assert histories[0] == histories[1] and (tmp_path / "long.safetensors").is_file()


STUB = """\
#!/bin/sh
[ "$1" = -c ] || echo "called: $*"
"""


SEVERAL = {"MODELS": "alexnet vgg16", "SPLITS": "official grouped", "SEEDS": "4", "OPTIONS": "--epochs 5"}
TORCHRUN = "-m torch.distributed.run --nnodes 1 --nproc-per-node 2 --standalone"
CALLS = {
    "train": (
        SEVERAL,
        ["--array=0-3"],
        [f"{m} --split {s} --seed 4 --epochs 5" for m in ("alexnet", "vgg16") for s in ("official", "grouped")],
    ),
    "train_ddp": ({"MODEL": "vit", "SEED": "4", "PROCESSES": "2"}, [], ["vit --split official --seed 4"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_training_scripts_give_the_commands(cluster_environment, tiny, tmp_path, name):
    variables, options, expected = CALLS[name]
    start = f"{TORCHRUN} -m brainlib train" if name == "train_ddp" else "-m brainlib train"
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    user = settings(cluster_environment, tmp_path / "data", **variables) | {"PYTHON": str(stub)}
    command = ["sbatch", "--wait", "--cpus-per-task=1", *options, f"jobs/{name}.sbatch"]
    answer = subprocess.run(command, cwd=tiny, env=user, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr + logs(tiny)
    assert sorted(re.findall(r"called: (.*)", logs(tiny))) == sorted(f"{start} {x}" for x in expected)


def test_a_chapter_that_fails_is_a_job_that_fails(cluster_environment, tiny, tmp_path):
    user = settings(cluster_environment, tmp_path / "data", CHAPTERS="09")
    command = ["sbatch", "--wait", "--array=0", "--cpus-per-task=1", "jobs/chapters.sbatch"]
    answer = subprocess.run(command, cwd=tiny, env=user, capture_output=True, text=True, timeout=180)
    assert answer.returncode == 1 and "09: no such chapter" in logs(tiny), answer.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_takes_the_scripts(cluster_environment, script):
    command = ["sbatch", "--test-only", f"jobs/{script.name}"]
    answer = subprocess.run(command, cwd=ROOT, env=cluster_environment, capture_output=True, text=True)
    assert answer.returncode == 0 and "to start at" in answer.stderr, answer.stderr


def logs(folder: Path) -> str:
    """All that jobs have written."""
    files = [path for path in sorted(folder.iterdir()) if re.search(r"\.(log|out|err)$", path.name)]
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in files)


# Without SLURM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "jobs" / "common.sh"], ids=lambda path: path.name)
def test_scripts_are_sound(script):
    text = script.read_text()
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    subprocess.run([bash, "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=bash", "--exclude=SC1091", str(script)], check=True)
    code_lines = [line.split(" #")[0] for line in text.splitlines() if not line.startswith("# ")]
    assert not re.search(r"(?<![\w.}*])/(?:home|usr|tmp|scratch|data|opt|work)\b", "\n".join(code_lines))
    if script.suffix == ".sbatch":
        assert {"#SBATCH --requeue", "#SBATCH --signal=B:USR1@120", "#SBATCH --open-mode=append"} <= set(code_lines)
        assert not any(line.startswith("#SBATCH") and "gpu" in line for line in code_lines), "a CPU cluster refuses it"
        assert text.index("# Settings") < text.index("set -euo pipefail")
        assert f"`{script.name}`" in (ROOT / "jobs" / "README.md").read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("limit", "scontrol", "words"),
    [("0", "true", "was requeued 0 times already: not again"), ("9", "false", "could not be requeued")],
)
def test_a_job_that_cannot_be_requeued_works_on(tmp_path, limit, scontrol, words):
    """Until its limit comes: the signal that says so must not end it."""
    stub = '[ "$1" = -c ] && exit 0\ntouch started\nfor i in $(seq 200); do [ -e go ] && exit 3; sleep 0.1; done\n'
    for name, content in (("python", stub), ("scontrol", scontrol)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    lines = ["set -euo pipefail", f". {ROOT / 'jobs' / 'common.sh'}", 'run "$PYTHON" train || echo "status $?"']
    variables = {"PYTHON": "./python", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "MAX_REQUEUES": limit}
    environment = (
        {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | variables | {"SLURM_JOB_ID": "1"}
    )
    script = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert slurm.wait((tmp_path / "started").exists, 30)
    script.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(1)
    (tmp_path / "go").touch()
    out, _ = script.communicate(timeout=30)
    assert script.returncode == 0 and words in out and "status 3" in out


def submit(capsys, *arguments: str) -> tuple[int, str, str]:
    return course.main(["submit", *arguments]), *capsys.readouterr()


def test_dry_run_says_what_would_be_submitted(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny)
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", "")  # no SLURM is needed for it
    status, out, _ = submit(capsys, "--chapters", "01", "02_b", "--seeds", "0", "1", "--mem", "4", "--dry-run")
    assert status == 0 and not (tmp_path / "data").exists()
    assert out.splitlines() == [
        "4 tasks, each: 0 GPUs, 2 cores, 4 GB, 480 minutes, partition (default)",
        "  0: brainlib run 02_b --profile full -p seed 0",  # in the order of the book
        "  1: brainlib run 02_b --profile full -p seed 1",
        "  2: brainlib run 01_a --profile full -p seed 0",
        "  3: brainlib run 01_a --profile full -p seed 1",
        "nothing was submitted",
    ]
    _, out, _ = submit(capsys, "--chapters", "01", "--profile", "demo", "--dry-run")
    assert "  0: brainlib run 01_a --profile demo\n" in out
    command = ["--train", "alexnet", "--split", "official", "grouped", "--seeds", "0", "1", "--gpus", "2"]
    _, out, _ = submit(capsys, *command, "--cpus", "3", "--time", "1-2", "--partition", "gpu", "--dry-run")
    assert "4 tasks, each: 2 GPUs, 6 cores, 1560 minutes, partition gpu\n" in out
    assert "  3: torchrun, brainlib train alexnet --split grouped --seed 1\n" in out
    _, out, _ = submit(capsys, "--train", "segmenters", "--habits", "course", "--weights", "--dry-run")
    assert "  0: brainlib train classic_unet --split patient --seed 0 --habits course --weights\n" in out
    assert "4 tasks" in out
    _, out, _ = submit(capsys, "--train", "all", "--dry-run")
    assert "7 tasks" in out and "brainlib train linear --split official --seed 0\n" in out


def test_commands_of_tasks():
    alone = Task(("run", "05"), "course", "data")
    assert alone.command == [sys.executable, "-m", "brainlib", "run", "05"]
    together = Task(("train", "vit"), "course", "data", cpus=2, processes=4)
    assert together.command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    assert together.command[-4:] == ["-m", "brainlib", "train", "vit"]
    assert "gpus_per_node" not in Resources().parameters() and Resources(gpus=2).parameters()["gpus_per_node"] == 2


def test_a_task_that_fails_is_a_job_that_fails(tiny, tmp_path, capfd):
    task = Task(("run", "09"), str(tiny), str(tmp_path / "data"))
    with pytest.raises(RuntimeError, match="brainlib run 09 ended with exit code 1"):
        task()
    assert "09: no such chapter" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chapters", "03"], "03: no such chapter"),
        (["--chapters", "01", "--split", "official"], "--split belongs to --train"),
        (["--chapters", "01", "--gpus", "2"], "a chapter runs in one process"),
        (["--chapters", "01", "--seeds", "1", "1"], "twice"),
        (["--train", "alexnex"], "'alexnex'; there are recipes for the classifiers custom_cnn"),
        (["--train", "alexnex"], "and for the segmenters classic_unet"),
        (["--train", "alexnet", "classic_unet"], "with two commands"),
        (["--train", "alexnet", "--habits", "course"], "only segmenters"),
        (["--chapters", "01", "--weights"], "--habits and --weights belong to --train"),
        (["--train", "alexnet", "--split", "half"], "--split half: choose from"),
        (["--train", "alexnet", "--profile", "demo"], "--profile belongs to --chapters"),
        (["--train", "alexnet", "--time", "soon"], "--time soon"),
        (["--train", "alexnet", "--mem", "0"], "--mem more than 0"),
    ],
)
def test_what_cannot_be_submitted_is_refused(tiny, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tiny)
    status, out, err = submit(capsys, *arguments, "--dry-run")
    assert status == 1 and words in err and not out


def test_missing_slurm_and_missing_submitit_are_messages(tmp_path, monkeypatch):
    arguments = ([Task(("run", "01"), ".", ".")], Resources(), tmp_path / "jobs", "name")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="there is no SLURM on this machine"):
        cluster.submit(*arguments)
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho the queue is closed >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    monkeypatch.setattr(shutil, "which", lambda name, *rest: str(tmp_path / name))
    with pytest.raises(DataError, match="SLURM refused the job.*the queue is closed"):
        cluster.submit(*arguments)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(DataError, match=r"submitit is missing.*pip install.*scripts in jobs/"):
        cluster.submit(*arguments)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:30", 91),
        ("8:00:00", 480),
        ("1-12", 2160),
        ("1-0:30", 1470),
        ("2-00:00:01", 2881),
    ],
)
def test_times_are_those_of_slurm(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "-5", "1:2:3:4", "8h", "1-"])
def test_other_times_are_refused(text):
    with pytest.raises(DataError, match="--time"):
        parse_minutes(text)
