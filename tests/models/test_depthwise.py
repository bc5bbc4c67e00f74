"""The quick depthwise convolution is PyTorch's own, in outputs and in gradients."""

import pytest
import torch
from torch import nn

from brainlib.models import depthwise
from brainlib.models.blocks import SeparableUnit
from brainlib.models.depthwise import DepthwiseConv2d


def twins(channels: int, kernel_size: int = 7, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Our layer and PyTorch's, with equal weights."""
    torch.manual_seed(0)
    ours = DepthwiseConv2d(channels, kernel_size).to(dtype)
    plain = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def answers(layer: nn.Module, x: torch.Tensor, autocast: bool = False) -> list[torch.Tensor]:
    """The output, and the gradients of input, weight and bias under an uneven loss."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    wave = torch.sin(torch.arange(y.numel(), dtype=x.dtype)).view_as(y)
    (y.to(x.dtype) * wave).sum().backward()
    return [y, x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("channels", [1, 4, 12, 16, 17, 24, 48])  # one; one block; no divisor but 1; several blocks
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_those_of_conv2d(channels, kernel_size, layout):
    x = torch.randn(2, channels, 9, 11, dtype=torch.float64).contiguous(memory_format=layout)
    for mine, theirs in zip(*(answers(layer, x) for layer in twins(channels, kernel_size)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("kernel_size", "own"), [(1, False), (3, False), (5, True), (7, True)])
def test_only_large_kernels_take_the_detour(kernel_size, own):
    layer, _ = twins(4, kernel_size)
    y = layer(torch.randn(1, 4, 6, 6, dtype=torch.float64))
    assert ("_Depthwise" in type(y.grad_fn).__name__) == own


@pytest.mark.parametrize(("capability", "size"), [("AVX512", 16), ("AVX2", 8), ("DEFAULT", 8)])
def test_blocks_are_as_wide_as_a_register_and_tell_the_same(monkeypatch, capability, size):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert depthwise._block() == size
    widths, plain = [], depthwise.conv2d_weight

    def noting(x, shape, *rest, **options):
        widths.append(shape[1])
        return plain(x, shape, *rest, **options)

    monkeypatch.setattr(depthwise, "conv2d_weight", noting)
    x = torch.randn(2, 48, 9, 11, dtype=torch.float64)
    for mine, theirs in zip(*(answers(layer, x) for layer in twins(48)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
    assert widths == [size]


def test_the_gradient_is_the_slope():
    layer, _ = twins(4, 3)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x),
        (x, *layer.parameters()),
    )


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients():
    ours, plain = twins(32, dtype=torch.float32)
    x = torch.randn(4, 32, 24, 24).contiguous(memory_format=torch.channels_last)
    mine, theirs = answers(ours, x, autocast=True), answers(plain, x, autocast=True)
    assert mine[0].dtype == torch.bfloat16 and torch.equal(mine[0], theirs[0])
    exact = answers(twins(32)[1], x.double())
    for a, b, truth in zip(mine[1:], theirs[1:], exact[1:], strict=True):
        assert a.dtype == torch.float32
        size = truth.abs().max()
        # Both round; ours must not round worse than PyTorch's, by more than rounding itself varies.
        assert (a - truth).abs().max() / size < max(1.5 * (b - truth).abs().max() / size, 0.02)


def test_frozen_parts_get_no_gradient_and_the_others_do():
    layer, _ = twins(4)
    layer.weight.requires_grad_(False)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    layer(x).sum().backward()
    assert layer.weight.grad is None and torch.allclose(layer.bias.grad, torch.full((4,), 64.0).double())


def test_it_is_an_ordinary_convolution_to_others():
    ours, plain = twins(6)
    assert isinstance(ours, nn.Conv2d) and ours.groups == 6
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in plain.named_parameters()]
    unbatched = torch.randn(6, 8, 8, dtype=torch.float64)
    assert torch.equal(ours(unbatched), plain(unbatched))
    assert isinstance(SeparableUnit(4, 8, 4)[0], DepthwiseConv2d)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size=4.*odd"):
        DepthwiseConv2d(8, 4)
