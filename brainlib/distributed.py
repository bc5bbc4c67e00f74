"""Several processes that train one model: which of them this is, its share of a batch, and what all must agree on.

torchrun or srun starts the processes, never this library. One process is the case without any of this.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from brainlib.files import DataError

T = TypeVar("T")


def is_main_process() -> bool:
    """True in the first of several processes, and where there is only one: what a run writes, this one writes."""
    return Processes.current().rank == 0


@dataclass(frozen=True)
class Share:
    """What one process computes of a batch.

    Attributes:
        part: its items, as a slice of the batch.
        copies: how many processes compute these items: 1, or all where a batch has fewer items than processes.
        factor: of the mean loss over ``part``, so that the mean of the gradients of all processes is the gradient of
            the mean loss over the batch.
    """

    part: slice
    copies: int
    factor: float


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        nodes: on how many machines.
        launcher: ``"torchrun"``, ``"srun"`` or None.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1
    launcher: str | None = None

    @classmethod
    def current(cls) -> Processes:
        """Read from the environment what torchrun or srun has started; one process where neither started several.

        A shell on a compute node (job name ``bash`` or ``interactive``) is one process, whatever srun was asked for.
        """
        get = os.environ.get
        if "TORCHELASTIC_RUN_ID" in os.environ:
            size = int(os.environ["WORLD_SIZE"])
            found = cls(int(os.environ["RANK"]), size, size // int(get("LOCAL_WORLD_SIZE", size)), "torchrun")
        elif "SLURM_STEP_NUM_TASKS" in os.environ and get("SLURM_JOB_NAME") not in ("bash", "interactive"):
            nodes = int(get("SLURM_STEP_NUM_NODES", 1))
            found = cls(int(get("SLURM_PROCID", 0)), int(os.environ["SLURM_STEP_NUM_TASKS"]), nodes, "srun")
        else:
            found = cls()
        return found if found.size > 1 else cls()

    def fabric(self, precision: str) -> Fabric:
        """Lightning Fabric on the device of this process, joined with the others by DistributedDataParallel.

        The device is a GPU of CUDA, or the CPU. One process alone takes the current GPU (`torch.cuda.set_device`),
        which under DistributedDataParallel is the one that it trains on.

        Raises:
            DataError: srun has started the processes in a way that Lightning Fabric does not take.
        """
        cuda = torch.cuda.is_available()
        # Named, since Fabric's own choice would be Apple's GPU where there is one, which knows no float64.
        options: dict[str, Any] = {"accelerator": "cuda" if cuda else "cpu", "precision": precision}
        if self.size == 1:
            # Named, so that Fabric does not look for several processes in the variables of a cluster.
            environment = LightningEnvironment()
            return Fabric(devices=[torch.cuda.current_device()] if cuda else 1, plugins=[environment], **options)
        devices, environment = self.size // self.nodes, TorchElasticEnvironment()
        if self.launcher == "srun":
            alone = cuda and torch.cuda.device_count() == 1
            environment = _slurm_environment(alone)
            devices = 1 if alone else devices
        fabric = Fabric(strategy="ddp", devices=devices, num_nodes=self.nodes, plugins=[environment], **options)
        fabric.launch()  # joins the processes that are there; it starts none
        return fabric

    def share(self, items: int) -> Share:
        """The share of this process in a batch of ``items``: every ``size``-th one, or all of a very small batch."""
        if items < self.size:  # a process without an item would have no gradient to send
            return Share(slice(None), self.size, 1.0)
        part = slice(self.rank, None, self.size)
        return Share(part, 1, len(range(items)[part]) * self.size / items)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def from_main(self, value: T) -> T:
        """The value that the first process has."""
        if self.size == 1:
            return value
        holder = [value]
        torch.distributed.broadcast_object_list(holder, 0)
        return holder[0]

    def on_main(self, action: Callable[[], Any]) -> None:
        """Let the first process do something while the others wait; its `DataError` is raised in all of them."""
        error = None
        if self.rank == 0:
            try:
                action()
            except DataError as caught:
                error = caught
        message = self.from_main(str(error) if error else None)
        if message is not None:
            raise error or DataError(message)

    def check_agreement(self, settings: Mapping[str, Any]) -> None:
        """Refuse to go on when ``settings`` are not the same in all processes.

        Raises:
            DataError: in every process; it names the settings that differ.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, dict(settings))
        for rank, other in enumerate(found):
            different = [
                f"{name} is {found[0][name]} and {other[name]}" for name in other if other[name] != found[0][name]
            ]
            if different:
                raise DataError(
                    f"processes 0 and {rank} cannot train together ({', '.join(different)}): give all of them the same "
                    "arguments and software, and a BRAINLIB_DATA on a disk that all machines share"
                )

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of the first; those of BatchNorm may differ, since each took its own share."""
        if self.size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)


class _OneDeviceEach(SLURMEnvironment):
    """A cluster where each process sees a single GPU, its own: it has number 0 in all of them."""

    def local_rank(self) -> int:
        return 0


def _slurm_environment(alone: bool) -> SLURMEnvironment:
    """What srun has started, for Fabric; ``alone`` where each process sees one GPU, as with --gpus-per-task=1."""
    try:
        return _OneDeviceEach() if alone else SLURMEnvironment()
    except RuntimeError as error:
        raise DataError(
            "srun was given --ntasks (-n) alone: say with --ntasks-per-node (and --nodes) how many processes each "
            "machine runs"
        ) from error


@contextlib.contextmanager
def synchronized_batch_norm(model: nn.Module, processes: Processes, device: torch.device) -> Iterator[None]:
    """Let the BatchNorm layers of ``model`` normalize with the batches of all processes for a while.

    They are exchanged for SyncBatchNorm, which has the same weights, and put back at the end. SyncBatchNorm exists on
    CUDA only; elsewhere this changes nothing.
    """
    if processes.size == 1 or device.type != "cuda":
        yield
        return
    model.to(device)  # before the exchange, since a move replaces the buffers that both kinds of layers hold
    exchanged = exchange_batch_norm(model)
    try:
        yield
    finally:
        put_back(exchanged)


def exchange_batch_norm(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Exchange BatchNorm layers for SyncBatchNorm in place; returns (parent, name, layer that was there)."""
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    found = [place for place in children if isinstance(place[2], _BatchNorm)]
    for parent, name, child in found:
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
    return found


def put_back(exchanged: list[tuple[nn.Module, str, nn.Module]]) -> None:
    """Undo `exchange_batch_norm`; weights and statistics need no copying, both kinds of layers hold the same."""
    for parent, name, layer in exchanged:
        layer.train(getattr(parent, name).training)
        setattr(parent, name, layer)
