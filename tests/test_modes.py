"""A model lent to a task comes back: same device, same modes, weights that can still be trained."""

import pytest
import torch
from helpers import striped_slices, tiny_network
from torch import nn
from torch.optim import Adam

from brainlib import distributed
from brainlib.distributed import Processes
from brainlib.evaluate import predict
from brainlib.models import count_multiply_adds
from brainlib.modes import evaluating, exact_float32, on_device
from brainlib.train import fit

pytestmark = pytest.mark.usefixtures("one_thread")


class Moved(nn.Sequential):
    """Notes every move, and whether it happened within inference mode; a move copies, as one to a GPU does."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.moves: list[tuple[torch.device, bool]] = []

    def to(self, *arguments, **options):
        if arguments:
            self.moves.append((torch.device(arguments[0]), torch.is_inference_mode_enabled()))
            for layer in self.modules():
                for name, buffer in layer._buffers.items():
                    layer._buffers[name] = buffer.clone()
        return super().to(*arguments, **options)


def frozen_network() -> Moved:
    torch.manual_seed(0)
    model = Moved(*tiny_network()).train()
    model[1].eval()  # a frozen BatchNorm
    return model


def test_a_frozen_layer_stays_frozen_and_the_rest_in_training():
    model = frozen_network()
    modes = [module.training for module in model.modules()]
    assert True in modes and False in modes
    predict(model, striped_slices(8))
    assert [module.training for module in model.modules()] == modes
    count_multiply_adds(model, (1, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("within", [False, True])
def test_no_tensor_of_a_model_is_moved_within_inference_mode(within):
    model, data = frozen_network(), striped_slices(16)
    with torch.inference_mode(within):
        predict(model, data)
    assert len(model.moves) >= 2 and not any(inside for _, inside in model.moves)
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    fit(model, data, optimizer=Adam(model.parameters()), epochs=1, progress=False)  # it can still be trained


def test_on_device_puts_back_after_an_exception():
    layer = nn.Linear(2, 2)
    weight = layer.weight
    with pytest.raises(KeyError), on_device(layer, "cpu"):
        raise KeyError
    assert layer.weight is weight and weight.device.type == "cpu"
    with on_device(nn.ReLU(), "cpu"):  # nothing to move
        pass


def test_fit_takes_model_and_loss_to_its_device_and_back_also_after_an_exception(monkeypatch):
    class Loss(nn.CrossEntropyLoss):
        moves: list[str] = []

        def to(self, device):
            self.moves.append(str(device))
            return super().to(device)

    model, loss = frozen_network(), Loss(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    fit(model, striped_slices(8), optimizer=Adam(model.parameters()), loss=loss, epochs=1, progress=False)
    assert len(loss.moves) == 2 and torch.device(loss.moves[-1]) == loss.weight.device == torch.device("cpu")
    assert model.moves[0][0].type in ("cpu", "cuda") and model.moves[-1][0] == torch.device("cpu")
    count = len(model.moves)
    with pytest.raises(FloatingPointError):
        fit(
            model,
            striped_slices(8),
            optimizer=Adam(model.parameters()),
            loss=lambda outputs, _: outputs.sum() * float("nan"),
            epochs=1,
            progress=False,
        )
    assert len(model.moves) > count + 1 and model.moves[-1][0] == torch.device("cpu")


class Flags(nn.Module):
    """Answers with the numbers that float32 is computed by."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[bool, str, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        backend = torch.backends.cudnn
        self.seen.append((backend.allow_tf32, torch.get_float32_matmul_precision(), backend.benchmark))
        return self.scale * x.mean((2, 3)).repeat(1, 2)[:, :4]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_float32_is_exact_where_it_is_promised(monkeypatch, precision):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = torch.backends.cudnn.allow_tf32
    data = striped_slices(8)
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        model = Flags()
        predict(model, data, precision=precision)
        fit(model, data, optimizer=Adam(model.parameters()), epochs=1, precision=precision, progress=False)
        expected = (False, "highest", True) if precision == "32-true" else (True, "high", True)
        assert set(model.seen) == {expected}
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
        with pytest.raises(KeyError), exact_float32("32-true"):
            raise KeyError
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("cuda", [False, True])
def test_the_device_is_a_gpu_of_cuda_or_the_cpu_and_the_current_one(monkeypatch, cuda):
    """Fabric's own choice would be Apple's GPU where there is one, and the first GPU where another is current."""
    asked = {}
    monkeypatch.setattr(distributed, "Fabric", lambda **options: asked.update(options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    Processes().fabric("32-true")
    assert (asked["accelerator"], asked["devices"]) == (("cuda", [2]) if cuda else ("cpu", 1))
