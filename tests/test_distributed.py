"""Several processes: two of torchrun on the CPU give the numbers of one, survive being killed, and agree."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import two_processes
from helpers import striped_slices, tiny_network, tree
from lightning_fabric.strategies import DDPStrategy
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD

from brainlib import distributed
from brainlib.data import Augment, DataError
from brainlib.data.augment import to_input
from brainlib.distributed import Processes, exchange_batch_norm, put_back
from brainlib.evaluate import predict
from brainlib.train import fit

HERE = Path(__file__).parent
# float32 sums in another order. Seen: 2e-7 in weights, 3e-7 in losses, after five epochs.
TOLERANCE = 1e-5

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]


def command(folder: Path, what: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*torchrun, str(HERE / "two_processes.py"), str(folder), what]


def run(folder: Path, what: str) -> str:
    """What the two processes print."""
    answer = subprocess.run(command(folder, what), capture_output=True, text=True, env=environment(), timeout=240)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def environment() -> dict[str, str]:
    """Without what a cluster has set for this test itself."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | {"OMP_NUM_THREADS": "1"}


def numbers(folder: Path, name: str, rank: int) -> dict:
    return json.loads((folder / f"{name.replace(' ', '-')}-{rank}.json").read_text())


def weights(folder: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name.replace(' ', '-')}-{rank}.safetensors")


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The same trainings in this process."""
    folder = tmp_path_factory.mktemp("one")
    for name in two_processes.RUNS:
        two_processes.train(folder, name, progress=False)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, str]:
    """The folder that two processes wrote, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    two_processes.train(folder, "adam", checkpoint=folder / "alone.safetensors", progress=False)
    return folder, run(folder, "all")


@pytest.mark.parametrize("name", [name for name in two_processes.RUNS if name != "batch norm"])
def test_two_processes_give_the_numbers_of_one(one, two, name):
    folder, _ = two
    expected, found = numbers(one, name, 0), numbers(folder, name, 0)
    assert found["best_epoch"] == expected["best_epoch"] and len(found["train_loss"]) >= 5
    for key in ("train_loss", "train_score", "validation_loss", "validation_score", "learning_rate"):
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=TOLERANCE, err_msg=key)
    alone = weights(one, name, 0)
    for key, tensor in weights(folder, name, 0).items():
        torch.testing.assert_close(tensor, alone[key], rtol=0, atol=TOLERANCE)
    # The tolerance is small beside what training did.
    assert abs(expected["train_loss"][0] - expected["train_loss"][-1]) > 1000 * TOLERANCE


@pytest.mark.parametrize("name", two_processes.RUNS)
def test_both_processes_have_the_same_weights_and_history(two, name):
    folder, _ = two
    assert numbers(folder, name, 0) == numbers(folder, name, 1)  # to the last bit, seconds included
    first, second = weights(folder, name, 0), weights(folder, name, 1)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_batch_norm_on_the_cpu_differs_from_one_process(one, two):
    """There is no SyncBatchNorm on the CPU. If this fails, there is one, and the documentation of fit can say so."""
    found, expected = numbers(two[0], "batch norm", 0), numbers(one, "batch norm", 0)
    assert abs(found["train_loss"][-1] - expected["train_loss"][-1]) > 100 * TOLERANCE


def test_the_processes_see_the_images_of_one(two, tmp_path):
    expected = two_processes.train(tmp_path, "adam", progress=False)
    parts = [load_file(two[0] / f"seen-{rank}.safetensors") for rank in (0, 1)]
    assert [len(batch) for batch in expected[:3]] == [16, 16, 13]
    for i, batch in enumerate(expected[:3]):
        for rank, part in enumerate(parts):
            assert torch.equal(part[str(i)], batch[rank::2])  # augmented alike, to the last bit


def test_dropout_differs_between_processes(two):
    first, second = (json.loads((two[0] / f"report-{rank}.json").read_text())["masks"][0] for rank in (0, 1))
    assert first != second and 0 < sum(first) < len(first) and 0 < sum(second) < len(second)


def test_the_first_process_alone_writes_and_shows(two):
    folder, out = two
    checkpoints = {f"{name}.safetensors" for name in two_processes.RUNS}
    assert set(tree(folder / "checkpoints")) == checkpoints
    for name in two_processes.RUNS:
        assert out.count(f"{name}: {len(numbers(folder, name, 0)['train_loss'])} epochs, ") == 1, out
    assert [json.loads((folder / f"report-{rank}.json").read_text())["main"] for rank in (0, 1)] == [True, False]


def test_what_is_wrong_is_said_in_every_process(two):
    reports = [json.loads((two[0] / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    for report in reports:
        assert "processes 0 and 1 cannot train together (seed is 0 and 1)" in report["seeds"]
        assert "cannot write" in report["disk"] and "file/run.safetensors" in report["disk"]
        assert "processes was 1, now 2" in report["alone"] and "delete it" in report["alone"]


def epochs_in(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as stored:
        return len(json.loads(stored.metadata()["brainlib"])["history"]["train_loss"])


def test_killed_in_the_middle_ends_like_one_that_was_not(two, tmp_path):
    straight, _ = two
    checkpoint = tmp_path / "long.safetensors"
    process = subprocess.Popen(
        command(tmp_path, "long"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while epochs_in(checkpoint) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    for file in tmp_path.glob("pid-*"):  # they outlive torchrun
        os.kill(int(file.read_text()), signal.SIGKILL)
    process.wait()
    finished = epochs_in(checkpoint)
    (tmp_path / ".long-a1b2c3d4.safetensors").write_bytes(b"half a checkpoint")
    run(tmp_path, "long")
    assert 3 <= finished < two_processes.LONG
    histories = [numbers(folder, "long", 0) for folder in (tmp_path, straight)]
    assert all(len(history.pop("seconds")) == two_processes.LONG for history in histories)
    assert histories[0] == histories[1]  # two processes add two numbers, and a + b is b + a: no tolerance
    for rank in (0, 1):
        first, second = weights(tmp_path, "long", rank), weights(straight, "long", rank)
        assert all(torch.equal(first[k], second[k]) for k in first)
    assert [name for name in tree(tmp_path) if "long" in name and "-" not in name] == ["long.safetensors"]


# Without other processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("items", [1, 2, 3, 5, 16, 31])
def test_shares_add_up_to_the_gradient_of_the_batch(size, items):
    values = torch.arange(float(items)) ** 2
    shares = [Processes(rank, size).share(items) for rank in range(size)]
    gradient = sum(values[share.part].mean() * share.factor for share in shares) / size
    assert gradient.item() == pytest.approx(values.mean().item(), rel=1e-6)
    assert sum(len(values[share.part]) / share.copies for share in shares) == items
    assert all(len(values[share.part]) for share in shares)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Processes()),
        ({"WORLD_SIZE": "4", "RANK": "1"}, Processes()),  # somebody else's variables
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "x"}, Processes()),  # a job script, not a step
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "x"}, Processes()),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, Processes()),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "x"},
            Processes(3, 4, 2, "srun"),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5"}
            | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            Processes(5, 8, 2, "torchrun"),
        ),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0"}, Processes()),
    ],
)
def test_processes_are_read_from_the_environment(monkeypatch, variables, expected):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Processes.current() == expected


@pytest.fixture
def srun(monkeypatch):
    """What the fourth of four processes finds that srun has started; Fabric is noted and not made."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    step = {"STEP_NUM_TASKS": "4", "STEP_NUM_NODES": "1", "NTASKS": "4", "PROCID": "3", "LOCALID": "3", "NODEID": "0"}
    for name, value in (step | {"JOB_NAME": "x", "NTASKS_PER_NODE": "4"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    asked = {}

    class Noted:
        def __init__(self, **options):
            asked.update(options)

        def launch(self):
            pass

    monkeypatch.setattr(distributed, "Fabric", Noted)
    return asked


@pytest.mark.parametrize(("gpus", "devices", "number"), [(0, 4, 3), (4, 4, 3), (1, 1, 0)])
def test_each_process_of_srun_takes_the_gpu_that_it_sees(srun, monkeypatch, gpus, devices, number):
    """With --gpus-per-task=1 each process sees one, which has number 0 in all of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    Processes.current().fabric("32-true")
    (environment,) = srun["plugins"]
    assert srun["devices"] == devices and environment.local_rank() == number
    assert environment.world_size() == 4 and environment.global_rank() == 3
    strategy = DDPStrategy(
        parallel_devices=[torch.device("cpu", i) for i in range(devices)], cluster_environment=environment
    )
    assert strategy.root_device == torch.device("cpu", number)  # as Fabric will ask


def test_srun_with_ntasks_alone_says_what_to_do(srun, monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(DataError, match="--ntasks-per-node"):
        Processes.current().fabric("32-true")


def test_a_cluster_around_one_process_changes_nothing(monkeypatch, tmp_path):
    """In a job script, or on a machine that has SLURM, Lightning Fabric would warn or refuse, were it left to guess."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def work() -> tuple[list[float], np.ndarray]:
        torch.manual_seed(0)
        model, data = tiny_network(), striped_slices(16)
        history = fit(model, data, optimizer=SGD(model.parameters(), lr=0.1), epochs=2, progress=False)
        return history.train_loss, predict(model, data).probabilities

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses, probabilities = work()
        for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0"}.items():
            monkeypatch.setenv(name, value)
        again, same = work()
    assert losses == again and np.array_equal(probabilities, same)


def test_batch_norm_is_exchanged_and_put_back():
    """What happens on CUDA, where the exchanged layers train; here they can only predict."""
    torch.manual_seed(0)
    model = nn.Sequential(tiny_network(), nn.BatchNorm1d(4))
    model(torch.rand(8, 3, 32, 32))  # moves the statistics
    layers, images = list(model.modules()), torch.rand(4, 3, 32, 32)
    state = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    expected = model.eval()(images)
    model.train()
    exchanged = exchange_batch_norm(model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == 2 == len(exchanged)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == {
        k: v[0] for k, v in state.items()
    }
    assert torch.equal(model.eval()(images), expected)
    put_back(exchanged)
    assert list(model.modules()) == layers and not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name][1]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("augment", [Augment(), Augment(flip=1.0, rotation=45.0, brightness=0.5)], ids=repr)
def test_a_draw_can_be_shared(augment):
    images = to_input(
        torch.randint(0, 256, (7, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    whole = augment(images, torch.Generator().manual_seed(1))
    draw = augment.draw(7, torch.Generator().manual_seed(1))
    assert torch.equal(augment(images, draw=draw), whole)
    for rank in range(3):
        assert torch.equal(augment(images[rank::3], draw=draw[:, rank::3]), whole[rank::3])
