"""Observing activations: which tensors are shown, and that the network stays as it was."""

import pytest
import torch

from common.calibration import observe_activations, quantizers_off
from common.graph import find_sites, insert_quantizers, trace
from common.models import build_model
from common.quantizers import AffineQuantizer

EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return trace(build_model("digits_net"), EXAMPLE)


def sites(network, *names):
    return [site for site in find_sites(network, EXAMPLE) if site.name in names]


def observe(network, batches, *names, at_input=False):
    seen = []
    count = observe_activations(
        network, batches, sites(network, *names), lambda site, x: seen.append((site, x.clone())), at_input=at_input
    )
    return count, seen


def test_the_outputs_of_the_sites_are_shown_batch_by_batch(network):
    batches = [torch.randn(3, 1, 8, 8), torch.randn(5, 1, 8, 8)]
    network.eval()
    with torch.no_grad():
        expected = [torch.relu(network.bn1(network.conv1(batch))) for batch in batches]
    count, seen = observe(network, iter(batches), "relu1.output", "relu3.output")
    assert count == 2
    assert [(site, x.shape[0]) for site, x in seen] == [
        ("relu1.output", 3), ("relu3.output", 3), ("relu1.output", 5), ("relu3.output", 5)
    ]
    assert torch.equal(seen[0][1], expected[0]) and torch.equal(seen[2][1], expected[1])


def test_the_input_of_an_operator_is_shown_on_request(network):
    batch = torch.randn(3, 1, 8, 8)
    network.eval()
    with torch.no_grad():
        expected = network.bn1(network.conv1(batch))
    _, seen = observe(network, [batch], "relu1.output", at_input=True)
    assert torch.equal(seen[0][1], expected) and expected.min() < 0


def test_mode_statistics_and_gradients_stay_as_they_are(network):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _, seen = observe(network, [torch.randn(3, 1, 8, 8)], "relu1.output")
    assert network.training and network.bn1.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not seen[0][1].requires_grad


def test_quantizers_act_unless_they_are_switched_off(network):
    quantizer = AffineQuantizer(1, signed=False)  # values 0 and 1
    insert_quantizers(network, {"relu1.output": quantizer})
    network.eval()
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        quantized = network(x)
        with quantizers_off(network):
            off = network(x)
        again = network(x)
    plain = trace(build_model("digits_net"), EXAMPLE)
    plain.load_state_dict({n: v for n, v in network.state_dict().items() if "activation_quantizers" not in n})
    with torch.no_grad():
        assert torch.equal(off, plain.eval()(x))
    assert torch.equal(quantized, again) and not torch.equal(quantized, off)


def test_quantizers_come_back_after_an_error(network):
    quantizer = AffineQuantizer(1, signed=False)
    insert_quantizers(network, {"relu1.output": quantizer})
    with pytest.raises(RuntimeError, match="ours"), quantizers_off(network):
        raise RuntimeError("ours")
    assert quantizer(torch.tensor([0.7])).item() == 1.0
