"""Losses against closed forms, against gradients derived by hand, and by their properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai import losses as judge
from torch.nn import functional as F

from brainlib.losses import BCE, BatchDice, DeepSupervision, DiceBCE, Focal, SoftDice, Tversky

quick = settings(deadline=None, max_examples=30, derandomize=True)
ALL = [
    BCE(),
    SoftDice(),
    BatchDice(),
    DiceBCE(),
    DiceBCE(BatchDice(0.1), weight=0.5),
    Focal(),
    Focal(0.5, None),
    Tversky(),
    Tversky(1.0, 0.1, 2.0),
]
every_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: "".join(repr(loss).split()))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@st.composite
def batches(draw):
    """Logits float64 and bool masks, in a slice or a volume; often with empty masks and with extreme logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *draw(st.sampled_from([(5, 4), (3, 2, 4), (6,)])))
    logits = draw(st.sampled_from([0.1, 2, 40])) * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits, torch.rand(shape, generator=generator) < draw(st.sampled_from([0, 0.05, 0.5, 1]))


# Closed forms: one item, one channel, four pixels with probabilities 0.8, 0.6, 0.4, 0.1 and the mask 1, 0, 1, 0.
LOGITS = torch.tensor([[[logit(0.8), logit(0.6), logit(0.4), logit(0.1)]]], dtype=torch.float64)
MASK = torch.tensor([[[1, 0, 1, 0]]])
BCE_BY_HAND = -(math.log(0.8) + math.log(0.4) + math.log(0.4) + math.log(0.9)) / 4
FOCAL_BY_HAND = [0.2**2 * math.log(0.8), 0.6**2 * math.log(0.4), 0.6**2 * math.log(0.4), 0.1**2 * math.log(0.9)]


@pytest.mark.parametrize(
    "loss, expected",
    [
        (BCE(), BCE_BY_HAND),
        (SoftDice(1.0), 1 - (2 * 1.2 + 1) / (1.9 + 2 + 1)),
        (SoftDice(0.01), 1 - (2 * 1.2 + 0.01) / (1.9 + 2 + 0.01)),
        (DiceBCE(SoftDice(1.0), 0.3), 0.3 * (1 - 3.4 / 4.9) + BCE_BY_HAND),
        (Focal(2.0, None), -sum(FOCAL_BY_HAND) / 4),
        (Focal(2.0, 0.25), -sum(w * v for w, v in zip([0.25, 0.75, 0.25, 0.75], FOCAL_BY_HAND, strict=True)) / 4),
        (Tversky(0.3, 0.7, 1.0), 1 - (1.2 + 1) / (1.2 + 0.3 * 0.7 + 0.7 * 0.8 + 1)),
    ],
    ids=str,
)
def test_closed_form(loss, expected):
    assert loss(LOGITS, MASK).item() == pytest.approx(expected, abs=1e-12)


def test_dice_is_averaged_over_items_and_batch_dice_pools_them():
    """A lesion of 8 pixels that is found and one of 2 pixels that is missed."""
    masks = torch.zeros(2, 1, 10)
    masks[0, 0, :8], masks[1, 0, :2] = 1, 1
    logits = torch.where(masks > 0, 50.0, -50.0)
    logits[1] = -50
    assert SoftDice(1e-6)(logits, masks).item() == pytest.approx((0 + 1) / 2, abs=1e-5)
    assert BatchDice(1e-6)(logits, masks).item() == pytest.approx(1 - 2 * 8 / (8 + 10), abs=1e-5)


@pytest.mark.parametrize("predicted", [0, 3, 12])
def test_an_empty_mask(predicted):
    """With s = 1: 1 - 1 / (Σ p + 1), so 0 for an empty prediction."""
    logits = torch.full((1, 1, 12), -80.0)
    logits[..., :predicted] = 80
    masks = torch.zeros(1, 1, 12)
    for loss in (SoftDice(1.0), BatchDice(1.0), Tversky(1.0, 0.5, 1.0)):
        assert loss(logits, masks).item() == pytest.approx(1 - 1 / (predicted + 1), abs=1e-6)
    assert BCE()(logits, masks).item() == pytest.approx(80 * predicted / 12, rel=1e-6)


def gradient(loss, logits, masks):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits, masks), logits)[0]


@quick
@given(batches())
def test_gradient_of_bce_by_hand(batch):
    """(p - t) / number of pixels"""
    logits, masks = batch
    by_hand = (logits.sigmoid() - masks.double()) / logits.numel()
    torch.testing.assert_close(gradient(BCE(), logits, masks), by_hand)


@quick
@given(batches(), st.sampled_from([0.01, 1.0]))
def test_gradient_of_dice_by_hand(batch, s):
    """-p (1 - p) (2 t (P + T + s) - (2 I + s)) / (P + T + s)², over the number of items and channels"""
    logits, masks = batch
    p, t = logits.sigmoid(), masks.double()
    axes = tuple(range(2, p.ndim))
    both, whole = (p * t).sum(axes, keepdim=True), (p + t).sum(axes, keepdim=True)
    slope = -p * (1 - p) * (2 * t * (whole + s) - (2 * both + s)) / (whole + s) ** 2
    torch.testing.assert_close(gradient(SoftDice(s), logits, masks), slope / (p.shape[0] * p.shape[1]))
    axes = (0, *axes)
    both, whole = (p * t).sum(axes, keepdim=True), (p + t).sum(axes, keepdim=True)
    slope = -p * (1 - p) * (2 * t * (whole + s) - (2 * both + s)) / (whole + s) ** 2
    torch.testing.assert_close(gradient(BatchDice(s), logits, masks), slope / p.shape[1])


@quick
@given(batches())
def test_gradient_of_focal_by_hand(batch):
    """a (1 - q)^γ (γ q log q + q - 1) toward the right side, over the number of pixels"""
    logits, masks = batch
    sign = 2 * masks.double() - 1
    q, log_q = (sign * logits).sigmoid(), F.logsigmoid(sign * logits)
    weight = torch.where(masks, 0.3, 0.7).double()
    wrong = (-sign * logits).sigmoid()
    by_hand = sign * weight * wrong**1.5 * (1.5 * q * log_q - wrong) / logits.numel()
    torch.testing.assert_close(gradient(Focal(1.5, 0.3), logits, masks), by_hand, rtol=1e-6, atol=1e-9)


@quick
@given(batches())
def test_gradient_of_tversky_by_hand(batch):
    """-p (1 - p) (t V - U (t + α (1 - t) - β t)) / V² with U = TP + s and V = U + α FP + β FN"""
    logits, masks = batch
    p, t = logits.sigmoid(), masks.double()
    axes = tuple(range(2, p.ndim))
    u = (p * t).sum(axes, keepdim=True) + 1
    v = u + (0.3 * p * (1 - t) + 0.7 * (1 - p) * t).sum(axes, keepdim=True)
    slope = -p * (1 - p) * (t * v - u * (t + 0.3 * (1 - t) - 0.7 * t)) / v**2
    torch.testing.assert_close(gradient(Tversky(), logits, masks), slope / (p.shape[0] * p.shape[1]))


@every_loss
def test_gradient_by_differences(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 2, 3, 3) > 0.7
    assert torch.autograd.gradcheck(lambda z: loss(z, masks), logits)


@every_loss
@quick
@given(batch=batches())
def test_finite_not_negative_and_at_most_one_where_it_is_a_share(loss, batch):
    logits, masks = batch
    value = loss(logits, masks)
    assert value.shape == () and math.isfinite(value) and value >= -1e-12
    assert torch.isfinite(gradient(loss, logits, masks)).all()
    if isinstance(loss, SoftDice | Tversky):
        assert value <= 1


@every_loss
@quick
@given(batch=batches())
def test_perfect_and_opposite_predictions(loss, batch):
    _, masks = batch
    sure = torch.where(masks, 60.0, -60.0)
    assert loss(sure, masks).item() == pytest.approx(0, abs=1e-6)
    assert loss(-sure, masks).item() > 0.1


@every_loss
@quick
@given(batch=batches(), seed=st.integers(0, 1000))
def test_order_of_items_channels_and_pixels_does_not_matter(loss, batch, seed):
    logits, masks = batch
    generator = torch.Generator().manual_seed(seed)
    first, second = logits, masks
    for axis in range(logits.ndim):
        order = torch.randperm(logits.shape[axis], generator=generator)
        first, second = first.index_select(axis, order), second.index_select(axis, order)
    assert loss(first, second).item() == pytest.approx(loss(logits, masks).item(), rel=1e-9, abs=1e-12)


@quick
@given(batches())
def test_dice_is_symmetric_in_prediction_and_mask(batch):
    """Sure predictions and masks may change places; Tversky does so if its prices do."""
    logits, masks = batch
    other = logits > 0
    a, b = torch.where(other, 60.0, -60.0).double(), torch.where(masks, 60.0, -60.0).double()
    for loss, swapped in [
        (SoftDice(), SoftDice()),
        (BatchDice(), BatchDice()),
        (Tversky(0.2, 0.9), Tversky(0.9, 0.2)),
    ]:
        assert loss(a, masks).item() == pytest.approx(swapped(b, other).item(), abs=1e-12)


@quick
@given(batches())
def test_how_the_losses_hang_together(batch):
    logits, masks = batch
    value = lambda loss: loss(logits, masks).item()  # noqa: E731
    near = lambda x: pytest.approx(x, rel=1e-9, abs=1e-12)  # noqa: E731
    assert value(Tversky(0.5, 0.5, 0.5)) == near(value(SoftDice(1.0)))
    assert value(Focal(0, None)) == near(value(BCE()))
    assert value(Focal(0, 0.5)) == near(value(BCE()) / 2)
    assert value(DiceBCE(BatchDice(), 2)) == near(2 * value(BatchDice()) + value(BCE()))
    single = [BatchDice()(logits[i : i + 1], masks[i : i + 1]).item() for i in range(len(logits))]
    assert value(SoftDice()) == near(sum(single) / len(single))


@quick
@given(batches())
def test_agrees_with_monai(batch):
    logits, masks = batch
    t, smooth = masks.double(), {"sigmoid": True, "smooth_nr": 0.5, "smooth_dr": 0.5}
    for ours, theirs in [
        (SoftDice(0.5), judge.DiceLoss(**smooth)),
        (BatchDice(0.5), judge.DiceLoss(**smooth, batch=True)),
        (Tversky(0.2, 0.7, 0.5), judge.TverskyLoss(**smooth, alpha=0.2, beta=0.7)),
        (Focal(2.0, 0.25), judge.FocalLoss(gamma=2.0, alpha=0.25)),
    ]:
        assert ours(logits, masks).item() == pytest.approx(theirs(logits, t).item(), rel=1e-6, abs=1e-9)


def test_tversky_prices_the_two_errors():
    """One pixel too many or one too few of three: α and β decide which costs more."""
    masks = torch.tensor([[[1, 1, 1, 0, 0]]])
    more, fewer = (torch.tensor([[row]]) * 100.0 - 50 for row in ([1, 1, 1, 1, 0], [1, 1, 0, 0, 0]))
    assert Tversky(0.3, 0.7)(more, masks) < Tversky(0.3, 0.7)(fewer, masks)
    assert Tversky(0.9, 0.1)(more, masks) > Tversky(0.9, 0.1)(fewer, masks)


@every_loss
def test_float32_inside_whatever_the_format_outside(loss):
    """A sum over a slice of 57,600 pixels has more digits than bfloat16 or float16 can hold."""
    torch.manual_seed(0)
    logits = (torch.randn(2, 2, 128, 128) - 3).bfloat16()
    masks = torch.rand(2, 2, 128, 128) < 0.05
    exact = loss(logits.double(), masks).item()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, masks)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(exact, rel=1e-5)
    assert loss(logits.half(), masks).dtype == torch.float32


@every_loss
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_masks_of_any_type(loss, dtype):
    assert loss(LOGITS, MASK.to(dtype)).item() == loss(LOGITS, MASK.double()).item()


@every_loss
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 8, 8), (2, 3, 8, 7), (3,)])
def test_shapes_that_differ_are_refused(loss, shape):
    """(2, 1, 8, 8) would broadcast, and train on the wrong thing."""
    with pytest.raises(ValueError, match=type(loss).__name__) as caught:
        loss(torch.zeros(2, 3, 8, 8), torch.zeros(shape))
    assert "(2, 3, 8, 8)" in str(caught.value) and str(shape) in str(caught.value)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: SoftDice(0), "smooth=0"),
        (lambda: BatchDice(-1), "smooth=-1"),
        (lambda: Tversky(smooth=0), "smooth=0"),
        (lambda: Tversky(alpha=-0.1), "alpha=-0.1"),
        (lambda: Focal(gamma=-1), "gamma=-1"),
        (lambda: Focal(alpha=1.5), "alpha=1.5"),
        (lambda: DiceBCE(weight=-2), "weight=-2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_a_loss_prints_its_settings():
    """So that a record can say what was minimized."""
    assert repr(Tversky(0.4, 0.6)) == "Tversky(alpha=0.4, beta=0.6, smooth=1)"
    assert repr(Focal()) == "Focal(gamma=2, alpha=0.25)"
    assert "BatchDice(smooth=0.5)" in repr(DiceBCE(BatchDice(0.5)))


def test_deep_supervision_weighs_levels_by_halves():
    torch.manual_seed(0)
    masks = torch.rand(2, 3, 16, 24) > 0.7
    levels = [torch.randn(2, 3, 16 // 2**k, 24 // 2**k, requires_grad=True) for k in range(3)]
    loss = DiceBCE(BatchDice())
    small = [masks[:, :, 2**k // 2 :: 2**k, 2**k // 2 :: 2**k] for k in range(3)]  # the nearest pixel to each middle
    expected = sum(loss(x, m) / 2**k for k, (x, m) in enumerate(zip(levels, small, strict=True))) / 1.75
    value = DeepSupervision(loss)(levels, masks)
    assert torch.allclose(value, expected)
    value.backward()
    assert all(x.grad.abs().sum() > 0 for x in levels)
    assert torch.equal(DeepSupervision(loss)(levels[0], masks), loss(levels[0], masks))
