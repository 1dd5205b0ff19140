"""BNN: the packed network computed by counting signs, and its operation count."""

import torch

from common.operators import use_popcount
from common.packing import load_packed
from common.quantizers.popcount import operation_counts
from methods.bnn import BNN


def images(count=50):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_packed_network_counts_signs_and_gives_the_same_logits(fit, tmp_path):
    module = BNN()
    fit(module, steps=10)
    network, _ = load_packed(tmp_path / "packed.safetensors")
    with torch.no_grad():
        expected = network(images())
        assert use_popcount(network) == ["block.conv1", "block.conv2", "conv2", "conv3", "linear"]
        assert torch.equal(network(images()), expected)


def test_every_sign_sees_both_signs():
    module, seen = BNN().train(), {}
    for name, quantizer in module.quantizers_of("edge").items():
        quantizer.register_forward_hook(lambda m, i, y, name=name: seen.update({name: float((y > 0).float().mean())}))
    module(images())
    assert len(seen) == 5 and all(0.2 < share < 0.8 for share in seen.values()), seen


def test_with_relus_every_sign_is_plus_one():
    module = BNN(remove_relus=False).eval()
    with torch.no_grad():
        assert torch.equal(module.network.block.conv2.input_quantizer(images().relu()), torch.ones(50, 1, 8, 8))
        logits = module(images())
    assert torch.equal(logits, logits[:1].expand_as(logits))  # whatever the image


def test_operation_count_of_a_layer():
    layer = next(layer for layer in BNN().layers if layer.name == "conv3")  # 32 channels, 4x4 outputs, 3x3 kernels
    counts = operation_counts(layer, box_scale=False)
    assert (counts.macs, counts.words, counts.multiplications, counts.scale_macs) == (147456, 4608, 512, 0)
