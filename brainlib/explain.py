"""Where does a classifier look? Saliency maps, a score for them, and a check that they depend on the model at all.

A saliency map is float ``(B, H, W)``, one number for each pixel of each image. All functions here take a model that
maps images ``(B, C, H, W)`` to logits ``(B, classes)``, explain the *logit* of the target class, work in evaluation
mode whatever mode the model is in, and leave its modes, weights and gradients as they were.

For teaching and research, not a medical device.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional as F

from brainlib.data.mri import bright_region
from brainlib.evaluate import Interval, Predictions, bootstrap
from brainlib.files import DataError
from brainlib.modes import evaluating

Targets = torch.Tensor | np.ndarray | Sequence[int] | int


# ---- saliency maps


@torch.no_grad()
def occlusion(
    model: nn.Module,
    images: torch.Tensor,
    targets: Targets,
    window: int = 16,
    stride: int = 8,
    *,
    fill: float | torch.Tensor = 0.0,
    batch_size: int = 128,
) -> torch.Tensor:
    """Cover a square of the image and see how far the logit of the target falls (Zeiler and Fergus 2014, arXiv
    1311.2901). A pixel gets the mean fall over all windows that cover it; a negative number says that covering helped.

    Args:
        images: float ``(B, C, H, W)``.
        targets: class to explain, one for each image or one for all.
        window, stride: side of the square and its step, in pixels. The last window stands flush with the edge.
        fill: what the square shows: a number, or a tensor that broadcasts to ``images``, such as a blurred copy.
        batch_size: images in one forward pass.

    Returns:
        ``(B, H, W)``.

    Raises:
        DataError: a window that does not fit, or a stride that leaves pixels uncovered.
    """
    images, targets = _check(images, targets)
    height, width = images.shape[2:]
    if not 1 <= window <= min(height, width) or not 1 <= stride <= window:
        raise DataError(
            f"occlusion: window={window} must lie in 1 to {min(height, width)}, stride={stride} in 1 to window"
        )
    places = list(product(_starts(height, window, stride), _starts(width, window, stride)))
    fill = torch.as_tensor(fill, dtype=images.dtype, device=images.device).expand_as(images)
    maps = []
    with evaluating(model):
        for x, y, cover in zip(*(t.split(batch_size) for t in (images, targets, fill)), strict=True):
            whole = _logits(model, x, y)
            total, count = x.new_zeros(len(x), height, width), x.new_zeros(height, width)
            step = max(1, batch_size // len(x))
            for start in range(0, len(places), step):
                squares = [
                    (..., slice(top, top + window), slice(left, left + window))
                    for top, left in places[start : start + step]
                ]
                covered = x.expand(len(squares), *x.shape).clone()  # (P, B, C, H, W)
                for copy_, square in zip(covered, squares, strict=True):
                    copy_[square] = cover[square]
                scores = _logits(model, covered.flatten(0, 1), y.repeat(len(squares))).view(len(squares), -1)
                for square, score in zip(squares, scores, strict=True):
                    total[square] += (whole - score)[:, None, None]
                    count[square] += 1
            maps.append(total / count)
    return torch.cat(maps)


def grad_cam(
    model: nn.Module,
    images: torch.Tensor,
    targets: Targets,
    layer: str,
    *,
    place: str = "centers",
    batch_size: int = 128,
) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): which maps speak for the class, and where?

    ``ReLU(sum_k a_k A_k)`` with the layer's maps ``A_k`` and their weights ``a_k``, the mean over the map of the
    gradient of the target's logit.

    Args:
        images: float ``(B, C, H, W)``.
        targets: class to explain, one for each image or one for all.
        layer: name of a module, as ``model.named_modules()`` gives it, whose output is ``(B, K, h, w)``.
        place: where the numbers of the small map go. ``"centers"`` puts each on the center of what it sees (see
            `receptive_centers`), with linear interpolation between them. ``"stretch"`` pulls the map over the whole
            image, as most implementations do: right only where the first center lies half a step from the edge, at
            ``(step - 1) / 2``. Layers that do not pad lie further in, strided convolutions that pad further out.

    Returns:
        ``(B, H, W)``, not negative; zero everywhere if no map speaks for the class.

    Raises:
        DataError: no such layer, a layer without maps, or an unknown ``place``.
    """
    images, targets = _check(images, targets)
    module = _layer(model, layer)
    if place not in ("centers", "stretch"):
        raise DataError(f"grad_cam: place={place!r} must be 'centers' or 'stretch'")
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    maps = []
    try:
        with evaluating(model), torch.enable_grad():
            for x, y in zip(images.split(batch_size), targets.split(batch_size), strict=True):
                kept.clear()
                score = _logits(model, x.detach().requires_grad_(), y).sum()
                if len(kept) != 1 or not isinstance(kept[0], torch.Tensor) or kept[0].ndim != 4:
                    raise DataError(f"grad_cam: layer {layer!r} must give feature maps (B, K, h, w), once")
                (gradient,) = torch.autograd.grad(score, kept[0])
                weights = gradient.mean((2, 3), keepdim=True)  # (B, K, 1, 1)
                maps.append(F.relu((weights * kept[0]).sum(1)).detach())  # (B, h, w)
    finally:
        handle.remove()
    small = torch.cat(maps)
    if place == "stretch":
        return F.interpolate(small[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return place_map(small, receptive_centers(model, layer, images[:1]), tuple(images.shape[2:]))


def receptive_centers(model: nn.Module, layer: str, image: torch.Tensor) -> tuple[float, float]:
    """Where the numbers of a feature map look: center of what the first sees, and step to the next, in pixels.

    Follows the convolutions and poolings that an image passes on its way to the end of ``layer``, which must be a
    chain of square kernels (as in the classifiers of this course; branches that are added must agree in their steps).
    With kernel k, stride s, padding p and dilation d, a layer moves the center by ``((k - 1) d / 2 - p)`` steps and
    multiplies the step by s.

    Args:
        image: ``(1, C, H, W)``, any.
    """
    found: list[nn.Module] = []
    last = _layer(model, layer)
    done = []
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)

    def see(module: nn.Module, *_: object) -> None:
        if not done and isinstance(module, kinds):
            found.append(module)
        if module is last:
            done.append(True)

    handles = [m.register_forward_hook(see) for m in {*model.modules()} if isinstance(m, kinds) or m is last]
    try:
        with evaluating(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    start, step = 0.0, 1.0
    for module in found:
        k, s, p = (_first(getattr(module, name)) for name in ("kernel_size", "stride", "padding"))
        start += ((k - 1) * _first(getattr(module, "dilation", 1)) / 2 - p) * step
        step *= s
    return start, step


def place_map(small: torch.Tensor, centers: tuple[float, float], size: tuple[int, int]) -> torch.Tensor:
    """Lay small maps ``(B, h, w)`` on images of ``size``, each number on its center, linear in between.

    Beyond the outermost centers the outermost numbers hold.

    Args:
        centers: position of the first number and the step to the next, as `receptive_centers` gives them.
    """
    start, step = centers
    ways = []
    for pixels, count in zip(size, small.shape[1:], strict=True):
        position = (torch.arange(pixels, device=small.device, dtype=small.dtype) - start) / step
        ways.append(2 * position / max(1, count - 1) - 1)
    grid = torch.stack(torch.meshgrid(*ways, indexing="ij")[::-1], -1)  # (H, W, 2) of x, y
    grid = grid.expand(len(small), *grid.shape)
    return F.grid_sample(small[:, None], grid, padding_mode="border", align_corners=True)[:, 0]


def integrated_gradients(
    model: nn.Module,
    images: torch.Tensor,
    targets: Targets,
    baselines: float | torch.Tensor = 0.0,
    steps: int = 32,
    *,
    batch_size: int = 128,
) -> torch.Tensor:
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365), by captum.

    The gradient of the target's logit, averaged along the straight way from the baseline to the image, times the
    difference between the two. The sum over pixels is the logit of the image less that of the baseline
    (*completeness*), up to the error of the ``steps`` points of Gauss-Legendre quadrature.

    Args:
        images: float ``(B, C, H, W)``.
        targets: class to explain, one for each image or one for all.
        baselines: what "nothing" looks like: a number, or a tensor that broadcasts to ``images``.

    Returns:
        ``(B, H, W)``, summed over channels, of both signs: negative pixels speak against the class.
    """
    from captum.attr import IntegratedGradients  # here, since it takes long to import

    images, targets = _check(images, targets)
    baselines = torch.as_tensor(baselines, dtype=images.dtype, device=images.device).expand_as(images)
    maps = []
    with evaluating(model), torch.enable_grad():
        method = IntegratedGradients(model)
        for x, y, b in zip(*(t.split(batch_size) for t in (images, targets, baselines)), strict=True):
            found = method.attribute(
                x.detach().requires_grad_(), b, y, n_steps=steps, internal_batch_size=max(batch_size, len(x))
            )
            maps.append(found.detach().sum(1))
    return torch.cat(maps)


def attention_rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): from which places did the answer's token collect?

    Heads are averaged, half of the identity is mixed in for the residual connection, and layers are multiplied.
    It knows neither the class nor the values that attention moves, so it says where information *could* come from.

    Args:
        attentions: weights of each layer, ``(B, heads, N, N)``, from first to last, as the course's transformers return
            them. The answer is read from a class token (token 0, if N is a square plus one) or, where the last entry
            is ``(B, 1, 1, N)``, from that pooling.

    Returns:
        ``(B, side, side)``, one number for each token; with pooling, those of an image sum to 1. `place_map` lays them
        on the image: the tokens of `CompactTransformer` look where ``receptive_centers(model, "tokenizer", image)``
        says, patches of p pixels start at ``(p - 1) / 2`` in steps of p.

    Raises:
        DataError: tokens that form no square, or an answer that is read from neither.
    """
    *layers, last = attentions
    pooled = last.shape[-2] == 1 and last.shape[-1] > 1
    if not pooled:
        layers.append(last)
    tokens = last.shape[-1]
    side = math.isqrt(tokens if pooled else tokens - 1)
    if side**2 != (tokens if pooled else tokens - 1):
        raise DataError(
            f"attention_rollout: {tokens} tokens are no square {'' if pooled else 'plus a class token '}"
            "(does the last entry hold the pooling, if the model pools?)"
        )
    identity = torch.eye(tokens, dtype=last.dtype, device=last.device)
    flow = identity.expand(len(last), -1, -1)
    for weights in layers:
        flow = 0.5 * (weights.mean(1) + identity) @ flow  # rows sum to 1, and so does each product
    row = (last.mean(1) @ flow)[:, 0] if pooled else flow[:, 0, 1:]  # (B, side * side)
    return row.reshape(-1, side, side).detach()


# ---- scores


def pointing_game(saliency: torch.Tensor, masks: torch.Tensor, tolerance: float = 0.0) -> torch.Tensor:
    """Does the brightest pixel of the map hit the mask? (Zhang et al. 2016, arXiv 1608.00507)

    Args:
        saliency: ``(B, H, W)``.
        masks: bool ``(B, H, W)``.
        tolerance: a hit may miss the mask by this many pixels.

    Returns:
        float64 ``(B,)``: 1 for a hit and 0 for a miss. Where several pixels are equally bright, the share of them that
        hits, so that a map that is flat scores what chance scores.
    """
    saliency, masks = _as_arrays(saliency, masks)
    brightest = saliency == saliency.max((1, 2), keepdims=True)
    hit = brightest & widen(masks, tolerance)
    return torch.from_numpy(hit.sum((1, 2)) / brightest.sum((1, 2)))


def energy_in_mask(saliency: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of the map's positive part that lies in the mask, float64 ``(B,)``.

    A map without a positive number points nowhere and scores as a uniform one, by the area of the mask in the image.

    Args:
        saliency: ``(B, H, W)``; negative numbers count as 0.
        masks: bool ``(B, H, W)``.
    """
    saliency, masks = _as_arrays(saliency, masks)
    energy = np.maximum(saliency, 0)
    energy[energy.sum((1, 2)) == 0] = 1
    return torch.from_numpy((energy * masks).sum((1, 2)) / energy.sum((1, 2)))


def chance_level(masks: torch.Tensor, heads: torch.Tensor, tolerance: float = 0.0) -> torch.Tensor:
    """What a map scores that knows the head and nothing of the tumor: the mask's share of the head, float64 ``(B,)``.

    Without tolerance that is the energy in the mask of a map that is uniform over the head; with the tolerance of
    `pointing_game`, the chance that a pixel drawn from the head is a hit.

    Args:
        masks, heads: bool ``(B, H, W)``; see `head_masks`.
    """
    masks, heads = (torch.as_tensor(m).cpu().numpy().astype(bool) for m in (masks, heads))
    return torch.from_numpy((widen(masks, tolerance) & heads).sum((1, 2)) / heads.sum((1, 2)))


def head_masks(images: np.ndarray, threshold: int = 20) -> np.ndarray:
    """The head in each slice, bool ``(N, H, W)``: the largest region brighter than the air, holes filled.

    A picture without one counts whole.

    Args:
        images: uint8 ``(N, H, W)``.
        threshold: gray level, of a copy smoothed over 5 pixels.
    """
    heads = np.empty(images.shape, bool)
    for head, image in zip(heads, images, strict=True):
        region = bright_region(image, threshold)
        head[:] = True if region is None else ndimage.binary_fill_holes(region)
    return heads


def widen(masks: np.ndarray, pixels: float) -> np.ndarray:
    """Masks, bool ``(N, H, W)``, with all that lies within ``pixels`` of them."""
    if pixels <= 0:
        return masks
    return np.stack([ndimage.distance_transform_edt(~mask) <= pixels if mask.any() else mask for mask in masks])


def mean_interval(values: torch.Tensor | np.ndarray, groups: np.ndarray, **options: int | float) -> Interval:
    """The mean of one number for each slice, with its bootstrap interval over patients (see `brainlib.evaluate`)."""
    values = np.asarray(values, float)
    items = Predictions(values[:, None], np.zeros(len(values), int), np.asarray(groups))
    return bootstrap(lambda p, _: float(p.mean()), items, **options)


# ---- does the map depend on the model?


def weighted_layers(model: nn.Module) -> list[str]:
    """Names of the modules that hold weights of their own and can draw them anew, from input to output."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "reset_parameters") and any(True for _ in module.parameters(recurse=False))
    ]


def randomize_layers(model: nn.Module, layers: Sequence[str] | int, seed: int = 0) -> nn.Module:
    """A copy of a model some of whose layers have forgotten what they learned (Adebayo et al. 2018, arXiv 1810.03292).

    Weights are drawn anew by PyTorch's law for each layer; those of BatchNorm, and its running averages, go back to
    their start; positions and class token of a transformer, the layer named ``""``, are drawn as when it was made. If
    a saliency map survives this, it does not show what the model has learned.

    Args:
        layers: names, or a number: that many of `weighted_layers` from the output on, as in the cascade of the paper.

    Raises:
        DataError: no such layer, or one without weights to draw.
    """
    known = weighted_layers(model)
    if isinstance(layers, int):
        if not 0 <= layers <= len(known):
            raise DataError(f"randomize_layers: the model has {len(known)} layers with weights, not {layers}")
        layers = known[len(known) - layers :]
    changed = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in layers:
            if name not in known:
                raise DataError(f"randomize_layers: no layer {name!r} with weights; there are: {', '.join(known)}")
            changed.get_submodule(name).reset_parameters()
    return changed


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation of two maps, pixel by pixel, float64 ``(B,)``; nan where a map is constant.

    1: they order the pixels alike. 0: one says nothing about the other.
    """
    ranks = [rankdata(m.detach().cpu().flatten(1).numpy(), axis=1) for m in (first, second)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)))


# ---- helpers


def _check(images: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(f"images must be float (B, C, H, W), not {images.dtype} {tuple(images.shape)}: see to_input()")
    targets = torch.as_tensor(targets, device=images.device)
    if targets.is_floating_point() or targets.ndim > 1 or targets.ndim == 1 and len(targets) != len(images):
        raise DataError(f"targets must be a class, or one for each of the {len(images)} images")
    return images, targets.long().expand(len(images))


def _logits(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The target's logit of each image, ``(B,)``."""
    return model(images).gather(1, targets[:, None])[:, 0]


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin: in equal steps, and once flush with the end."""
    return sorted({*range(0, length - window, stride), length - window})


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise DataError(f"the model has no layer {name!r}; model.named_modules() names them") from error


def _first(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _as_arrays(saliency: torch.Tensor, masks: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    saliency, masks = (torch.as_tensor(t).detach().cpu().numpy() for t in (saliency, masks))
    saliency, masks = saliency.astype(float), masks.astype(bool)  # copies: the caller's map stays as it is
    if saliency.ndim != 3 or saliency.shape != masks.shape:
        raise DataError(f"maps {saliency.shape} and masks {masks.shape} must have one shape (B, H, W)")
    return saliency, masks
