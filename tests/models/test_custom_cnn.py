"""CustomCNN is the study's network to the last weight, and the registry makes it by name."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brainlib.files import DataError
from brainlib.models import CustomCNN, count_parameters, create_model, list_models

STAGES = {
    "stage1": (96, 15, 15),
    "stage2": (256, 5, 5),
    "stage3": (384, 5, 5),
    "stage4": (256, 2, 2),
    "head": (4,),
}


@pytest.fixture(scope="module")
def model() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


def sine_weights(model: nn.Module) -> nn.Module:
    """Weights that follow from their position alone, of the size that keeps a signal alive through the layers."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    position = 0
    with torch.no_grad():
        for tensor in tensors:
            wave = torch.from_numpy(np.sin(0.7 * np.arange(position, position + tensor.numel()) ** 1.1))
            position += tensor.numel()
            spread = 1.5 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.2
            tensor.copy_((spread * wave).view_as(tensor))
        for name, tensor in model.named_buffers():
            if name.endswith("running_var"):
                tensor.add_(1)
    return model


def test_parameter_counts(model):
    assert count_parameters(model) == 3_001_156
    assert count_parameters(model.head) == 590_980
    assert sum(count_parameters(getattr(model, f"stage{i}")) for i in range(1, 5)) == 2_410_176


def test_frozen_parameters_and_buffers_do_not_count():
    layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    layer[0].weight.requires_grad_(False)
    assert count_parameters(layer) == 2 + 4


def test_shape_and_multiply_adds_of_each_stage(model):
    shapes, work = {}, []
    hooks = [
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape[1:]}))
        for name in STAGES
    ]
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            count = lambda layer, _, out: work.append(out[0].numel() * layer.weight[0].numel())  # noqa: E731
            hooks.append(layer.register_forward_hook(count))
        elif isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_hook(lambda layer, _, __: work.append(layer.weight.numel())))
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 128, 128)).shape == (2, 4)
    for hook in hooks:
        hook.remove()
    assert shapes == STAGES
    assert len(work) == 7 and sum(work) == pytest.approx(140e6, rel=0.01)


def test_parameters_come_in_the_order_of_the_layers(model):
    expected = []
    for stage, (inputs, outputs, kernel) in enumerate([(3, 96, 9), (96, 256, 5), (256, 384, 3), (384, 256, 3)], 1):
        expected += [
            (f"stage{stage}.0.weight", (outputs, inputs, kernel, kernel)),
            (f"stage{stage}.0.bias", (outputs,)),
        ]
        expected += [(f"stage{stage}.1.weight", (outputs,)), (f"stage{stage}.1.bias", (outputs,))]
    for place, inputs, outputs in [(1, 1024, 512), (4, 512, 128), (7, 128, 4)]:
        expected += [(f"head.{place}.weight", (outputs, inputs)), (f"head.{place}.bias", (outputs,))]
    assert [(name, tuple(p.shape)) for name, p in model.named_parameters()] == expected


def golden_input() -> torch.Tensor:
    x = torch.arange(128.0, dtype=torch.float64)
    picture = 0.5 + 0.5 * torch.sin(x[:, None] / 9) * torch.cos(x[None] / 7)
    return torch.stack([picture, picture.flip(1) ** 2, picture.T * 0.5]).float()[None]


def test_golden_output():
    golden = sine_weights(CustomCNN()).eval()
    with torch.inference_mode():
        found = golden(golden_input())[0]
    expected = torch.tensor([-0.508212, -0.053300, 0.779212, -0.669096])  # computed in float64
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_agrees_with_the_same_network_written_as_functions():
    model = sine_weights(CustomCNN()).eval()
    w = model.state_dict()

    def stage(x, i, stride=1, padding=0):
        x = F.conv2d(x, w[f"stage{i}.0.weight"], w[f"stage{i}.0.bias"], stride, padding)
        mean, variance, gain, shift = (
            w[f"stage{i}.1.{k}"].view(-1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * gain + shift
        return x * torch.tanh(F.softplus(x))

    x = F.max_pool2d(stage(golden_input(), 1, stride=4), 2)
    x = F.max_pool2d(stage(x, 2), 2)
    x = F.max_pool2d(stage(stage(x, 3, padding=1), 4, padding=1), 2).flatten(1)
    for place in (1, 4, 7):
        x = F.linear(x, w[f"head.{place}.weight"], w[f"head.{place}.bias"])
        x = x * torch.tanh(F.softplus(x)) if place < 7 else x
    with torch.inference_mode():
        torch.testing.assert_close(model(golden_input()), x, atol=1e-4, rtol=1e-4)


def test_activations_are_not_shared(model):
    found = [module for module in model.modules() if isinstance(module, nn.Mish)]
    assert len(found) == 6  # modules() would name a shared one once


def test_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    model = CustomCNN(dropout=0.0).train()
    F.cross_entropy(model(torch.rand(4, 3, 128, 128)), torch.arange(4)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before BatchNorm is taken off again with the mean: its gradient is rounding, and may be exactly 0.
    assert [name for name in without if not name.endswith(".0.bias")] == []


def test_arguments():
    model = CustomCNN(num_classes=7, dropout=0.1, activation=nn.ReLU, norm=nn.Identity).eval()
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, 7)
    kinds = [type(module) for module in model.modules()]
    assert nn.Mish not in kinds and nn.BatchNorm2d not in kinds and kinds.count(nn.ReLU) == 6
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}
    scales_and_shifts = 2 * (96 + 256 + 384 + 256)
    assert count_parameters(model) == 3_001_156 - scales_and_shifts + 3 * 129


@pytest.mark.parametrize("shape", [(2, 1, 128, 128), (2, 3, 127, 128), (3, 128, 128), (2, 3, 224, 224)])
def test_wrong_shape_is_named(model, shape):
    with pytest.raises(ValueError, match=r"\(B, 3, 128, 128\)") as caught:
        model(torch.rand(shape))
    assert str(shape) in str(caught.value)


def test_dropout_only_in_training():
    torch.manual_seed(0)
    model, x = CustomCNN(norm=nn.Identity), torch.rand(1, 3, 128, 128)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_registry():
    assert list_models() == sorted(list_models()) and "custom_cnn" in list_models()
    torch.manual_seed(3)
    first = create_model("custom_cnn", num_classes=5)
    torch.manual_seed(3)
    second = CustomCNN(num_classes=5)
    assert type(first) is CustomCNN
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(DataError, match="unknown model 'lenet'.*custom_cnn"):
        create_model("lenet")
    with pytest.raises(TypeError):
        create_model("custom_cnn", depth=3)
