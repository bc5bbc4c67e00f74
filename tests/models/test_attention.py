"""Attention and the two encoder layers against PyTorch's own, and against their formulas."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brainlib.models.attention import PostNormLayer, PreNormLayer, SelfAttention

exact = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def transplanted(source: nn.Module, target: nn.Module) -> nn.Module:
    """``target`` with the weights of ``source``, by position; both in float64."""
    source.double(), target.double()
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            if mine.ndim == 1:
                theirs.add_(0.3 * torch.randn_like(theirs))  # biases of 0 and gains of 1 would not be seen
            mine.copy_(theirs)
    return target


# Attention ------------------------------------------------------------------------------------------------------------


def by_the_formula(layer: SelfAttention, x: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vaswani et al. 2017, equation 1, one image, one head and one token at a time."""
    inner = layer.heads * head_dim
    mixed, weights = x.new_zeros(*x.shape[:2], inner), x.new_zeros(len(x), layer.heads, x.shape[1], x.shape[1])
    table, bias = layer.qkv.weight, layer.qkv.bias
    for b, h in itertools.product(range(len(x)), range(layer.heads)):
        part = slice(h * head_dim, (h + 1) * head_dim)
        q, k, v = (x[b] @ table[i * inner :][part].T + bias[i * inner :][part] for i in range(3))
        for token in range(x.shape[1]):
            scores = torch.exp((k @ q[token]) / head_dim**0.5)
            weights[b, h, token] = scores / scores.sum()
            mixed[b, token, part] = weights[b, h, token] @ v
    return mixed @ layer.out.weight.T + layer.out.bias, weights


@pytest.mark.parametrize(("heads", "head_dim"), [(4, None), (1, None), (12, None), (3, 7), (5, 1)])
def test_attention_is_its_formula(heads, head_dim):
    layer = SelfAttention(12, heads, head_dim).double()
    x = 2 * torch.randn(2, 6, 12, **exact)
    assert tuple(layer.qkv.weight.shape) == (3 * heads * (head_dim or 12 // heads), 12)
    with torch.no_grad():
        layer.qkv.bias.normal_()
        expected, weights = by_the_formula(layer, x, head_dim or 12 // heads)
        found, none = layer(x)
        asked, found_weights = layer(x, return_attention=True)
    assert none is None and found_weights.shape == (2, heads, 6, 6)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(asked, expected)
    torch.testing.assert_close(found_weights, weights)
    torch.testing.assert_close(found_weights.sum(-1), torch.ones(2, heads, 6, **exact))


def test_attention_agrees_with_pytorch():
    layer = transplanted(judge := nn.MultiheadAttention(24, 4, batch_first=True), SelfAttention(24, 4))
    x = 2 * torch.randn(3, 9, 24, **exact)
    expected, weights = judge(x, x, x, average_attn_weights=False)
    found, found_weights = layer(x, return_attention=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_weights, weights)
    torch.testing.assert_close(layer(x)[0], expected)
    q, k, v = layer.qkv(x).view(3, 9, 3, 4, 6).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, layer.out(mixed))


def test_attention_starts_as_pytorch_starts_it():
    mine, judge = SelfAttention(96, 4), nn.MultiheadAttention(96, 4)
    for own, theirs in zip(mine.parameters(), judge.parameters(), strict=True):
        assert own.shape == theirs.shape
        assert own.abs().max().item() == pytest.approx(
            theirs.abs().max().item(), rel=0.01
        )  # uniform, so the edge tells
        assert own.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_the_order_of_tokens_does_not_matter_to_attention():
    layer, x = SelfAttention(8, 2).double(), torch.randn(1, 7, 8, **exact)
    order = torch.randperm(7)
    torch.testing.assert_close(layer(x[:, order])[0], layer(x)[0][:, order])


def test_dropout_of_attention_only_in_training():
    layer, x = SelfAttention(16, 2, dropout=0.5), torch.randn(1, 20, 16)
    for asked in (False, True):
        assert not torch.equal(layer.train()(x, asked)[0], layer(x, asked)[0])
        assert torch.equal(layer.eval()(x, asked)[0], layer(x, asked)[0])
    # What is returned is what was asked, before weights were dropped.
    torch.testing.assert_close(layer.train()(x, True)[1], layer.eval()(x, True)[1])


def test_dropout_of_attention_keeps_the_mean():
    layer, x = SelfAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    many = x.expand(6000, -1, -1)
    for asked in (False, True):
        torch.testing.assert_close(layer.train()(many, asked)[0].mean(0), layer.eval()(x)[0][0], atol=0.05, rtol=0)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads=5 does not divide dim=12.*head_dim"):
        SelfAttention(12, 5)


# Encoder layers -------------------------------------------------------------------------------------------------------


def test_post_norm_layer_is_pytorchs():
    judge = nn.TransformerEncoderLayer(24, 4, 40, dropout=0.2, activation="relu", batch_first=True, norm_first=False)
    layer = transplanted(judge, PostNormLayer(24, 4, 40, dropout=0.2)).eval()
    x = 3 * torch.randn(2, 9, 24, **exact)
    for asked in (False, True):
        torch.testing.assert_close(layer(x, asked)[0], judge.eval()(x))


def test_pre_norm_layer_is_pytorchs():
    judge = nn.TransformerEncoderLayer(24, 4, 40, activation="gelu", batch_first=True, norm_first=True).double().eval()
    layer = PreNormLayer(24, 4, 40).double().eval()
    pairs = {
        "attention.qkv.weight": judge.self_attn.in_proj_weight,
        "attention.qkv.bias": judge.self_attn.in_proj_bias,
        **{f"attention.out.{k}": p for k, p in judge.self_attn.out_proj.named_parameters()},
        **{f"mlp.0.{k}": p for k, p in judge.linear1.named_parameters()},
        **{f"mlp.3.{k}": p for k, p in judge.linear2.named_parameters()},
        **{f"norm{i}.{k}": p for i in (1, 2) for k, p in getattr(judge, f"norm{i}").named_parameters()},
    }
    assert set(pairs) == {name for name, _ in layer.named_parameters()}
    with torch.no_grad():
        for name, own in layer.named_parameters():
            pairs[name].add_(0.3 * torch.randn_like(pairs[name]))
            own.copy_(pairs[name])
        x = 3 * torch.randn(2, 9, 24, **exact)
        for asked in (False, True):
            torch.testing.assert_close(layer(x, asked)[0], judge(x))


def test_pre_norm_layer_by_hand():
    layer = PreNormLayer(12, 3, 20, head_dim=5).double().eval()
    x = 3 * torch.randn(2, 6, 12, **exact)

    def normalized(x, norm):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    mixed, weights = by_the_formula(layer.attention, normalized(x, layer.norm1), 5)
    expected = x + mixed
    first, last = layer.mlp[0], layer.mlp[3]
    hidden = normalized(expected, layer.norm2) @ first.weight.T + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = expected + hidden @ last.weight.T + last.bias
    found, found_weights = layer(x, return_attention=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_weights, weights)


def test_the_straight_path_is_never_normalized():
    """Pre-norm: what comes in goes out, whatever its size. Post-norm: each token leaves with the size of the norm."""
    x = 1000 * torch.randn(1, 5, 8)
    pre, post = PreNormLayer(8, 2, 16).eval(), PostNormLayer(8, 2, 16).eval()
    assert (pre(x)[0] - x).abs().max() < 10
    torch.testing.assert_close(post(x)[0].var(-1, correction=0), torch.ones(1, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [PreNormLayer, PostNormLayer])
def test_dropout_of_a_layer_only_in_training(kind):
    layer, x = kind(8, 2, 16, dropout=0.3), torch.randn(1, 5, 8)
    assert not torch.equal(layer.train()(x)[0], layer(x)[0])
    assert torch.equal(layer.eval()(x)[0], layer(x)[0])
    assert {module.p for module in layer.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert layer.attention.dropout == 0.3


@pytest.mark.parametrize("kind", [PreNormLayer, PostNormLayer])
def test_a_layer_trains_without_dropout_as_it_predicts(kind):
    layer, x = kind(8, 2, 16, dropout=0.0), torch.randn(2, 5, 8)
    torch.testing.assert_close(layer.train()(x)[0], layer.eval()(x)[0])


def test_drop_path_leaves_out_whole_branches_and_keeps_their_mean():
    layer = PreNormLayer(8, 2, 16, drop_path=0.3)
    nn.init.zeros_(layer.mlp[3].weight), nn.init.zeros_(layer.mlp[3].bias)  # attention is the one branch
    x = torch.randn(1, 5, 8)
    branch = layer.eval()(x)[0] - x
    trained = layer.train()(x.expand(4000, -1, -1))[0] - x
    kept = trained.abs().sum((1, 2)) > 0
    assert kept.float().mean() == pytest.approx(0.7, abs=0.03)  # four standard errors
    torch.testing.assert_close(trained[kept], (branch / 0.7).expand(int(kept.sum()), -1, -1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trained.mean(0), branch[0], atol=0.05 * branch.abs().max().item(), rtol=0)


def test_drop_path_draws_for_each_branch():
    layer = PreNormLayer(8, 2, 16, drop_path=0.5).train()
    x = torch.randn(1, 5, 8)
    outputs = layer(x.expand(200, -1, -1))[0]
    # Both branches, either, or none: what the second adds depends on whether the first is there.
    assert len(torch.unique((outputs * 1e4).round(), dim=0)) == 4
