"""One training loop for every chapter: seeded, resumable, the same on CPU and GPU, in one process and in several."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from brainlib.data.augment import Augment, repeat_channels, to_input
from brainlib.data.augment_masks import SegmentationAugment
from brainlib.data.splits import check_split
from brainlib.distributed import Processes, synchronized_batch_norm
from brainlib.files import DataError, remove_leftovers, write_tensors
from brainlib.modes import exact_float32, on_device

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision on stderr, at every fit

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


#: Settings that older checkpoints do not name; they pass for equal there.
LATER_SETTINGS = {"layers", "score", "loss's settings"}
ADVICE = "delete it to start anew, or choose another checkpoint file"


class Data(Protocol):
    """What `fit` and `predict` need of a data set; `brainlib.data.MRIDataset` is one.

    A data set may also have ``prepare(images, targets, index)``, which makes of a batch on the device the float images
    and the targets that the model is trained with (default: bytes divided by 255), and ``order(generator)``, int64
    positions of the items of one epoch (default: each once, shuffled). `brainlib.data.SegmentationData` has both.
    """

    groups: np.ndarray  # int (N,), numbered jointly for all parts of one data set
    channels: int | None

    def __len__(self) -> int: ...

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 images ``(B, C, H, W)`` and targets ``(B, ...)``, on the CPU."""

    @property
    def fingerprint(self) -> str: ...


@dataclass
class History:
    """What happened, epoch by epoch. Lists have one entry an epoch; those of validation are empty without it."""

    train_loss: list[float] = field(default_factory=list)
    train_score: list[float] = field(default_factory=list)  # in train mode, while the weights still move
    validation_loss: list[float] = field(default_factory=list)
    validation_score: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None  # counted from 0; the epoch whose weights `fit` left in the model

    def __len__(self) -> int:
        return len(self.train_loss)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain lists and numbers, for a record."""
        return asdict(self)


def top1(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 where the largest logit is the true class, else 0; float ``(B,)``."""
    return (outputs.argmax(1) == targets).float()


def automatic_precision() -> str:
    """``"bf16-mixed"`` where trainings are faster in bfloat16, else ``"32-true"`` (names of Lightning Fabric).

    On a GPU: from compute capability 8.0. On a processor: with AMX, or with AVX-512's instructions for bfloat16 unless
    it is Intel's. There these take nearly twice as long as those for float32. What waits for memory and not for
    arithmetic may still gain from numbers of half the size (``benchmarks/precision.py`` measures both).
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    quick = capabilities.get("avx512_bf16") and "Intel" not in str(capabilities.get("cpu_name", ""))
    return "bf16-mixed" if capabilities.get("amx_bf16") or quick else "32-true"


def seed_everything(seed: int) -> None:
    """Seed torch and NumPy, so that a model made next has the weights that belong to ``seed``."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  third-party code may still use the global generator


def fit(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    optimizer: Optimizer,
    loss: Loss = F.cross_entropy,
    scheduler: LRScheduler | None = None,
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    augment: Augment | SegmentationAugment | None = None,
    score: Loss = top1,
    keep: str = "best",
    overlap: str = "refuse",
    precision: str = "auto",
    progress: bool = True,
    label: str = "training",
) -> History:
    """Train ``model`` in place and return its history.

    Every random choice of epoch ``e`` (order, augmentation, dropout) follows from ``(seed, e)`` alone. So a run that
    was killed and is started again with the same ``checkpoint`` loses the epoch it was in, and ends with the same
    weights as one that was never killed: bit for bit on the CPU; a GPU may add the same numbers in another order.

    Training takes place on a GPU of CUDA where there is one. Afterwards model, loss and optimizer are back where the
    model was, also when an exception ends the training.

    Where torchrun or srun has started several processes, each trains on its share of every batch, on a device of its
    own. ``batch_size`` is still that of the whole batch, all processes draw the same order and augmentation, and
    gradients are averaged over all items: the numbers are those of one process, but for the order in which they are
    summed up. Dropout differs between processes. BatchNorm normalizes with the whole batch on CUDA (SyncBatchNorm); on
    the CPU that does not exist, each process normalizes with its own share, and the numbers are others. History, best
    epoch and final weights are the same in all processes; the first alone writes the checkpoint, all read it.

    Args:
        model: takes float ``(B, C, H, W)``: in [0, 1], or as the data set prepares it. It returns outputs, or in train
            mode a list of them for a loss with deep supervision; the first is the one that is scored.
        train, validation: data sets with uint8 batches. Without validation the last epoch is kept.
        optimizer: made over ``model.parameters()``.
        loss: of (outputs, targets); a mean over the items of the batch. Another kind of mean, such as one weighted by
            class or the Dice of a whole batch, is taken over each process's share where there are several. The tensors
            of a module, such as weights of classes, go to the device of the training.
        scheduler: stepped after each epoch.
        checkpoint: a ``.safetensors`` file, written after each epoch and read if it exists. A finished run is loaded
            and not trained again; a larger ``epochs`` goes on from it. It belongs to one number of processes.
        augment: applied to each training batch on the device; several processes use its ``draw``. A
            `SegmentationAugment` changes images and masks alike.
        score: of (outputs, targets), one number for each item, higher is better; chooses the best epoch.
        keep: ``"best"`` leaves the weights of the epoch with the highest validation score (the earliest of equals) in
            the model, ``"last"`` those of the last epoch.
        overlap: ``"refuse"`` raises when training and validation share a group; ``"allow"`` is for reproducing a
            leaking protocol.
        precision: ``"auto"``, ``"bf16-mixed"`` or ``"32-true"`` (without the TF32 of newer GPUs). Weights are float32
            in all of them.
        progress: show a bar that leaves one line.
        label: stands before the bar.

    Raises:
        DataError: a group on both sides, a checkpoint of another run or a damaged one, or no room to write it.
        FloatingPointError: the loss became nan or infinite.
    """
    if keep not in ("best", "last") or overlap not in ("refuse", "allow"):
        raise DataError(f"keep={keep!r} must be 'best' or 'last', overlap={overlap!r} 'refuse' or 'allow'")
    if len(train) == 0 or (validation is not None and len(validation) == 0):
        raise DataError("the training or validation set is empty: there is nothing to learn from or to score")
    if validation is not None and overlap == "refuse":
        check_split({"training": train.groups, "validation": validation.groups})
    processes = Processes.current()
    precision = automatic_precision() if precision == "auto" else precision
    fabric = processes.fabric(precision)
    settings = {
        "model": type(model).__name__,
        "layers": _digest(_without_addresses(repr(model)).encode()),
        "train": train.fingerprint,
        "validation": validation.fingerprint if validation is not None else None,
        "optimizer": _describe(optimizer),
        "scheduler": type(scheduler).__name__ if scheduler is not None else None,
        "loss": _describe_loss(loss),
        "loss's settings": _loss_settings(loss),
        "score": _name(score),
        "batch_size": batch_size,
        "seed": seed,
        "augment": repr(augment),
        "precision": str(fabric._precision.precision),
    }
    if processes.size > 1:
        settings["processes"] = processes.size
    with (
        exact_float32(precision),
        _trained_on(fabric.device, model, loss, optimizer),
        synchronized_batch_norm(model, processes, fabric.device),
    ):
        model.to(memory_format=torch.channels_last)
        wrapped, fast_optimizer = fabric.setup(model, optimizer)
        history = History()
        best = _copy_weights(model)
        if checkpoint is not None:
            processes.on_main(lambda: remove_leftovers(checkpoint))
        if checkpoint is not None and Path(checkpoint).exists():
            history, best = _load_checkpoint(Path(checkpoint), settings, model, optimizer, scheduler)
            best = _check_history(Path(checkpoint), history, best, model, epochs, keep)
        processes.check_agreement(settings | {"number of finished epochs": len(history)})

        shown = progress and processes.rank == 0
        bar = tqdm(
            total=epochs, initial=len(history), desc=label, disable=not shown, file=sys.stdout, leave=False, ncols=88
        )
        for epoch in range(len(history), epochs):
            start = time.perf_counter()
            torch.manual_seed(_epoch_seed(seed, epoch, processes.rank))  # dropout
            generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))  # order and augmentation
            history.learning_rate.append(optimizer.param_groups[0]["lr"])
            model.train()
            # Sums stay on the device: asking for a number (.item()) after each batch would make a GPU wait.
            total = torch.zeros(2, device=fabric.device)
            order = _order(train, generator)
            for batch in order.split(batch_size):
                share = processes.share(len(batch))
                index = batch[share.part]
                images, targets = prepare_batch(train, index, fabric.device)
                if isinstance(augment, SegmentationAugment):
                    draw = augment.draw(len(batch), generator)[:, share.part]
                    images, targets = augment(images, targets, draw=draw)
                elif augment is not None and processes.size == 1:
                    images = augment(images, generator)
                elif augment is not None:  # drawn for the whole batch, so that each image gets what one process gives
                    images = augment(images, draw=augment.draw(len(batch), generator)[:, share.part])
                images = repeat_channels(images, train.channels).contiguous(memory_format=torch.channels_last)
                fast_optimizer.zero_grad(set_to_none=True)
                outputs = wrapped(images)
                value = loss(outputs, targets)
                fabric.backward(value if share.factor == 1 else value * share.factor)
                fast_optimizer.step()
                final = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
                sums = torch.stack([value.detach() * len(index), score(final.detach(), targets).sum()])
                total += sums / share.copies
            processes.share_buffers(model)
            if scheduler is not None:
                scheduler.step()
            train_loss, train_score = (processes.sum(total) / len(order)).tolist()
            if not math.isfinite(train_loss):
                bar.close()
                raise FloatingPointError(
                    f"the loss became {train_loss} in epoch {epoch + 1}: try a lower learning rate"
                )
            history.train_loss.append(train_loss)
            history.train_score.append(train_score)
            if validation is not None:
                validation_loss, validation_score = _validate(
                    wrapped, validation, loss, score, batch_size, fabric.device, processes
                )
                history.validation_loss.append(validation_loss)
                history.validation_score.append(validation_score)
            earlier = max(history.validation_score[:-1], default=-math.inf)
            if keep == "last" or validation is None or validation_score > earlier:
                history.best_epoch = epoch
                best = _copy_weights(model)
            history.seconds.append(processes.from_main(time.perf_counter() - start))
            if checkpoint is not None:
                write = (Path(checkpoint), settings, model, optimizer, scheduler, history, best)
                processes.on_main(lambda arguments=write: _save_checkpoint(*arguments))
            bar.set_postfix_str(_summary(history), refresh=False)
            bar.update()
        bar.close()
        if shown:
            print(f"{label}: {len(history)} epochs, {sum(history.seconds):.0f} s, {_summary(history)}", flush=True)
        model.load_state_dict(best)
        model.eval()
    return history


@contextlib.contextmanager
def _trained_on(device: torch.device, model: nn.Module, loss: Loss, optimizer: Optimizer) -> Iterator[None]:
    """Model, loss and optimizer on ``device``; afterwards back where the model and the loss were."""
    try:
        with (
            on_device(model, device),
            on_device(loss, device) if isinstance(loss, nn.Module) else contextlib.nullcontext(),
        ):
            _follow(optimizer)
            yield
    finally:
        _follow(optimizer)


def _follow(optimizer: Optimizer) -> None:
    """Bring an optimizer's tensors to the devices of their weights, where those have moved."""
    if any(
        isinstance(value, torch.Tensor) and value.shape == weight.shape and value.device != weight.device
        for weight, state in optimizer.state.items()
        for value in state.values()
    ):
        # Loading knows which numbers belong beside the weights and which stay on the CPU.
        optimizer.load_state_dict(optimizer.state_dict())


@torch.inference_mode()
def _validate(
    model: nn.Module,
    data: Data,
    loss: Loss,
    score: Loss,
    batch_size: int,
    device: torch.device,
    processes: Processes,
) -> tuple[float, float]:
    model.eval()
    total = torch.zeros(2, device=device)
    for batch in torch.arange(len(data)).split(2 * batch_size):
        share = processes.share(len(batch))
        index = batch[share.part]
        images, targets = prepare_batch(data, index, device)
        images = repeat_channels(images, data.channels).contiguous(memory_format=torch.channels_last)
        outputs = model(images)
        total += torch.stack([loss(outputs, targets) * len(index), score(outputs, targets).sum()]) / share.copies
    mean_loss, mean_score = (processes.sum(total) / len(data)).tolist()
    return mean_loss, mean_score


def _to_device(data: Data, index: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch on the device; from pinned memory where that lets the copy overlap with work."""
    images, targets = data.batch(index)
    if device.type == "cuda":
        images, targets = images.pin_memory(), targets.pin_memory()
    return images.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def prepare_batch(data: Data, index: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch on the device: float images and targets, by the data set's own ``prepare`` if it has one."""
    images, targets = _to_device(data, index, device)
    prepare = getattr(data, "prepare", None)
    return (to_input(images), targets) if prepare is None else prepare(images, targets, index)


def _order(data: Data, generator: torch.Generator) -> torch.Tensor:
    """Positions of the items of one epoch."""
    order = getattr(data, "order", None)
    return torch.randperm(len(data), generator=generator) if order is None else order(generator)


def _epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """One 63-bit seed for (seed, epoch, rank); neighbors do not give related streams."""
    parts = [seed, epoch, rank] if rank else [seed, epoch]  # checkpoints of one process go on with their stream
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _summary(history: History) -> str:
    text = f"loss {history.train_loss[-1]:.3f}, train {history.train_score[-1]:.1%}" if len(history) else "no epoch"
    if history.validation_score:
        text += f", validation {history.validation_score[-1]:.1%}"
    return text


def _describe(optimizer: Optimizer) -> str:
    """Class and hyperparameters as made; the learning rate before any scheduler touched it."""
    group = optimizer.param_groups[0]
    values = {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
    return f"{type(optimizer).__name__}({group.get('initial_lr', group['lr'])}, {json.dumps(values, sort_keys=True)})"


def _describe_loss(loss: Loss) -> str:
    """The name of a function; class and settings of a module that shows them, so that no other loss passes for it."""
    if not isinstance(loss, nn.Module):
        return _name(loss)
    shown = " ".join(repr(loss).split())
    return shown.removesuffix("()")


def _loss_settings(loss: Loss) -> str:
    """What the name of a loss does not tell: label smoothing, weights of classes and the like."""
    if isinstance(loss, partial):
        return _without_addresses(repr((loss.func, loss.args, sorted(loss.keywords.items()))))
    if not isinstance(loss, nn.Module):
        return ""
    plain = [
        f"{path}.{name}={value}".lstrip(".")
        for path, module in loss.named_modules()
        for name, value in sorted(vars(module).items())
        if name != "training" and not name.startswith("_") and isinstance(value, (bool, int, float, str))
    ]
    tensors = [
        f"{name}={_digest(tensor.detach().float().cpu().contiguous().numpy().tobytes())}"
        for name, tensor in loss.state_dict().items()
    ]
    return ", ".join(plain + tensors)


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _without_addresses(text: str) -> str:
    """The text without places in memory, which differ from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


# A checkpoint is one safetensors file: tensors under model/, best/ and optimizer/, all the rest as JSON in its header.
# No pickle, so a checkpoint from a stranger can do no harm.


def _save_checkpoint(
    path: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    history: History,
    best: dict[str, torch.Tensor],
) -> None:
    state = optimizer.state_dict()
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{parameter}/{name}"] = value
            else:
                plain.setdefault(str(parameter), {})[name] = value
    header = {
        "settings": settings,
        "history": history.to_dict(),
        "param_groups": state["param_groups"],
        "optimizer": plain,
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
    }
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, on_cpu, {"brainlib": json.dumps(header)})


def _load_checkpoint(
    path: Path, settings: dict[str, Any], model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None
) -> tuple[History, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as stored:
            header = json.loads((stored.metadata() or {})["brainlib"])
            # Copies: a tensor that is a view of the file would stand in the way of replacing it.
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}
        history = History(**header["history"])
        found = {"processes": 1, **header["settings"], **_chosen(header["scheduler"])}
        state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in header["optimizer"].items()}
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{path} is not a checkpoint of brainlib, or it is damaged ({error}): {ADVICE}") from error
    schedule = scheduler.state_dict() if scheduler is not None else None
    wanted = {"processes": 1, **settings, **_chosen(schedule)}
    known = {k: v for k, v in wanted.items() if k in found or k not in LATER_SETTINGS}
    # Schedules by a plain function left no settings; those of the course are objects by now.
    old = [k for k, v in found.items() if k == "scheduler's lr_lambdas" and not any(v)]
    different = [k for k in known if k not in old and found.get(k) != wanted[k]]
    if different:
        changes = ", ".join(f"{k} was {found.get(k)}, now {wanted[k]}" for k in different)
        raise DataError(f"{path} belongs to another run ({changes}): {ADVICE}")
    try:
        model.load_state_dict(_part(tensors, "model/"))
    except RuntimeError as error:
        raise DataError(f"{path} belongs to a model with other layers ({error}): {ADVICE}") from error
    for name, tensor in _part(tensors, "optimizer/").items():
        parameter, key = name.split("/", 1)
        state.setdefault(int(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": header["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # A fused optimizer on the CPU takes for granted that moments lie in memory as their weights do.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if scheduler is not None:
        # What was chosen stays as it was made: JSON has turned tuples into lists, and numbered keys into text.
        scheduler.load_state_dict(header["scheduler"] | {k: schedule[k] for k in schedule if not _moves(k)})
    return history, _part(tensors, "best/")


def _moves(name: str) -> bool:
    """Whether an entry of a scheduler's state changes as it steps; the others are its settings."""
    return name.startswith("_") or name in ("last_epoch", "T_cur", "T_i")


def _chosen(schedule: dict[str, Any] | None) -> dict[str, Any]:
    """A scheduler's settings as a checkpoint has them, under names for a message."""
    return {f"scheduler's {k}": v for k, v in json.loads(json.dumps(schedule or {})).items() if not _moves(k)}


def _check_history(
    path: Path, history: History, best: dict[str, torch.Tensor], model: nn.Module, epochs: int, keep: str
) -> dict[str, torch.Tensor]:
    """Refuse a checkpoint with too many epochs or the wrong best one; the weights to keep, changed with ``keep``."""
    if len(history) > epochs:
        raise DataError(f"{path} holds {len(history)} epochs, more than the {epochs} asked for: {ADVICE}")
    if keep == "last" or not history.validation_score:
        history.best_epoch = len(history) - 1
        return _copy_weights(model)
    if history.best_epoch != history.validation_score.index(max(history.validation_score)):
        raise DataError(f"{path} kept the last epoch, and the best one is gone (keep='best' was asked for): {ADVICE}")
    return best


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
