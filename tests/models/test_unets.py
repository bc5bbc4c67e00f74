"""The three U-Nets are the study's to the last weight, compared with the same networks written as plain functions."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brainlib.losses import BCE
from brainlib.models.attention_unet import AttentionUNet
from brainlib.models.blocks import AttentionGate, Decoder, SeparableBlock, concatenate, upsample
from brainlib.models.classic_unet import ClassicUNet
from brainlib.models.compact_unet import CompactUNet
from brainlib.models.improved_unet import ImprovedUNet

MODELS = [ClassicUNet, ImprovedUNet, AttentionUNet]
FILTERS = (2, 4, 8, 16, 32, 64)
COUNTS = {
    ClassicUNet: (21_691, 86_291, 344_227, 1_375_043, 5_496_451, 21_978_371),
    ImprovedUNet: (18_869, 60_727, 214_043, 799_075, 3_082_739, 12_104_467),
    AttentionUNet: (19_643, 63_631, 225_287, 843_319, 3_258_263, 12_803_671),
}
MULTIPLY_ADDS = {ClassicUNet: 9.10e9, ImprovedUNet: 6.34e9, AttentionUNet: 6.46e9}
PARTS = [*(f"encoder{i}" for i in (1, 2, 3, 4)), "bottleneck", *(f"decoder{i}" for i in (4, 3, 2, 1)), "output"]
every_model = pytest.mark.parametrize("model_class", MODELS)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def sine_weights(model: nn.Module) -> nn.Module:
    """Weights that follow from their position alone, of the size that keeps a signal alive through the layers."""
    position = 0
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            wave = torch.from_numpy(np.sin(0.7 * np.arange(position, position + tensor.numel()) ** 1.1))
            position += tensor.numel()
            spread = 2.5 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.2
            is_scale = name.endswith(("running_var", ".1.weight")) and tensor.ndim == 1
            tensor.copy_((spread * wave).view_as(tensor) + is_scale)
    return model


def picture(channels: int, height: int, width: int) -> torch.Tensor:
    """Smooth, different in each channel, not symmetric; float64 ``(2, channels, height, width)``."""
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)[None]
    first = [0.5 + 0.5 * torch.sin(y / (3 + c)) * torch.cos(x / (5 + c)) for c in range(channels)]
    second = [torch.sin(x * y / (50 + c)) ** 2 for c in range(channels)]
    return torch.stack([torch.stack(first), torch.stack(second)])


# The same networks once more: no modules, weights taken one after the other in the order of `named_parameters()`.


def stretch(x: torch.Tensor) -> torch.Tensor:
    """Double height and width by linear interpolation with the corners kept, as a product with a matrix."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(2 * size, dtype=x.dtype) * (size - 1) / (2 * size - 1)
        matrix = (1 - (place[:, None] - torch.arange(size, dtype=x.dtype)).abs()).clamp(min=0)
        x = torch.tensordot(x, matrix, ([axis], [1])).movedim(-1, axis)
    return x


def classic_block(x, take):
    for _ in range(2):
        weight, bias = take(2)
        x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
    return x


def improved_block(x, take):
    for _ in range(2):
        depthwise, bias, gain, shift, expand, expand_bias, project, project_bias = take(8)
        x = F.conv2d(x, depthwise, bias, padding=3, groups=x.shape[1])
        mean, variance = take.statistics()
        x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt() * gain.view(-1, 1, 1)
        x = torch.einsum("oc,bchw->bohw", expand[:, :, 0, 0], x + shift.view(-1, 1, 1)) + expand_bias.view(-1, 1, 1)
        x = torch.einsum("oc,bchw->bohw", project[:, :, 0, 0], x.clamp(min=0)) + project_bias.view(-1, 1, 1)
    return x


def gate(below, skip, take):
    query, query_bias, key, key_bias, score, score_bias = take(6)
    q = torch.einsum("oc,bchw->bohw", query[:, :, 0, 0], below) + query_bias.view(-1, 1, 1)
    k = torch.einsum("oc,bchw->bohw", key[:, :, 0, 0], skip[:, :, ::2, ::2]) + key_bias.view(-1, 1, 1)
    s = torch.einsum("oc,bchw->bohw", score[:, :, 0, 0], (q + k).clamp(min=0)) + score_bias.view(-1, 1, 1)
    attention = 1 / (1 + torch.exp(-s))
    return skip * stretch(attention), attention


class Take:
    """Hands out tensors one after the other."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = list(model.parameters())
        self.buffers = iter([b for b in model.buffers() if b.is_floating_point()])
        self.position = 0

    def __call__(self, number: int) -> list[torch.Tensor]:
        self.position += number
        return self.tensors[self.position - number : self.position]

    def statistics(self) -> list[torch.Tensor]:
        return list(itertools.islice(self.buffers, 2))


def as_functions(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    take = Take(model)
    block = classic_block if type(model) is ClassicUNet else improved_block
    gates, maps = [], []
    if type(model) is AttentionUNet:  # they are defined last, gate 1 first, and used from gate 4 on
        late = Take(model)
        late.position = len(late.tensors) - 24
        gates = [late(6) for _ in range(4)]
    skips = [block(x, take)]
    for _ in range(3):
        skips.append(block(F.max_pool2d(skips[-1], 2), take))
    x = block(F.max_pool2d(skips[-1], 2), take)
    for level in (3, 2, 1, 0):
        skip = skips[level]
        if gates:
            skip, attention = gate(x, skip, lambda _, level=level: gates[level])
            maps.insert(0, attention)
        x = stretch(x)
        x = block(torch.cat([x, skip], 1) if block is classic_block else x + skip, take)
    weight, bias = take(2)
    assert take.position + 6 * len(gates) == len(take.tensors)
    return F.conv2d(x, weight, bias), maps


@every_model
def test_parameter_counts(model_class):
    with torch.device("meta"):
        assert tuple(count(model_class(n_filters=n)) for n in FILTERS) == COUNTS[model_class]


def test_gates_hold_what_the_formula_says():
    for channels in (2, 16, 40):
        assert count(AttentionGate(channels)) == 2 * (channels**2 + channels) + channels + 1


@every_model
def test_shapes_and_multiply_adds_at_240(model_class):
    with torch.device("meta"):
        model = model_class()
        shapes, work = {}, []
        for name in PARTS:
            keep = lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})  # noqa: E731
            getattr(model, name).register_forward_hook(keep)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda m, _, out: work.append(out[0].numel() * m.weight[0].numel()))
        assert model(torch.empty(2, 4, 240, 240)).shape == (2, 3, 240, 240)
    assert shapes == {
        "encoder1": (32, 240, 240),
        "encoder2": (64, 120, 120),
        "encoder3": (128, 60, 60),
        "encoder4": (256, 30, 30),
        "bottleneck": (256, 15, 15),
        "decoder4": (128, 30, 30),
        "decoder3": (64, 60, 60),
        "decoder2": (32, 120, 120),
        "decoder1": (32, 240, 240),
        "output": (3, 240, 240),
    }
    assert sum(work) == pytest.approx(MULTIPLY_ADDS[model_class], rel=1e-3)


@every_model
def test_parts_are_defined_in_forward_order(model_class):
    parts = list(dict.fromkeys(name.split(".")[0] for name, _ in model_class(n_filters=2).named_parameters()))
    assert parts == PARTS + (["gate1", "gate2", "gate3", "gate4"] if model_class is AttentionUNet else [])


@every_model
def test_agrees_with_the_same_network_written_as_functions(model_class):
    """Weights of any faithful implementation can be put in by position; nothing else is used here."""
    model = sine_weights(model_class(in_channels=3, out_channels=2, n_filters=3)).double().eval()
    x = picture(3, 32, 48)
    with torch.inference_mode():
        expected, maps = as_functions(model, x)
        assert expected.std() > 1e-2  # the signal is alive
        torch.testing.assert_close(model(x), expected, atol=1e-9, rtol=1e-9)
        if maps:
            logits, found = model(x, return_attention=True)
            assert torch.equal(logits, model(x))
            for a, b in zip(found, maps, strict=True):
                torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


# The mean, the standard deviation and one pixel of each mask, computed in float64 by `as_functions`.
GOLDEN = {
    ClassicUNet: [
        [-0.391532, 0.223564, -0.056385],
        [0.307577, 0.316777, 0.317916],
        [-0.46165, 0.303931, -0.144621],
    ],
    ImprovedUNet: [
        [-0.215312, 0.151485, -0.205149],
        [0.019997, 0.023812, 0.027065],
        [-0.207991, 0.142837, -0.195392],
    ],
    AttentionUNet: [
        [-0.215661, 0.152313, -0.206434],
        [0.009739, 0.011574, 0.013184],
        [-0.212305, 0.147983, -0.201241],
    ],
}


@every_model
def test_golden_output(model_class):
    model = sine_weights(model_class(n_filters=4)).double().eval()
    with torch.inference_mode():
        found = model(picture(4, 32, 32))[0]
    summary = torch.stack([found.mean((1, 2)), found.std((1, 2)), found[:, 9, 20]])
    torch.testing.assert_close(summary.float(), torch.tensor(GOLDEN[model_class]), atol=1e-5, rtol=0)


def test_upsampling_keeps_corners_and_straight_lines():
    ramp = torch.arange(6.0).view(1, 1, 2, 3)
    found = upsample(ramp)[0, 0]
    assert found.shape == (4, 6)
    corners = found[[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.tensor([0.0, 2.0, 3.0, 5.0]))
    torch.testing.assert_close(found[0], torch.linspace(0, 2, 6))


def test_the_classic_decoder_takes_the_feature_first_and_then_the_skip():
    below, skip = torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 8, 8)
    joined = Decoder(nn.Identity(), concatenate)(below, skip)
    assert joined.shape == (1, 5, 8, 8)
    assert not joined[:, :2].any() and joined[:, 2:].all()


def test_a_gate_of_zeros_halves_its_skip():
    """Without weights every place scores 0, and the sigmoid of 0 is a half."""
    layer = AttentionGate(2)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    skip = torch.rand(1, 2, 8, 8)
    weighed, attention = layer(torch.rand(1, 2, 4, 4), skip)
    torch.testing.assert_close(weighed, skip / 2)
    assert attention.shape == (1, 1, 4, 4) and (attention == 0.5).all()


def test_a_gate_follows_the_decoder():
    """With the skip held fixed, the map changes where the query does and nowhere else."""
    torch.manual_seed(0)
    layer, skip, below = AttentionGate(4, nn.Mish), torch.rand(1, 4, 8, 8), torch.rand(1, 4, 4, 4)
    other = below.clone()
    other[..., 1, 2] += 1
    changed = (layer(below, skip)[1] != layer(other, skip)[1]).nonzero()
    assert changed.tolist() == [[0, 0, 1, 2]]


def test_attention_maps():
    torch.manual_seed(0)
    model = AttentionUNet(n_filters=2).eval()
    with torch.inference_mode():
        _, maps = model(torch.rand(2, 4, 64, 96), return_attention=True)
    assert [tuple(m.shape) for m in maps] == [(2, 1, 32, 48), (2, 1, 16, 24), (2, 1, 8, 12), (2, 1, 4, 6)]
    assert all(0 < m.min() < m.max() < 1 for m in maps)


def test_open_gates_give_the_improved_network():
    """The attention network differs from the improved one by its gates alone: with gates held open they agree."""
    torch.manual_seed(1)
    improved = ImprovedUNet(n_filters=2).eval()
    torch.manual_seed(1)
    attention = AttentionUNet(n_filters=2).eval()
    with torch.no_grad():
        for layer in (attention.gate1, attention.gate2, attention.gate3, attention.gate4):
            layer.score.bias.fill_(100)
        x = torch.rand(1, 4, 32, 32)
        torch.testing.assert_close(attention(x), improved(x))


@every_model
def test_gradient_reaches_every_parameter(model_class):
    torch.manual_seed(0)
    # Tanh has a slope everywhere; a dead ReLU would say nothing about the wiring.
    model = model_class(n_filters=2, activation=nn.Tanh).double()
    x = torch.rand(3, 4, 32, 32, dtype=torch.float64)
    BCE()(model(x), torch.rand(3, 3, 32, 32) > 0.5).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    # A bias before BatchNorm is taken off again with the mean: its gradient is rounding.
    normalized = [name for name in without if name.endswith(".0.bias") and model_class is not ClassicUNet]
    assert without == normalized


@pytest.mark.parametrize("model_class, number", [(ClassicUNet, 18), (ImprovedUNet, 18), (AttentionUNet, 22)])
def test_activation_is_made_anew_for_each_place_and_reaches_the_gates(model_class, number):
    model = model_class(n_filters=2, activation=nn.SiLU)
    kinds = [type(module) for module in model.modules()]  # modules() would name a shared one once
    assert kinds.count(nn.SiLU) == number and nn.ReLU not in kinds
    if model_class is AttentionUNet:
        assert all(isinstance(getattr(model, f"gate{i}").activation, nn.SiLU) for i in (1, 2, 3, 4))


@every_model
@pytest.mark.parametrize("inputs, outputs, n", [(1, 1, 1), (2, 5, 3)])
def test_any_number_of_channels_masks_and_filters(model_class, inputs, outputs, n):
    model = model_class(in_channels=inputs, out_channels=outputs, n_filters=n).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, inputs, 32, 16)).shape == (1, outputs, 32, 16)


def test_parts_of_a_unit_can_be_left_out_for_the_ablation():
    model = ImprovedUNet(n_filters=4, kernel_size=3, norm=nn.Identity)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 18 and {m.kernel_size for m in depthwise} == {(3, 3)}
    inputs = sum(m.in_channels for m in depthwise)
    assert count(model) == 60_727 - inputs * (49 - 9) - 2 * inputs
    assert model(torch.rand(1, 4, 16, 32)).shape == (1, 3, 16, 32)


def test_blocks_end_linear():
    torch.manual_seed(0)
    with torch.inference_mode():
        assert (SeparableBlock(2, 8, 4).eval()(torch.randn(1, 2, 8, 8)) < 0).any()
        assert (ClassicUNet(n_filters=2).decoder2(torch.randn(1, 4, 4, 4), torch.randn(1, 4, 8, 8)) >= 0).all()


@every_model
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 4, 40, 32), (1, 4, 32, 155), (4, 32, 32), (1, 4, 0, 32)])
def test_wrong_shape_is_named(model_class, shape):
    model = model_class(n_filters=1)
    with pytest.raises(ValueError, match=r"\(B, 4, H, W\) with H and W multiples of 16") as caught:
        model(torch.rand(shape))
    assert str(shape) in str(caught.value) and model_class.__name__ in str(caught.value)


@every_model
def test_channels_last_and_bfloat16_tell_the_same(model_class):
    """The memory order and the number format in which `fit` trains."""
    torch.manual_seed(0)
    model, x = model_class(n_filters=4).eval(), torch.rand(2, 4, 32, 32)
    with torch.inference_mode():
        plain = model(x)
        model.to(memory_format=torch.channels_last)
        found = model(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    assert (rough - plain).abs().max() < 0.1 * plain.std() + 0.02


def compact(
    x: torch.Tensor, weights: list[torch.Tensor], places: tuple[int, ...] = (0, 2, 3), residual: bool = True
) -> list[torch.Tensor]:
    """CompactUNet with three widths as a plain function of its weights, in order, normalized over ``places``."""
    weights = iter(weights)

    def leaky(x):
        return torch.where(x > 0, x, 0.01 * x)

    def normed(x, stride=1, padding=1):
        x = F.conv2d(x, next(weights), stride=stride, padding=padding)
        mean, variance = x.mean(places, keepdim=True), x.var(places, keepdim=True, correction=0)
        return (x - mean) / (variance + 1e-5).sqrt() * next(weights)[:, None, None] + next(weights)[:, None, None]

    skips = []
    for level in range(3):
        came = x
        x = normed(leaky(normed(x, 2 if level else 1)))
        if residual:
            if level:
                came = came.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
            x = x + normed(came, padding=0)
        x = leaky(x)
        skips.append(x)
    features = []
    for skip in skips[1::-1]:
        weight, bias = next(weights), next(weights)
        up = torch.einsum("bchw,cdij->bdhiwj", x, weight).flatten(4, 5).flatten(2, 3) + bias[:, None, None]
        x = leaky(normed(leaky(normed(torch.cat([up, skip], 1)))))
        features.append(x)
    return [F.conv2d(feature, next(weights), next(weights)) for feature in reversed(features)]


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, {}),
        ({"normalization": "instance"}, {"places": (2, 3)}),
        ({"residual": False}, {"residual": False}),
    ],
    ids=["usual", "instance", "plain blocks"],
)
def test_compact_unet_is_the_function_that_it_says(options, plain):
    model = sine_weights(CompactUNet(4, 3, (4, 6, 8), **options).double())
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1  # what evaluation uses is that of the last batch
    images = torch.cat([picture(4, 24, 36), 2 - picture(4, 24, 36).flip(3)])
    logits = compact(images, list(model.parameters()), **plain)
    for a, b in zip(model.train()(images), logits, strict=True):
        assert torch.allclose(a, b, atol=1e-10) and a.std() > 1e-3
    # BatchNorm remembers the unbiased variance, a few thousandths above what training divides by.
    assert torch.allclose(model.eval()(images), logits[0], atol=1e-10 if "places" in plain else 0.05)
    single = CompactUNet(4, 3, (4, 6, 8), deep_supervision=False, **options)
    assert isinstance(single.train()(images.float()), torch.Tensor)


def test_compact_unet_begins_with_its_prior():
    torch.manual_seed(0)
    images = torch.randn(2, 4, 64, 64)
    for prior in (0.01, 0.2):
        for logits in CompactUNet(prior=prior).train()(images):
            assert prior / 2.5 < logits.sigmoid().mean() < 2.5 * prior


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "layer"}, "normalization='layer': choose from batch, instance"),
        ({"prior": 0.0}, "prior=0.0: give a probability"),
        ({"prior": 1.0}, "prior=1.0: give a probability"),
    ],
)
def test_compact_unet_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        CompactUNet(**options)


@pytest.mark.parametrize(
    ("normalization", "training", "slices"), [("instance", True, 2), ("instance", False, 2), ("batch", True, 1)]
)
def test_compact_unet_asks_for_two_values_to_normalize(normalization, training, slices):
    model = CompactUNet(4, 3, (4, 6, 8), normalization=normalization).train(training)
    with pytest.raises(ValueError, match=f"H or W of 8 or more, not 4 × 4.*{normalization} normalization"):
        model(torch.zeros(slices, 4, 4, 4))
    model(torch.zeros(slices, 4, 4, 8))


def test_compact_unet_normalizes_a_small_batch_of_small_slices():
    model = CompactUNet(4, 3, (4, 6, 8))
    model.train()(torch.randn(2, 4, 4, 4))
    assert model.eval()(torch.randn(1, 4, 4, 4)).shape == (1, 3, 4, 4)


def test_compact_unet_has_fewer_than_a_million_weights():
    assert count(CompactUNet()) == 970_697 and count(CompactUNet(12)) == 971_977
    assert count(CompactUNet(residual=False)) == 948_969
    with pytest.raises(ValueError, match="multiples of 16"):
        CompactUNet()(torch.zeros(1, 4, 40, 48))
    with pytest.raises(ValueError, match="12"):
        CompactUNet(12)(torch.zeros(1, 4, 48, 48))


def test_attention_unet_trains_with_few_filters_in_channels_last():
    """In a process of its own: where the strided key was left to the library, its backward pass crashed on CPUs."""
    script = (
        "import torch; from brainlib.models import AttentionUNet; torch.manual_seed(0)\n"
        "for n in (2, 4, 8):\n"
        "    model = AttentionUNet(n_filters=n).to(memory_format=torch.channels_last)\n"
        "    x = torch.rand(4, 4, 160, 192).contiguous(memory_format=torch.channels_last)\n"
        "    for _ in range(2): model(x).square().mean().backward()\n"
        "    assert all(p.grad.isfinite().all() for p in model.parameters())\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
