"""Saliency maps against closed forms: models so small that the right map can be written down."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from brainlib.data import DataError, load_mri
from brainlib.data.phantom import PhantomSettings
from brainlib.data.phantom.cohort import examine, patients
from brainlib.data.phantom_masks import phantom_masks
from brainlib.explain import (
    attention_rollout,
    chance_level,
    energy_in_mask,
    grad_cam,
    head_masks,
    integrated_gradients,
    mean_interval,
    occlusion,
    place_map,
    pointing_game,
    randomize_layers,
    rank_correlation,
    receptive_centers,
    weighted_layers,
)
from brainlib.models import AlexNet, CompactTransformer, CustomCNN, VisionTransformer

TINY = {"image_size": 32, "widths": (4, 8), "blocks": (0, 1), "depth": 2, "heads": 2}


def random_images(count: int = 3, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def linear(channels: int = 3, side: int = 16, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))


class OnePixel(nn.Module):
    """Class 1 has the pixel (5, 9) as its logit, class 0 its negative."""

    def forward(self, x):
        return torch.stack([-x[:, 0, 5, 9], x[:, 0, 5, 9]], 1)


# ---- occlusion


def test_occlusion_of_a_model_that_reads_one_pixel():
    images = random_images(channels=1)
    read = images[:, 0, 5, 9]
    found = occlusion(OnePixel(), images, 1, window=4, stride=4)
    expected = torch.zeros(3, 16, 16)
    expected[:, 4:8, 8:12] = read[:, None, None]  # the one window that covers the pixel
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(occlusion(OnePixel(), images, 0, window=4, stride=4), -expected)
    # With all windows, a pixel at distance d shares 4 - d of the windows that cover it (in each direction).
    found = occlusion(OnePixel(), images, 1, window=4, stride=1)
    torch.testing.assert_close(found[:, 5, 9], read)
    torch.testing.assert_close(found[:, 5, 10], read * 3 / 4)
    torch.testing.assert_close(found[:, 6, 10], read * 9 / 16)


def test_occlusion_of_a_linear_model_is_the_sum_under_the_window():
    model, images = linear(), random_images()
    fill = torch.rand(3, 3, 16, 16)
    weight = model[1].weight[torch.tensor([0, 2, 3])].view(3, 3, 16, 16)
    share = (weight * (images - fill)).sum(1)
    found = occlusion(model, images, [0, 2, 3], window=8, stride=8, fill=fill, batch_size=2)
    expected = share.view(3, 2, 8, 2, 8).sum((2, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_occlusion_covers_every_pixel_and_refuses_gaps():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = occlusion(model, random_images(1, 2, 13), 0, window=5, stride=3)
    assert torch.isfinite(found).all() and (found > 0).all()
    for window, stride in ((17, 1), (0, 1), (4, 5), (4, 0)):
        with pytest.raises(DataError, match="occlusion"):
            occlusion(linear(), random_images(), 0, window, stride)


# ---- Grad-CAM


class Averaged(nn.Module):
    """Two maps (the input and its square), averaged, times weights: the class activation map is their weighted sum."""

    def __init__(self, weights):
        super().__init__()
        self.maps = nn.Identity()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, x):
        maps = self.maps(torch.cat([x, x**2], 1))
        return maps.mean((2, 3)) @ self.weights  # (B, classes)


def test_grad_cam_of_a_model_made_by_hand():
    images = random_images(2, 1)
    model = Averaged([[1.0, -2.0], [3.0, 0.5]])
    for target in (0, 1):
        a, b = model.weights[:, target] / 16**2
        expected = torch.relu(a * images[:, 0] + b * images[:, 0] ** 2)
        for place in ("centers", "stretch"):
            torch.testing.assert_close(grad_cam(model, images, target, "maps", place=place), expected)
    against = grad_cam(Averaged([[-1.0], [-1.0]]), images, 0, "maps")
    assert (against == 0).all()  # nothing speaks for the class


def test_grad_cam_explains_each_image_as_it_would_alone():
    torch.manual_seed(0)
    model, images = CustomCNN(), torch.rand(5, 3, 128, 128)
    together = grad_cam(model, images, [0, 1, 2, 3, 0], "stage3", batch_size=2)
    alone = grad_cam(model, images[3:4], 3, "stage3")
    torch.testing.assert_close(together[3:4], alone, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "layer", "expected"),
    [
        (CustomCNN, "stage1.0", (4, 4)),
        (CustomCNN, "stage1", (6, 8)),
        (CustomCNN, "stage2", (26, 16)),
        (CustomCNN, "stage4.2", (26, 16)),
        (CustomCNN, "stage4", (34, 32)),
        (AlexNet, "stage3.5", (26, 16)),
        (partial(CompactTransformer, depth=1), "tokenizer", (0, 16)),
    ],
)
def test_receptive_centers_against_gradients(make, layer, expected):
    """The middle of the pixels with a gradient is the center, away from the border."""
    torch.manual_seed(0)
    model = make().eval()
    assert receptive_centers(model, layer, torch.zeros(1, 3, 128, 128)) == expected
    for module in model.modules():  # max pooling passes the gradient to one pixel only
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size))
    image, kept = torch.rand(1, 3, 128, 128, requires_grad=True), []
    model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output))
    model(image)
    column = kept[0].shape[-1] // 2 - (layer == "tokenizer")
    kept[0][0, :, :, column].sum().backward()
    seen = image.grad[0].abs().sum((0, 1)).nonzero()
    start, step = expected
    if 0 < seen.min() and seen.max() < 127:  # what is cut off at the border says nothing about the middle
        assert (seen.min() + seen.max()) / 2 == start + step * column


def test_place_map_puts_numbers_on_their_centers():
    small = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    large = place_map(small, (3.0, 4.0), (12, 12))
    torch.testing.assert_close(large[0, [3, 3, 7, 7], [3, 7, 3, 7]], small.flatten())
    torch.testing.assert_close(large[0, 3, 5], torch.tensor(1.5))
    torch.testing.assert_close(large[0, 0, 0], torch.tensor(1.0))
    torch.testing.assert_close(large[0, 11, 11], torch.tensor(5.0))
    assert (place_map(torch.ones(2, 1, 1), (6.0, 4.0), (12, 12)) == 1).all()


def test_grad_cam_errors():
    with pytest.raises(DataError, match="no layer 'nowhere'"):
        grad_cam(CustomCNN(), torch.zeros(1, 3, 128, 128), 0, "nowhere")
    with pytest.raises(DataError, match="feature maps"):
        grad_cam(linear(), random_images(), 0, "1")
    with pytest.raises(DataError, match="place="):
        grad_cam(linear(), random_images(), 0, "1", place="somewhere")


# ---- integrated gradients


def test_integrated_gradients_of_a_linear_model():
    model, images = linear(), random_images()
    weight = model[1].weight.view(4, 3, 16, 16)
    for baseline in (0.0, torch.rand(3, 16, 16)):
        found = integrated_gradients(model, images, [3, 0, 1], baseline, steps=2)
        expected = (weight[[3, 0, 1]] * (images - baseline)).sum(1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_integrated_gradients_are_complete():
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4), nn.Softplus())
    images = random_images()
    found = integrated_gradients(smooth, images, 2, 0.5, steps=32, batch_size=2)
    expected = smooth(images)[:, 2] - smooth(torch.full_like(images, 0.5))[:, 2]
    torch.testing.assert_close(found.sum((1, 2)), expected, atol=1e-5, rtol=1e-4)


# ---- attention rollout


def test_rollout_of_two_layers_by_hand():
    torch.manual_seed(0)
    first, second = (torch.rand(2, 3, 5, 5).softmax(-1) for _ in range(2))
    a, b = (0.5 * (w.mean(1) + torch.eye(5)) for w in (first, second))
    torch.testing.assert_close(attention_rollout([first, second]), (b @ a)[:, 0, 1:].reshape(2, 2, 2))
    pool = torch.rand(2, 1, 1, 4).softmax(-1)
    inner = torch.rand(2, 3, 4, 4).softmax(-1)
    expected = (pool[:, 0] @ (0.5 * (inner.mean(1) + torch.eye(4)))).reshape(2, 2, 2)
    torch.testing.assert_close(attention_rollout([inner, pool]), expected)


def test_rollout_of_tokens_that_look_at_themselves_alone():
    alone = torch.eye(4).expand(1, 2, 4, 4)
    pool = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 1, 1, 4)
    torch.testing.assert_close(attention_rollout([alone, alone, pool]).flatten(), pool.flatten())


def test_rollout_of_the_transformers():
    images = torch.rand(2, 3, 32, 32)
    compact = CompactTransformer(**TINY).eval()
    found = attention_rollout(compact(images, return_attention=True)[1])
    assert found.shape == (2, 8, 8)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))
    vit = VisionTransformer(32, 8, dim=16, depth=2, heads=2, mlp_dim=16).eval()
    weights = vit(images, return_attention=True)[1]
    assert attention_rollout(weights).shape == (2, 4, 4)
    with pytest.raises(DataError, match="no square"):
        attention_rollout(compact(images, return_attention=True)[1][:-1])


def test_the_tokens_of_the_compact_transformer_look_where_rollout_paints_them():
    """A dot on the center of a token moves that token more than any other, and its rollout lies on the dot."""
    torch.manual_seed(0)
    model = CompactTransformer(widths=(8, 8, 8, 8), blocks=(0, 0, 0, 0), heads=1, depth=1).eval()
    dark = torch.zeros(1, 3, 128, 128)
    centers = receptive_centers(model, "tokenizer", dark)
    assert centers == (0, 16)
    with torch.no_grad():
        sees = torch.zeros(8, 8, 128)  # of tokens (row 3, column), by columns of pixels of a bright stripe
        for x in range(128):
            stripe = dark.clone()
            stripe[..., x] = 1
            sees[..., x] = (model.tokenizer(stripe) - model.tokenizer(dark)).abs().sum(1)[0]
    mass = sees[3] / sees[3].sum(-1, keepdim=True)
    middle = (mass * torch.arange(128)).sum(-1)[1:-1]  # the outermost look beyond the edge
    expected = centers[0] + centers[1] * torch.arange(1, 7)
    assert (middle - expected).abs().max() < 4 < (middle - (expected + 7.5)).abs().max()
    rollout = torch.zeros(1, 8, 8)
    rollout[0, 3, 5] = 1
    painted = place_map(rollout, centers, (128, 128))[0]
    assert divmod(int(painted.argmax()), 128) == (48, 80)


# ---- scores


def test_pointing_game():
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[:, 2:4, 2:4] = True
    maps = torch.zeros(4, 8, 8)
    maps[0, 3, 3] = 1  # a hit
    maps[1, 3, 6] = 1  # three columns beside it
    maps[2, [3, 7], [3, 7]] = 1  # two maxima, one of which hits
    torch.testing.assert_close(pointing_game(maps, masks).float(), torch.tensor([1, 0, 0.5, 4 / 64]))
    assert pointing_game(maps, masks, tolerance=3)[1] == 1
    assert pointing_game(maps, masks, tolerance=2.9)[1] == 0


def test_energy_in_mask():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[:, 0, :2] = True
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 0], maps[0, 3, 3], maps[0, 2, 2] = 3.0, 1.0, -8.0
    maps[1] = 1.0
    torch.testing.assert_close(energy_in_mask(maps, masks).float(), torch.tensor([0.75, 2 / 16, 2 / 16]))
    assert maps[0, 2, 2] == -8  # nobody changed the map
    with pytest.raises(DataError, match="one shape"):
        energy_in_mask(maps[:, :3], masks)


def test_chance_is_what_a_uniform_map_scores():
    heads = torch.zeros(1, 10, 10, dtype=torch.bool)
    heads[:, 1:9, 1:9] = True
    masks = torch.zeros_like(heads)
    masks[:, 4:6, 4:8] = True
    assert chance_level(masks, heads) == energy_in_mask(heads.float(), masks) == 8 / 64
    assert chance_level(masks, heads, 1) == pointing_game(heads.float(), masks, 1) == (8 + 12) / 64
    assert chance_level(masks & False, heads, 3) == 0


def test_head_masks_fill_holes_and_leave_out_specks():
    image = np.zeros((1, 40, 40), np.uint8)
    image[0, 10:30, 8:32] = 200
    image[0, 18:24, 18:24] = 0  # a ventricle
    image[0, 1, 1] = 255
    head = head_masks(image)[0]
    assert head[20, 20] and head[12, 10] and not head[1, 1] and not head[:6].any()
    assert head_masks(np.zeros((1, 8, 8), np.uint8)).all()  # no head: the whole picture


def test_mean_interval_draws_patients():
    values = np.repeat([0.0, 1.0], 50)
    few, many = (mean_interval(values, groups) for groups in (np.repeat([0, 1], 50), np.arange(100)))
    assert few.value == many.value == 0.5
    assert (few.low, few.high) == (0, 1) and 0.35 < many.low < many.high < 0.65


# ---- the sanity check


def test_randomize_layers():
    model = CustomCNN()
    names = weighted_layers(model)
    assert names[0] == "stage1.0" and names[-1] == "head.7" and len(names) == 11
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    changed = randomize_layers(model, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in changed.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith(("head.7", "head.4"))), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    again = randomize_layers(model, ["head.4", "head.7"])
    assert all(torch.equal(a, b) for a, b in zip(changed.parameters(), again.parameters(), strict=True))
    assert not torch.equal(randomize_layers(model, 2, seed=1).head[7].weight, changed.head[7].weight)
    with pytest.raises(DataError, match="no layer 'head.2'"):
        randomize_layers(model, ["head.2"])
    with pytest.raises(DataError, match="11 layers"):
        randomize_layers(model, 12)


@pytest.mark.parametrize("name", ["vit", "compact"])
def test_a_randomized_transformer_forgets_its_positions(name):
    torch.manual_seed(0)
    small = VisionTransformer(32, 8, dim=16, depth=1, heads=2, mlp_dim=16)
    model = small if name == "vit" else CompactTransformer(**TINY)
    own = [key for key, _ in model.named_parameters(recurse=False)]
    assert "position" in own and weighted_layers(model)[0] == ""
    with torch.no_grad():
        for key in own:
            getattr(model, key).fill_(7.0)
    changed = randomize_layers(model, len(weighted_layers(model)))
    for key in own:
        values = getattr(changed, key).detach()
        assert values.std().item() == pytest.approx(1 if name == "vit" else 0.02, rel=0.35) and abs(values.mean()) < 0.5
        assert (getattr(model, key) == 7).all()
    kept = randomize_layers(model, len(weighted_layers(model)) - 1)
    assert all((getattr(kept, key) == 7).all() for key in own)


def test_rank_correlation():
    first = torch.arange(12.0).view(1, 3, 4)
    maps = torch.cat([first, first**3, -first, first * 0])
    found = rank_correlation(first.expand(4, 3, 4), maps)
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert found[3].isnan()


# ---- nothing is left behind


@pytest.mark.parametrize(
    "explain",
    [
        partial(occlusion, window=64, stride=64),
        partial(grad_cam, layer="stage4.2"),
        partial(integrated_gradients, steps=2),
    ],
)
def test_the_model_is_left_as_it_was(explain):
    torch.manual_seed(0)
    model, images = CustomCNN().train(), torch.rand(2, 3, 128, 128)
    model.stage2.eval()  # a part that was in evaluation mode before
    modes = [module.training for module in model.modules()]
    model.stage1[0].weight.grad = torch.full_like(model.stage1[0].weight, 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, second = explain(model, images, [0, 1]), explain(model, images, torch.tensor([0, 1]))
    assert torch.equal(first, second)  # no dropout
    assert not first.requires_grad and first.shape == (2, 128, 128)
    assert [module.training for module in model.modules()] == modes
    assert (model.stage1[0].weight.grad == 7).all() and model.stage2[0].weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not images.requires_grad
    broken = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).train()
    with pytest.raises(RuntimeError):
        integrated_gradients(broken, images, 0)
    assert broken.training


def test_wrong_arguments():
    for images, targets in ((torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 0), (torch.zeros(3, 16, 16), 0)):
        with pytest.raises(DataError, match="images must be float"):
            occlusion(linear(), images, targets)
    for targets in ([0, 1], 1.5):
        with pytest.raises(DataError, match="targets must be"):
            integrated_gradients(linear(), random_images(), targets)


# ---- the phantom's masks


def test_phantom_masks_are_those_of_the_pictures(tiny_phantom, data_folder):
    data = load_mri(tiny_phantom / "brain-tumor-mri")
    masks = phantom_masks(data, tiny_phantom)
    assert masks.shape == data.images.shape and masks.dtype == bool
    assert not masks[data.labels == 2].any()
    tumors = data.labels != 2
    assert (masks[tumors].sum((1, 2)) > 0).mean() > 0.8
    # Meningiomas and adenomas take up contrast agent: brighter than the rest of the head.
    bright = [
        image[mask].mean() > image[head & ~mask].mean()
        for image, mask, head in zip(data.images, masks, head_masks(data.images), strict=True)
        if mask.sum() > 20
    ]
    assert np.mean(bright) > 0.7
    # The second time they come from the cache; a subset in another order gets the same.
    assert len(list((data_folder / "cache").glob("phantom-masks-*/*.npz"))) == 9
    order = np.array([5, 0, 20])
    assert np.array_equal(phantom_masks(data.subset(order), tiny_phantom), masks[order])


def test_phantom_masks_follow_the_steps_of_the_phantom(tiny_phantom):
    """If `examine` ever draws in another order, the areas differ and `phantom_masks` refuses."""
    from brainlib.data.phantom_masks import _cut

    settings = PhantomSettings.tiny()
    patient = next(p for p in patients(settings, 0) if p.label == "meningioma")
    areas = [int((cover > 0.5).sum()) for cover in _cut(patient, settings, 0)]
    assert areas == [picture.tumor_px for picture in examine(patient, settings, 0)]


def test_phantom_masks_refuse_what_is_no_phantom(tiny_phantom, tmp_path):
    data = load_mri(tiny_phantom / "brain-tumor-mri")
    with pytest.raises(DataError, match="not the folder of a phantom"):
        phantom_masks(data, tmp_path)
    (tmp_path / "phantom.json").write_text(
        (tiny_phantom / "phantom.json").read_text().replace('"seed": 0', '"seed": 1')
    )
    with pytest.raises(DataError, match="another version"):
        phantom_masks(data, tmp_path)
    foreign = replace(data, paths=np.char.add("x", data.paths))
    with pytest.raises(DataError, match="no slice of the phantom"):
        phantom_masks(foreign, tiny_phantom)
