"""What only a GPU can show; skipped where there is none."""

import copy

import numpy as np
import pytest
import torch
from helpers import striped_slices, tiny_network
from torch import nn
from torch.optim import Adam

from brainlib.evaluate import predict
from brainlib.train import fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU of CUDA")

CPU = torch.device("cpu")


def devices(model: nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in model.state_dict().values()}


@pytest.mark.parametrize("fused", [False, True])
def test_fit_brings_model_loss_and_optimizer_home(fused):
    torch.manual_seed(0)
    model, loss = tiny_network(), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer = Adam(model.parameters(), fused=fused)
    for _ in range(2):  # the second goes on with the optimizer of the first
        fit(model, striped_slices(16), optimizer=optimizer, loss=loss, epochs=1, progress=False)
        assert devices(model) == {CPU} == {loss.weight.device}
        assert {value.device for state in optimizer.state.values() for value in state.values()} == {CPU}
    loss(model(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
    optimizer.step()  # by hand, on the CPU


def test_fit_brings_the_model_home_after_an_exception():
    model = tiny_network()
    wrong = lambda outputs, targets: outputs.sum() * float("nan")  # noqa: E731
    with pytest.raises(FloatingPointError):
        fit(model, striped_slices(8), optimizer=Adam(model.parameters()), loss=wrong, epochs=1, progress=False)
    assert devices(model) == {CPU}


def test_a_model_of_the_gpu_stays_there():
    model = tiny_network().cuda()
    fit(model, striped_slices(8), optimizer=Adam(model.parameters()), epochs=1, progress=False)
    predict(model, striped_slices(8))
    assert {device.type for device in devices(model)} == {"cuda"}


def test_a_model_that_predicted_can_be_trained():
    model = tiny_network().train()
    predict(model, striped_slices(8))
    assert devices(model) == {CPU} and not any(t.is_inference() for t in model.state_dict().values())
    model(torch.rand(4, 3, 32, 32)).sum().backward()


def test_predictions_are_those_of_the_cpu():
    """TF32, which is on by default for convolutions, would show in the fourth digit."""
    torch.manual_seed(0)
    model, data = tiny_network(0.0).eval(), striped_slices(32)
    found = predict(model, data).probabilities
    with torch.no_grad():
        images = (data.batch(torch.arange(32))[0].float() / 255).expand(-1, 3, -1, -1)
        expected = copy.deepcopy(model)(images).double().softmax(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has one GPU")
def test_the_current_gpu_predicts():
    seen = []
    model = tiny_network()
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].device))
    with torch.cuda.device(1):
        predict(model, striped_slices(8))
    assert seen == [torch.device("cuda", 1)]
