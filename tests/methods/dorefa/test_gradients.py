"""DoReFa's gradient quantizer at work: where it sits and what flows through it; evaluation knows nothing of it."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch._dynamo.testing import CompileCounterWithBackend

from common.bit_policy import BitPolicy
from common.errors import UserError
from common.graph import find_sites, layer_table
from common.graph.gradients import gradient_quantizers
from common.packing import load_packed
from methods.dorefa import DoReFa


def images(count=16):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network_gradients(module, step):
    module.step = step
    module.before_step(images())
    module.zero_grad()
    module(images()).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.network.named_parameters()}


def test_all_layers_but_the_first_and_the_last():
    inner = [f"{layer.name}.gradient" for layer in DoReFa().layers[1:-1]]
    for rule in ("float", "8bit"):
        assert list(gradient_quantizers(DoReFa(gradient_bit_width=6, first_last=rule).network)) == inner
    assert len(gradient_quantizers(DoReFa(gradient_bit_width=6, first_last="same").network)) == len(inner) + 2
    assert gradient_quantizers(DoReFa().network) == {}


def test_what_enters_a_convolution_has_2_to_the_k_values_per_sample():
    module = DoReFa(gradient_bit_width=2)
    seen = {}

    def watch(layer, _, y):
        y.register_hook(lambda grad: seen.__setitem__(layer, grad))

    first, inner = (module.network.get_submodule(name) for name in ("conv1", "conv3"))
    for layer in (first, inner):
        layer.register_forward_hook(watch)
    network_gradients(module, 0)
    assert all(sample.unique().numel() <= 4 for sample in seen[inner])
    assert any(sample.unique().numel() > 4 for sample in seen[first])


def test_outputs_stay_and_gradients_are_a_function_of_the_step():
    torch.manual_seed(0)
    plain, quantized = DoReFa(), DoReFa(gradient_bit_width=6)
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(images()), quantized.train(mode)(images()))
    first, again, other = (network_gradients(quantized, step) for step in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv3.weight"], other["conv3.weight"])
    assert torch.equal(first["linear.weight"], other["linear.weight"])


def test_many_draws_give_the_plain_gradient():
    plain = network_gradients(DoReFa(), 0)
    module = DoReFa(gradient_bit_width=4)
    mean = torch.stack([network_gradients(module, step)["conv3.weight"] for step in range(200)]).mean(0)
    one = network_gradients(module, 0)["conv3.weight"]
    error = [float((g - plain["conv3.weight"]).norm() / plain["conv3.weight"].norm()) for g in (mean, one)]
    assert error[0] < error[1] / 5


def test_policy_packed_file_and_sites_are_those_without(fit, tmp_path):
    module = DoReFa(gradient_bit_width=6)
    assert module.policy() == DoReFa().policy()
    assert list(module.state_dict()) == list(DoReFa().state_dict())
    example = torch.zeros(2, 1, 8, 8)
    assert {site.name for site in find_sites(module.network, example)} == set(module.sites)
    assert layer_table(module.network, example) == module.layers
    fit(module, steps=4)
    loaded, metadata = load_packed(tmp_path / "packed.safetensors")
    assert metadata["policy"] == module.policy() == BitPolicy.load(tmp_path / "policy.json")
    with torch.no_grad():
        assert torch.equal(loaded(images()), module.eval()(images()))


class Save(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.step == 3:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_draws_the_same_noise(fit, tmp_path):
    whole, rest = DoReFa(gradient_bit_width=3), DoReFa(gradient_bit_width=3)
    fit(whole, steps=6, callbacks=[Save(tmp_path / "3.ckpt")])
    fit(rest, steps=6, resume=tmp_path / "3.ckpt")
    states = whole.network.state_dict(), rest.network.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_it_compiles_once_without_a_break():
    torch._dynamo.reset()
    module = DoReFa(gradient_bit_width=6)
    counter = CompileCounterWithBackend("aot_eager")
    expected = [network_gradients(module, step) for step in range(3)]
    module.network.compile(backend=counter, fullgraph=True)
    for step in range(3):
        found = network_gradients(module, step)
        torch.testing.assert_close(found, expected[step])
    assert counter.frame_count == 1


@pytest.mark.parametrize("width", [0, 17])
def test_widths_it_does_not_have(width):
    with pytest.raises(UserError, match="DoReFa, gradients: bit_width must be in"):
        DoReFa(gradient_bit_width=width)
