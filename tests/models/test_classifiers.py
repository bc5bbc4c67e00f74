"""All classifiers of Part II: what holds for each, and AlexNet, VGG-16 and the baselines layer by layer.

The transformers have more to test, in `test_transformers`; the study's own CNN has `test_custom_cnn`.
"""

import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from waves import golden_image, wave_weights

from brainlib.models import (
    MLP,
    VGG16,
    AlexNet,
    CompactTransformer,
    LinearClassifier,
    VisionTransformer,
    count_multiply_adds,
    count_parameters,
    create_model,
    list_models,
)

NAMES = {
    "alexnet": AlexNet,
    "compact_transformer": CompactTransformer,
    "linear": LinearClassifier,
    "mlp": MLP,
    "vgg16": VGG16,
    "vit": VisionTransformer,
}
every_model = pytest.mark.parametrize("name", NAMES)
ALEXNET = [(3, 96, 9, 4, 0), (96, 256, 5, 1, 0), (256, 384, 3, 1, 1), (384, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
VGG = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]


@cache
def made(name: str) -> nn.Module:
    """One model of each kind with wave weights, in evaluation mode; tests leave it as it is."""
    if name in ("vgg16", "vit"):  # time is too dear for random weights that are thrown away
        return wave_weights(on_meta(NAMES[name]).to_empty(device="cpu")).eval()
    return wave_weights(create_model(name)).eval()


def on_meta(kind: type[nn.Module], **arguments) -> nn.Module:
    """A model that has shapes and no numbers, which is made at once."""
    with torch.device("meta"):
        return kind(**arguments)


# All of them ----------------------------------------------------------------------------------------------------------


@every_model
def test_registry_makes_each(name):
    assert name in list_models() and type(made(name)) is NAMES[name]
    with pytest.raises(TypeError):
        create_model(name, no_such_argument=3)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("custom_cnn", 3_001_156, 140e6),
        ("alexnet", 4_589_316, 174e6),
        ("vgg16", 65_070_916, 5.06e9),
        ("vit", 21_459_460, 1.43e9),
        ("linear", 65_540, 65_536),
        ("mlp", 2_105_796, 128**2 * 128 + 128 * 64 + 64 * 4),
    ],
)
def test_parameters_and_multiply_adds(name, parameters, multiply_adds):
    model = create_model(name) if name == "custom_cnn" else made(name)
    assert count_parameters(model) == parameters
    assert count_multiply_adds(model) == pytest.approx(multiply_adds, rel=0.01)


def test_counting_multiply_adds_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 36, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    work = 36 * 5 * 27 + 5 * 36 * 2
    assert count_multiply_adds(model, (1, 3, 8, 8)) == work
    assert count_multiply_adds(model, (7, 3, 8, 8)) == 7 * work
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert count_multiply_adds(model.eval(), (1, 3, 8, 8)) == work and not model.training


@every_model
def test_a_batch_is_its_images(name):
    """One image's logits do not depend on the others of its batch."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 128, 128)
    with torch.inference_mode():
        both = made(name)(x)
        assert both.shape == (2, 4) and both.dtype == torch.float32
        torch.testing.assert_close(both[1:], made(name)(x[1:]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-4)


WRONG = [(name, shape) for name in NAMES for shape in ((2, 3, 127, 128), (3, 128, 128), (2, 3, 224, 224))]
WRONG += [(name, (2, 1, 128, 128)) for name in NAMES if name not in ("linear", "mlp")]


@pytest.mark.parametrize(("name", "shape"), WRONG)
def test_wrong_shape_is_named(name, shape):
    with pytest.raises(ValueError, match=r"\(B, [3C], 128, 128\)") as caught:
        made(name)(torch.rand(shape))
    assert str(shape) in str(caught.value) and type(made(name)).__name__ in str(caught.value)


@every_model
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    names, parameters = zip(*made(name).named_parameters(), strict=True)
    loss = F.cross_entropy(made(name)(torch.rand(1, 3, 128, 128)), torch.tensor([3]))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    without = [name for name, g in zip(names, gradients, strict=True) if g is None or not g.abs().sum() > 0]
    # The same number added to every token's score drops out of the softmax: the gradient of that bias is rounding.
    assert [name for name in without if name != "pool.bias"] == []


@pytest.mark.parametrize(
    ("name", "count"), [("alexnet", 8), ("vgg16", 15), ("mlp", 2), ("vit", 10), ("compact_transformer", None)]
)
def test_activations_are_made_for_each_place_and_not_shared(name, count):
    class Marked(nn.SiLU):
        pass

    model = create_model(name, activation=Marked) if name != "vgg16" else on_meta(VGG16, activation=Marked)
    found = [module for module in model.modules() if isinstance(module, Marked)]
    if name == "compact_transformer":  # after each convolution, of which a norm is the sign, and in each layer
        count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) + len(model.layers)
    assert len(found) == count  # modules() would name a shared one once
    assert not any(isinstance(module, nn.ReLU | nn.GELU) for module in model.modules())


@pytest.mark.parametrize(("name", "places"), [("vgg16", 2), ("mlp", 2)])
def test_dropout_only_in_training(name, places):
    torch.manual_seed(0)
    model = on_meta(NAMES[name], dropout=0.1)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.1] * places
    model = create_model("mlp", image_size=16)
    x = torch.rand(1, 3, 16, 16)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("name", ["alexnet", "linear"])
def test_no_dropout_and_no_normalization(name):
    kinds = (nn.Dropout, nn.LocalResponseNorm, nn.BatchNorm2d, nn.LayerNorm)
    assert not any(isinstance(module, kinds) for module in made(name).modules())


@every_model
def test_number_of_classes(name):
    three = create_model(name, num_classes=3) if name != "vgg16" else on_meta(VGG16, num_classes=3)
    assert three(torch.rand(2, 3, 128, 128, device=next(three.parameters()).device)).shape == (2, 3)
    last = {"vgg16": 4096, "alexnet": 128, "linear": 128**2, "mlp": 64, "vit": 512}
    last["compact_transformer"] = made("compact_transformer").position.shape[-1]  # the length of a token
    assert count_parameters(made(name)) - count_parameters(three) == last[name] + 1


# AlexNet and VGG-16 ---------------------------------------------------------------------------------------------------


def shapes_of(model: nn.Module, kinds: tuple[type, ...]) -> list[tuple[int, ...]]:
    """What leaves each module of these kinds, without the batch."""
    shapes = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    with torch.inference_mode():
        model(torch.rand(1, 3, 128, 128))
    for hook in hooks:
        hook.remove()
    return shapes


def test_alexnet_stage_by_stage():
    model = made("alexnet")
    assert shapes_of(model, (nn.Conv2d, nn.MaxPool2d, nn.Linear)) == [
        *[(96, 30, 30), (96, 15, 15), (256, 11, 11), (256, 5, 5)],
        *[(384, 5, 5), (384, 5, 5), (256, 5, 5), (256, 2, 2)],
        *[(512,), (512,), (128,), (4,)],
    ]
    assert shapes_of(model, (type(model.stage1),)) == [(96, 15, 15), (256, 5, 5), (256, 2, 2), (4,)]
    assert count_parameters(model.head) == 1024 * 512 + 512 + 512 * 512 + 512 + 512 * 128 + 128 + 128 * 4 + 4


def test_vgg16_stage_by_stage():
    model = made("vgg16")
    sides = (128, 64, 32, 16, 8)
    expected = []
    for (width, depth), side in zip(VGG, sides, strict=True):
        expected += [(width, side, side)] * depth + [(width, side // 2, side // 2)]
    expected += [(4096,), (4096,), (4,)]
    assert shapes_of(model, (nn.Conv2d, nn.MaxPool2d, nn.Linear)) == expected
    counts = [count_parameters(module) for module in model.head if isinstance(module, nn.Linear)]
    assert counts == [8192 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 4 + 4]
    # The convolutions are those of configuration D; as published, with 7x7 places and 1000 classes: 138 million.
    assert count_parameters(model) - sum(counts) == 14_714_688
    assert 14_714_688 + (25088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000 == 138_357_544


def convolutions_of(name: str) -> list[tuple[int, int, int, int, int]]:
    """Inputs, outputs, kernel, stride and padding of each convolution."""
    if name == "alexnet":
        return ALEXNET
    widths = [width for width, depth in VGG for _ in range(depth)]
    return [(inputs, outputs, 3, 1, 1) for inputs, outputs in zip([3, *widths], widths, strict=False)]


HEADS = {"alexnet": [1024, 512, 512, 128, 4], "vgg16": [8192, 4096, 4096, 4]}
POOLED = {"alexnet": [0, 1, 4], "vgg16": [1, 3, 6, 9, 12]}  # convolutions that MaxPool follows


@pytest.mark.parametrize("name", HEADS)
def test_parameters_come_in_the_order_of_the_layers(name):
    expected = []
    for inputs, outputs, kernel, _, _ in convolutions_of(name):
        expected += [(outputs, inputs, kernel, kernel), (outputs,)]
    for inputs, outputs in zip(HEADS[name], HEADS[name][1:], strict=False):
        expected += [(outputs, inputs), (outputs,)]
    assert [tuple(p.shape) for p in made(name).parameters()] == expected


def convolutional(name: str, weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """AlexNet or VGG-16 without modules; weights are taken in the order of the layers."""
    weights = iter(weights)
    for i, (_, _, _, stride, padding) in enumerate(convolutions_of(name)):
        x = F.conv2d(x, next(weights), next(weights), stride, padding).clamp(min=0)
        if i in POOLED[name]:
            x = F.max_pool2d(x, 2)
    x = x.flatten(1)
    for i in range(1, len(HEADS[name])):
        x = x @ next(weights).T + next(weights)
        x = x.clamp(min=0) if i < len(HEADS[name]) - 1 else x
    assert next(weights, None) is None
    return x


GOLDEN = {  # computed in float64, by the functions of this file and not by the models
    "linear": [0.191946, -0.166605, 0.037593, 0.103034],
    "mlp": [1.182374, 1.136341, 0.890469, 0.979947],
    "alexnet": [-0.241105, -0.701583, -0.319208, 0.926572],
    "vgg16": [-0.021309, -0.180612, 0.251937, -0.149463],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_output(name):
    with torch.inference_mode():
        found = made(name)(golden_image().float())[0]
    torch.testing.assert_close(found, torch.tensor(GOLDEN[name]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_agrees_with_the_same_network_written_as_functions(name):
    torch.manual_seed(0)
    model = made(name)
    x = torch.rand(1, 3, 128, 128)  # noise, which the golden image has none of
    with torch.inference_mode():
        torch.testing.assert_close(model(x), convolutional(name, list(model.parameters()), x), atol=1e-4, rtol=1e-4)


# The baselines --------------------------------------------------------------------------------------------------------


def test_linear_classifier_by_hand():
    torch.manual_seed(0)
    model, x = LinearClassifier(num_classes=3, image_size=8), torch.rand(2, 3, 8, 8)
    picture = model.linear.weight.view(3, 8, 8)  # one for each class
    expected = torch.stack([(x.mean(1) * picture[c]).sum((1, 2)) for c in range(3)], 1) + model.linear.bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("model", [LinearClassifier(image_size=16), MLP(image_size=16, dropout=0)])
def test_baselines_average_the_channels(model):
    gray = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(model(gray), model(gray.expand(-1, 3, -1, -1)))
    rgb = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(rgb), model(rgb.mean(1, keepdim=True)))


def test_mlp_by_hand():
    weights = list(made("mlp").parameters())
    torch.manual_seed(0)
    x = torch.rand(1, 3, 128, 128)
    hidden = (x.mean(1).flatten(1) @ weights[0].T + weights[1]).relu()
    hidden = (hidden @ weights[2].T + weights[3]).relu()
    torch.testing.assert_close(made("mlp")(x), hidden @ weights[4].T + weights[5], atol=1e-5, rtol=1e-5)


def test_mlp_learns_as_well_when_all_pixels_are_moved():
    """What its docstring says: in the same way for all images, and it does not matter at all."""
    torch.manual_seed(0)
    images, labels = torch.rand(16, 1, 8, 8, dtype=torch.float64), torch.arange(16) % 4
    order = torch.randperm(64)
    moved = images.flatten(2)[:, :, order].view_as(images)
    plain, other = (MLP(image_size=8, widths=(16, 8), dropout=0).double() for _ in range(2))
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        other.layers[0].weight.copy_(plain.layers[0].weight[:, order])  # the draw is as likely as the other
    losses = []
    for model, x in ((plain, images), (other, moved)):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] < 0.8 * math.log(4)


def test_widths_of_the_mlp():
    assert count_parameters(MLP(num_classes=3, image_size=8, widths=(5,))) == 65 * 5 + 6 * 3
    assert count_parameters(MLP(num_classes=3, image_size=8, widths=())) == 65 * 3  # a linear classifier
