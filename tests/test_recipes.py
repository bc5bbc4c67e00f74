"""Recipes are what they say: schedules in closed form, settings that a record can hold, models that train."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brainlib.data import Augment, DataError
from brainlib.models import list_models
from brainlib.recipes import RECIPES, Recipe, get_recipe


def rates(recipe: Recipe, epochs: int | None = None) -> list[float]:
    """The learning rate of each epoch, as `fit` steps it; one more than there are."""
    optimizer = recipe.make_optimizer(nn.Linear(2, 2))
    scheduler = recipe.make_scheduler(optimizer, epochs)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(epochs or recipe.epochs):
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_every_classifier_has_a_recipe():
    assert sorted(RECIPES) == [name for name in list_models() if not name.endswith("_unet")]
    assert all(get_recipe(name) is recipe and recipe.model == name for name, recipe in RECIPES.items())


def test_unknown_recipe_names_the_known_ones():
    with pytest.raises(DataError, match="no recipe for 'lenet'.*custom_cnn, alexnet.*compact_transformer"):
        get_recipe("lenet")


@pytest.mark.parametrize(
    ("name", "epochs", "decay", "schedule", "augmented"),
    [
        ("custom_cnn", 40, 1e-5, "steps", True),
        ("alexnet", 50, 1e-5, "steps", False),
        ("vgg16", 50, 0, "constant", False),
        ("vit", 50, 1e-5, "steps", True),
    ],
)
def test_how_the_study_trained(name, epochs, decay, schedule, augmented):
    recipe = get_recipe(name)
    assert recipe.source == "study" and recipe.epochs == epochs and recipe.batch_size == 64
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("Adam", 1e-4, decay)
    assert (recipe.schedule, recipe.step, recipe.label_smoothing, recipe.arguments) == (schedule, 10, 0, {})
    # Flip one half, rotation 10 degrees, jitter 0.2, and nothing else.
    same = Augment(flip=0.5, rotation=10, brightness=0.2, contrast=0.2)
    assert recipe.augment == (same if augmented else None)


@pytest.mark.parametrize("name", RECIPES)
def test_optimizer_and_loss_are_those_of_the_recipe(name):
    recipe = get_recipe(name)
    model = nn.Linear(3, 2)
    optimizer = recipe.make_optimizer(model)
    assert type(optimizer).__name__ == recipe.optimizer
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (recipe.learning_rate, recipe.weight_decay)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]]), torch.tensor([0, 2])
    share = recipe.label_smoothing
    truth = (1 - share) * F.one_hot(labels, 3) + share / 3
    expected = -(truth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(recipe.make_loss()(logits, labels), expected)


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 20, 50])
def test_constant_schedule(epochs):
    assert rates(get_recipe("vgg16"), epochs) == [1e-4] * (epochs + 1)


@pytest.mark.parametrize(
    ("name", "epochs", "step"),
    [
        ("custom_cnn", None, 10),
        ("alexnet", None, 10),
        ("mlp", None, 10),
        ("custom_cnn", 20, 5),  # half as long, twice as fast
        ("alexnet", 20, 4),
        ("alexnet", 100, 20),
        ("alexnet", 3, 1),  # never 0
    ],
)
def test_steps_in_closed_form(name, epochs, step):
    recipe = get_recipe(name)
    expected = [recipe.learning_rate * 0.5 ** (e // step) for e in range((epochs or recipe.epochs) + 1)]
    assert rates(recipe, epochs) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["custom_cnn", "alexnet", "vit"])
def test_a_compressed_schedule_ends_where_the_whole_one_does(name):
    recipe = get_recipe(name)
    assert rates(recipe, 20)[19] == pytest.approx(rates(recipe)[recipe.epochs - 1])


@pytest.mark.parametrize("epochs", [None, 40, 5])
def test_warm_cosine_start_peak_and_end(epochs):
    recipe = get_recipe("compact_transformer")
    found = rates(recipe, epochs)
    peak, length = recipe.learning_rate, epochs or recipe.epochs
    assert found[:3] == pytest.approx([peak / 3, 2 * peak / 3, peak])
    assert max(found) == found[2] and all(a > b for a, b in zip(found[2:], found[3:], strict=False))
    assert found[length] == pytest.approx(0, abs=1e-12) and found[length - 1] > 0
    half = 2 + (length - 2) / 2
    if half == int(half):
        assert found[int(half)] == pytest.approx(peak / 2)
    expected = [peak * math.cos(math.pi / 2 * (e - 2) / (length - 2)) ** 2 for e in range(2, length + 1)]
    assert found[2:] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("epochs", "expected"), [(1, [1]), (2, [0.5, 1]), (3, [1 / 3, 2 / 3, 1])])
def test_warm_cosine_of_few_epochs(epochs, expected):
    recipe = get_recipe("compact_transformer")
    assert rates(recipe, epochs)[:-1] == pytest.approx([recipe.learning_rate * share for share in expected])


# Records and models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_into_json_and_says_all(name):
    recipe = get_recipe(name)
    stored = json.loads(json.dumps(recipe.to_dict()))
    assert set(stored) == set(recipe.__dataclass_fields__)
    augment = stored.pop("augment")
    assert augment == (None if recipe.augment is None else repr(recipe.augment))
    assert Recipe(**stored, augment=recipe.augment) == recipe


def test_arguments_reach_the_model():
    recipe = replace(get_recipe("mlp"), arguments={"image_size": 16, "widths": [8], "num_classes": 3})
    assert recipe.make_model()(torch.rand(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_a_step(name):
    recipe = get_recipe(name)
    torch.manual_seed(0)
    model = replace(recipe, arguments={"depth": 1} if name == "vit" else {}).make_model()
    model.train()
    optimizer = recipe.make_optimizer(model)
    scheduler = recipe.make_scheduler(optimizer)
    generator = torch.Generator().manual_seed(0)
    count = 1 if name == "vgg16" else 4  # its step is the slowest
    images, labels = torch.rand(count, 3, 128, 128, generator=generator), torch.arange(count)
    if recipe.augment is not None:
        images = recipe.augment(images, generator)
    before = [p.detach().clone() for p in model.parameters()]
    loss = recipe.make_loss()(model(images), labels)
    loss.backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    assert loss.isfinite() and all(p.isfinite().all() for p in model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
