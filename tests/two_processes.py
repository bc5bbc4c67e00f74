"""Trainings for test_distributed.py: torchrun runs this file in two processes, the test imports it for one process."""

import json
import os
import sys
from pathlib import Path

import torch
from helpers import striped_slices, tiny_network
from safetensors.torch import save_file
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from brainlib.data import Augment
from brainlib.distributed import Processes, is_main_process
from brainlib.files import DataError
from brainlib.train import fit, seed_everything

torch.set_num_threads(1)


def without_batch_norm() -> nn.Module:
    """A network whose items do not see each other: sharing a batch must not change its numbers."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4),
        nn.GroupNorm(4, 16),
        nn.Mish(),
        nn.AdaptiveAvgPool2d((7, 1)),
        nn.Flatten(),
        nn.Linear(112, 4),
    )


LONG = 30  # epochs of the training that is killed
# Of 45 items in batches of 16, the last has 13: 7 and 6 for two processes. Of 49, the last has one. Validation goes in
# batches of 32, so that of 33 items the last is alone as well.
RUNS = {
    "adam": {"make": lambda p: Adam(p, lr=3e-3, weight_decay=1e-4, fused=True), "items": 45},
    "sgd": {"make": lambda p: SGD(p, lr=0.05, momentum=0.9), "items": 49, "schedule": True},
    "no validation": {"make": lambda p: Adam(p, lr=3e-3), "items": 17, "validation": False},
    "batch norm": {"make": lambda p: Adam(p, lr=3e-3), "items": 45, "network": tiny_network},
    "long": {"make": lambda p: Adam(p, lr=3e-3, fused=True), "items": 45, "epochs": LONG},
}


def train(folder: Path, name: str, *, checkpoint: Path | None = None, **options) -> list[torch.Tensor]:
    """One training; writes weights and history of this process to ``folder`` and returns all images it saw."""
    rank, run = Processes.current().rank, RUNS[name]
    seed_everything(rank)  # the processes begin with other weights, and go on with those of the first
    model = run.get("network", without_batch_norm)()
    layers = list(model)
    optimizer = run["make"](model.parameters())
    seen: list[torch.Tensor] = []
    hook = model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    history = fit(
        model,
        striped_slices(run["items"]),
        striped_slices(33, seed=1, first_group=1000) if run.get("validation", True) else None,
        optimizer=optimizer,
        scheduler=StepLR(optimizer, 2, gamma=0.5) if run.get("schedule") else None,
        epochs=run.get("epochs", 5),
        checkpoint=checkpoint,
        **{"batch_size": 16, "augment": Augment(), "precision": "32-true", "label": name} | options,
    )
    hook.remove()
    assert list(model) == layers and not model.training  # nothing is wrapped, nothing was exchanged
    stem = f"{name.replace(' ', '-')}-{rank}"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(json.dumps(history.to_dict()))
    return seen


def refused(folder: Path, name: str, **options) -> str:
    try:
        train(folder, name, progress=False, **options)
    except DataError as error:
        return str(error)
    return "nothing was refused"


def masks() -> list[list[float]]:
    """What dropout leaves of ones, in the first batch."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.Dropout(), nn.Linear(64, 4))
    kept: list[list[float]] = []
    model[2].register_forward_hook(lambda _, inputs, outputs: kept.append((outputs != 0).float()[0].tolist()))
    fit(model, striped_slices(16), optimizer=SGD(model.parameters(), lr=0.0), epochs=1, progress=False)
    return kept


def main(folder: Path, what: str) -> None:
    rank = Processes.current().rank
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    if what == "long":  # to be killed
        train(folder, "long", checkpoint=folder / "long.safetensors", progress=False)
        return
    for name in RUNS:  # several trainings, one after the other, in the same processes
        seen = train(folder, name, checkpoint=folder / "checkpoints" / f"{name}.safetensors")
        if name == "adam":
            save_file({str(i): t.contiguous() for i, t in enumerate(seen[:3])}, folder / f"seen-{rank}.safetensors")
    # A second fit of one model, from a checkpoint that is finished already.
    train(folder, "adam", checkpoint=folder / "checkpoints" / "adam.safetensors", progress=False)
    (folder / "file").write_text("where a folder should be")
    report = {
        "main": is_main_process(),
        "masks": masks(),
        "seeds": refused(folder, "adam", seed=rank),
        "disk": refused(folder, "adam", checkpoint=folder / "file" / "run.safetensors"),
        "alone": refused(folder, "adam", checkpoint=folder / "alone.safetensors"),
    }
    (folder / f"report-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
