"""The study's Vision Transformer with all its oddities, and the compact transformer that the course puts beside it."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from waves import golden_image, wave_weights

from brainlib.models import CompactTransformer, VisionTransformer, count_multiply_adds, count_parameters
from brainlib.models.attention import PostNormLayer, PreNormLayer

SMALL = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 3, "heads": 4, "mlp_dim": 24}
COMPACT = {"image_size": 32, "widths": (8, 12, 16), "blocks": (0, 1, 2), "depth": 3, "heads": 2}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@cache
def vit() -> VisionTransformer:
    """The study's model in float64, with wave weights."""
    with torch.device("meta"):
        model = VisionTransformer().double()
    return wave_weights(model.to_empty(device="cpu")).eval()


@cache
def compact() -> CompactTransformer:
    """The course's model in float64, with wave weights."""
    return wave_weights(CompactTransformer().double()).eval()


# The study's Vision Transformer ---------------------------------------------------------------------------------------


def test_parts_of_the_vit():
    with torch.device("meta"):
        model = VisionTransformer()
    assert tuple(model.position.shape) == (1, 65, 512) and tuple(model.class_token.shape) == (1, 1, 512)
    assert count_parameters(model.project) == 768 * 512 + 512
    each = (512 * 1536 + 1536) + (512 * 512 + 512) + (512 * 1024 + 1024) + (1024 * 512 + 512) + 4 * 512
    assert [count_parameters(layer) for layer in model.layers] == [each] * 10
    assert count_parameters(model.norm) == 1024 and count_parameters(model.head) == 1024 + 4 * 513
    assert sum(isinstance(module, nn.LayerNorm) for module in model.modules()) == 20 + 2  # one norm for all depths


def test_parameters_of_the_vit_come_in_the_order_of_the_study():
    layer = [(1536, 512), (1536,), (512, 512), (512,), (1024, 512), (1024,), (512, 1024), (512,), *[(512,)] * 4]
    first = [(1, 65, 512), (1, 1, 512), (512, 768), (512,)]
    last = [(512,), (512,), (512,), (512,), (4, 512), (4,)]
    assert [tuple(p.shape) for p in vit().parameters()] == first + 10 * layer + last


def with_pytorchs_layers(model: VisionTransformer, x: torch.Tensor, patch: int, mlp_dim: int) -> torch.Tensor:
    """The study's model again: its layers are PyTorch's, with weights taken by position."""
    weights = iter([p.detach() for p in model.parameters()])
    position, class_token, project, bias = (next(weights) for _ in range(4))
    dim, rows = class_token.shape[-1], x.shape[-1] // patch
    tokens = []
    for place in range(rows**2):
        top, left = place // rows * patch, place % rows * patch
        piece = x[:, :, top : top + patch, left : left + patch].movedim(1, -1)  # (B, p1, p2, c)
        tokens.append(piece.flatten(1) @ project.T + bias)
    x = torch.stack([class_token[0].expand(len(x), -1), *tokens], 1) + position
    layers = []
    heads = model.layers[0].attention.heads
    for _ in model.layers:
        layer = nn.TransformerEncoderLayer(dim, heads, mlp_dim, activation="relu", batch_first=True, dtype=x.dtype)
        for parameter in layer.parameters():
            parameter.data = next(weights)
        layers.append(layer.eval())
    gain, shift, head_gain, head_shift, head, head_bias = weights
    for layer in layers:
        x = F.layer_norm(layer(x) + x, (dim,), gain, shift)  # the second residual, and the shared norm
    return F.layer_norm(x[:, 0], (dim,), head_gain, head_shift) @ head.T + head_bias


def test_vit_agrees_with_the_one_made_of_pytorchs_layers():
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(vit()(x), with_pytorchs_layers(vit(), x, 16, 1024))


@pytest.mark.parametrize(("patch", "depth"), [(8, 1), (16, 2), (32, 3)])
def test_any_patch_that_divides_the_image(patch, depth):
    model = VisionTransformer(**SMALL | {"image_size": 64, "patch_size": patch, "depth": depth}).double().eval()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    logits, attention = model(x, return_attention=True)
    tokens = (64 // patch) ** 2 + 1
    assert model.position.shape[1] == tokens and [a.shape for a in attention] == [(2, 4, tokens, tokens)] * depth
    torch.testing.assert_close(logits, with_pytorchs_layers(model, x, patch, 24))
    each = 4 * 16 * 17 + 16 * 24 + 24 + 24 * 16 + 16 + 4 * 16
    expected = (tokens + 1) * 16 + (3 * patch**2 + 1) * 16 + depth * each + 4 * 16 + 4 * 17
    assert count_parameters(model) == expected


def test_golden_output_of_the_vit():
    with torch.inference_mode():
        found = vit()(golden_image())[0]
    # Computed in float64, by `with_pytorchs_layers`.
    expected = torch.tensor([15.823146, 16.639011, 18.318209, 17.243814], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_vit_works_as_hard_as_its_layers_say():
    token = 512 * 1536 + 512 * 512 + 2 * 512 * 1024
    expected = 64 * 768 * 512 + 10 * (65 * token + 2 * 65 * 65 * 512) + 512 * 4
    assert count_multiply_adds(vit().float()) == expected == pytest.approx(1.43e9, rel=0.01)
    vit().double()


def test_class_token_and_positions_are_drawn_from_the_standard_normal():
    model = VisionTransformer(**SMALL | {"dim": 512, "image_size": 128, "depth": 1})
    for drawn in (model.position, model.class_token):
        error = drawn.numel() ** -0.5
        assert drawn.mean().item() == pytest.approx(0, abs=4 * error)
        assert drawn.std().item() == pytest.approx(1, abs=4 * error)


@pytest.mark.parametrize("size", [{"patch_size": 12}, {"patch_size": 0}, {"image_size": 100}])
def test_patches_that_do_not_fit(size):
    with pytest.raises(ValueError, match="patch_size=.* must divide image_size="):
        VisionTransformer(**size)


def test_dropout_comes_even_after_the_logits():
    model = VisionTransformer(**SMALL, num_classes=50, dropout=0.4)
    x = torch.rand(64, 3, 32, 32)
    dropped = (model.train()(x) == 0).float().mean().item()
    assert dropped == pytest.approx(0.4, abs=0.05)  # of 3,200
    logits = model.eval()(x)
    assert (logits == 0).sum() == 0 and torch.equal(model(x), logits)
    without = VisionTransformer(**SMALL, dropout=0.0)
    torch.testing.assert_close(without.train()(x), without.eval()(x))


def test_arguments_of_the_vit():
    model = VisionTransformer(**SMALL, head_dim=5, dropout=0.35)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.35}
    assert {layer.attention.dropout for layer in model.layers} == {0.35}
    assert [tuple(layer.attention.qkv.weight.shape) for layer in model.layers] == [(3 * 4 * 5, 16)] * 3
    with pytest.raises(ValueError, match="heads=3 does not divide dim=16"):
        VisionTransformer(**SMALL | {"heads": 3})


# Both -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VisionTransformer, CompactTransformer])
def test_asking_for_attention_changes_no_answer(kind):
    model = kind(**(SMALL if kind is VisionTransformer else COMPACT)).eval()
    x = torch.rand(3, 3, 32, 32)
    logits, attention = model(x, return_attention=True)
    torch.testing.assert_close(logits, model(x))
    assert isinstance(model(x), torch.Tensor)
    tokens, heads = (17, 4) if kind is VisionTransformer else (16, 2)
    layers = attention if kind is VisionTransformer else attention[:-1]
    assert [tuple(a.shape) for a in layers] == [(3, heads, tokens, tokens)] * 3
    for weights in attention:
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("kind", [VisionTransformer, CompactTransformer])
def test_bfloat16_gives_about_the_same(kind):
    model = kind(**(SMALL if kind is VisionTransformer else COMPACT)).eval()
    x = torch.rand(3, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x).float()
        asked = model(x, return_attention=True)[0].float()
    torch.testing.assert_close(found, model(x), atol=0.1, rtol=0.05)
    torch.testing.assert_close(asked, found, atol=0.1, rtol=0.05)


# The compact transformer ----------------------------------------------------------------------------------------------


def test_parameters_of_the_compact_transformer():
    assert count_parameters(CompactTransformer()) == 2_253_477 <= 4_000_000


def test_golden_output_of_the_compact_transformer():
    with torch.inference_mode():
        found = compact()(golden_image())[0]
    # Computed in float64, by `compact_again`.
    expected = torch.tensor([1.337938, -5.037727, 5.045100, -0.885708], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_maps_of_the_tokenizer():
    shapes = []
    down = [module for module in compact().tokenizer if isinstance(module, nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:]))) for m in down]
    with torch.inference_mode():
        _, attention = compact()(golden_image(), return_attention=True)
    for hook in hooks:
        hook.remove()
    assert [shape[1:] for shape in shapes] == [(64, 64), (32, 32), (16, 16), (8, 8)]
    assert compact().position.shape == (1, 64, shapes[-1][0])
    assert attention[-1].shape == (1, 1, 1, 64) and len(attention) == len(compact().layers) + 1


def compact_again(model: CompactTransformer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and shares of the pooling, from the weights alone; the defaults' blocks are 0, 1, 1 and 1."""
    state = model.state_dict()

    def normalized_convolution(x: torch.Tensor, convolution: str, norm: str, stride: int) -> torch.Tensor:
        x = F.conv2d(x, state[f"{convolution}.weight"], stride=stride, padding=1)
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, gain, shift = (state[f"{norm}.{name}"].view(-1, 1, 1) for name in names)
        return (x - mean) / (variance + 1e-5).sqrt() * gain + shift

    for down, block in ((0, None), (3, 6), (7, 10), (11, 14)):
        x = F.gelu(normalized_convolution(x, f"tokenizer.{down}", f"tokenizer.{down + 1}", 2))
        if block is not None:
            branch = f"tokenizer.{block}.branch"
            hidden = F.gelu(normalized_convolution(x, f"{branch}.0", f"{branch}.1", 1))
            x = F.gelu(x + normalized_convolution(hidden, f"{branch}.3", f"{branch}.4", 1))
    x = x.flatten(2).mT + state["position"]
    for i, layer in enumerate(model.layers):
        w = {name.removeprefix(f"layers.{i}."): p for name, p in state.items() if name.startswith(f"layers.{i}.")}
        heads = layer.attention.heads
        y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"])
        q, k, v = F.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"]).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
        x = x + F.linear(y.transpose(1, 2).flatten(2), w["attention.out.weight"], w["attention.out.bias"])
        y = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"])
        y = F.gelu(F.linear(y, w["mlp.0.weight"], w["mlp.0.bias"]))
        x = x + F.linear(y, w["mlp.3.weight"], w["mlp.3.bias"])
    x = F.layer_norm(x, x.shape[-1:], state["norm.weight"], state["norm.bias"])
    share = torch.exp(x @ state["pool.weight"][0])
    share = share / share.sum(1, keepdim=True)
    pooled = torch.einsum("bn,bnd->bd", share, x)
    return pooled @ state["head.weight"].T + state["head.bias"], share


def test_compact_transformer_agrees_with_the_same_network_written_as_functions():
    x = torch.rand(2, 3, 128, 128, dtype=torch.float64)
    with torch.inference_mode():
        logits, attention = compact()(x, return_attention=True)
        expected, share = compact_again(compact(), x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(attention[-1][:, 0, 0], share)


def test_a_shift_of_the_image_is_a_shift_of_the_tokens():
    """What the docstring says convolutions bring: a shift need not be learned. (At the margin zeros come in.)"""
    x = torch.rand(1, 3, 320, 320, dtype=torch.float64)  # a token sees 71 pixels to each side, so of 128 all see one
    shifted = torch.roll(x, (16, 32), (2, 3))
    with torch.inference_mode():
        tokens, moved = compact().tokenizer(x), compact().tokenizer(shifted)
    inside = torch.roll(tokens, (1, 2), (2, 3))[:, :, 6:-5, 7:-5]
    torch.testing.assert_close(moved[:, :, 6:-5, 7:-5], inside)
    assert inside.std() > 0.01


def test_all_tokens_count_and_their_order_only_through_the_position():
    model = CompactTransformer(**COMPACT).double().eval()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    tokens = model.tokenizer(x)
    turned = tokens.flatten(2)[:, :, torch.randperm(16)].view_as(tokens)

    def answer(tokens: torch.Tensor) -> torch.Tensor:
        model.tokenizer.forward = lambda _: tokens
        return model(x)

    assert not torch.allclose(answer(tokens), answer(turned))
    nn.init.zeros_(model.position)
    torch.testing.assert_close(answer(tokens), answer(turned))
    for place in range(16):  # none is looked past, as all but the class token are
        changed = tokens.clone()
        changed[0, :, place // 4, place % 4] += torch.randn(16)
        assert not torch.allclose(answer(changed), answer(tokens))


def test_rates_of_drop_path_rise_from_zero():
    rates = [layer.drop_path for layer in CompactTransformer(**COMPACT | {"depth": 5}, drop_path=0.2).layers]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [layer.drop_path for layer in CompactTransformer(**COMPACT | {"depth": 1}).layers] == [0]


def test_compact_transformer_is_random_only_in_training():
    model, x = CompactTransformer(**COMPACT, dropout=0.0, drop_path=0.5), torch.rand(8, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    model = CompactTransformer(**COMPACT, dropout=0.5, drop_path=0.0)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_sizes_of_the_compact_transformer():
    model = CompactTransformer(
        image_size=96, widths=(4, 8), blocks=(1, 0), depth=2, heads=2, mlp_ratio=1.5, num_classes=3
    ).eval()
    logits, attention = model(torch.rand(2, 3, 96, 96), return_attention=True)
    assert (
        logits.shape == (2, 3) and attention[0].shape == (2, 2, 576, 576) and model.layers[0].mlp[0].out_features == 12
    )
    with pytest.raises(ValueError, match="image_size=100 must be a multiple of 16"):
        CompactTransformer(image_size=100)
    with pytest.raises(ValueError, match=r"blocks=\(1,\) must hold one number for each of widths=\(4, 8\)"):
        CompactTransformer(widths=(4, 8), blocks=(1,))
    with pytest.raises(ValueError, match="heads=5 does not divide dim=8"):
        CompactTransformer(heads=5, widths=(4, 8), blocks=(0, 0))


# Gradients against differences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [PostNormLayer, PreNormLayer])
def test_gradients_of_a_layer(layer):
    net = layer(8, 2, 6, dropout=0.0).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x)[0], (x,))
    by_weights(net, lambda: net(x.detach())[0])


def test_gradients_of_the_vit():
    net = VisionTransformer(image_size=8, patch_size=4, dim=8, depth=1, heads=2, mlp_dim=6, dropout=0.0).double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    by_weights(net, lambda: net(x))


def by_weights(net: nn.Module, forward) -> None:
    """Central differences of a sum of squares along one random direction of all weights at once."""
    weights = [p for p in net.parameters() if p.requires_grad]
    along = [torch.randn_like(p) for p in weights]
    gradients = torch.autograd.grad(forward().square().sum(), weights)
    slope = sum((g * d).sum() for g, d in zip(gradients, along, strict=True))
    ends, step = [], 1e-6
    with torch.no_grad():
        for sign in (1, -2):  # a step forward, then two back
            for p, d in zip(weights, along, strict=True):
                p.add_(d, alpha=sign * step)
            ends.append(forward().square().sum())
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)
