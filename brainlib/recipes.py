"""How each classifier is trained: the study's settings for its four, the course's for the baselines and its own."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from brainlib.data.augment import Augment
from brainlib.files import DataError
from brainlib.models import create_model


class BaseRecipe:
    """What the recipes of classifiers and of segmenters share: dataclasses that hold what these methods name."""

    model: str
    learning_rate: float
    weight_decay: float
    optimizer: str
    augment: Any
    arguments: dict[str, Any]

    def make_model(self) -> nn.Module:
        """A model with fresh random weights; seed first."""
        return create_model(self.model, **self.arguments)

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer over the model's parameters, fused: one kernel for all weights."""
        kind = {"Adam": Adam, "AdamW": AdamW}[self.optimizer]
        return kind(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields for a record: as JSON can hold them, if the model's ``arguments`` are plain values."""
        return asdict(self) | {"augment": None if self.augment is None else repr(self.augment)}

    def mark(self, usual: BaseRecipe | None) -> str:
        """A dash and eight digits that tell this recipe from the course's, ``usual``; nothing where they are equal."""
        if self == usual:
            return ""
        return "-" + hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, default=repr).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """Everything that is chosen before a training starts, except the data and the seed.

    Attributes:
        model: a name of `brainlib.models.list_models`.
        source: ``"study"`` or ``"course"``: whose choice this is.
        epochs: passes over the training data.
        learning_rate, weight_decay: of the optimizer; AdamW decays weights apart from the gradient (Loshchilov and
            Hutter 2019, arXiv 1711.05101).
        schedule: ``"constant"``; ``"steps"``, halved every ``step`` epochs; or ``"cosine"``, two epochs of warm-up and
            half a cosine down to 0.
        augment: on the training device, None for none.
        label_smoothing: share of the truth that is spread evenly over all classes (Szegedy et al. 2016).
        arguments: of the model.
    """

    model: str
    source: str
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    optimizer: str = "Adam"
    schedule: str = "constant"
    step: int = 10
    augment: Augment | None = None
    label_smoothing: float = 0.0
    batch_size: int = 64
    arguments: dict[str, Any] = field(default_factory=dict)

    def make_loss(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Cross entropy of logits ``(B, C)`` and labels ``(B,)``."""
        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing) if self.label_smoothing else F.cross_entropy

    def make_scheduler(self, optimizer: Optimizer, epochs: int | None = None) -> LRScheduler | None:
        """The schedule, compressed or stretched alike when ``epochs`` is not the recipe's."""
        epochs = epochs or self.epochs
        if self.schedule == "steps":
            return StepLR(optimizer, max(1, round(self.step * epochs / self.epochs)), gamma=0.5)
        if self.schedule == "cosine":
            return LambdaLR(optimizer, WarmCosine(epochs))
        return None


def warm_cosine(epoch: int, epochs: int, warm: int = 2) -> float:
    """Share of the learning rate in ``epoch``: up in equal steps, then down along half a cosine."""
    warm = min(warm, epochs - 1)
    if epoch < warm:
        return (epoch + 1) / (warm + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (epoch - warm) / (epochs - warm))


@dataclass
class WarmCosine:
    """`warm_cosine` with its horizon, for `LambdaLR`: unlike a function it stands in the scheduler's state.

    So a checkpoint knows how many epochs its schedule was made for.
    """

    epochs: int
    warm: int = 2

    def __call__(self, epoch: int) -> float:
        return warm_cosine(epoch, self.epochs, self.warm)


STRONG = Augment(rotation=20, brightness=0.3, contrast=0.3, zoom=0.15, shift=0.06)

RECIPES: dict[str, Recipe] = {
    recipe.model: recipe
    for recipe in (
        # The study's, in the order of its tables.
        Recipe("custom_cnn", "study", 40, 1e-4, 1e-5, schedule="steps", augment=Augment()),
        Recipe("alexnet", "study", 50, 1e-4, 1e-5, schedule="steps"),
        Recipe("vgg16", "study", 50, 1e-4),
        Recipe("vit", "study", 50, 1e-4, 1e-5, schedule="steps", augment=Augment()),
        # The course's.
        Recipe("linear", "course", 20, 1e-3),
        Recipe("mlp", "course", 30, 3e-4, 1e-5, schedule="steps"),
        Recipe(
            "compact_transformer",
            "course",
            50,
            1e-3,
            0.05,
            optimizer="AdamW",
            schedule="cosine",
            augment=STRONG,
            label_smoothing=0.1,
        ),
    )
}


def get_recipe(model: str) -> Recipe:
    """The recipe of a model.

    Raises:
        DataError: no recipe has that name; the message lists those that exist.
    """
    if model not in RECIPES:
        raise DataError(f"there is no recipe for {model!r}; there are recipes for: {', '.join(RECIPES)}")
    return RECIPES[model]
