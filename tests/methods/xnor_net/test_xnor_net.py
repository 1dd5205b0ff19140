"""XNOR-Net: the scaled layers, what is stored, and the same network computed by counting signs."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from common.operators import ScaledConv2d, use_popcount
from common.packing import load_packed, read_metadata
from common.quantizers.popcount import sign_conv2d
from methods.xnor_net import XNORNet

BODY = ["block.conv1", "block.conv2", "conv2", "conv3"]


def images(count=20):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("word, scaled", [("box", True), ("none", False)])
def test_the_scale_of_the_inputs_is_a_setting(word, scaled):
    module = XNORNet(activation_scale=word)
    assert [isinstance(module.network.get_submodule(name), ScaledConv2d) for name in BODY] == [scaled] * 4
    assert not isinstance(module.network.conv1, ScaledConv2d)


def test_another_word_is_refused():
    with pytest.raises(UserError, match="activation_scale must be one of box, none, got 'mean'"):
        XNORNet(activation_scale="mean")


@pytest.mark.parametrize("word", ["box", "none"])
def test_a_trained_layer_by_popcount(fit, tmp_path, word):
    module = XNORNet(activation_scale=word)
    fit(module, steps=5)
    network, _ = load_packed(tmp_path / "packed.safetensors")
    layer = network.conv2
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    signs = F.conv2d(torch.where(x >= 0, 1.0, -1.0), torch.where(layer.weight >= 0, 1.0, -1.0), None, 2, 1)
    assert torch.equal(sign_conv2d(x, layer.weight, 2, 1).float(), signs)  # exact, with a border of zeros
    with torch.no_grad():
        float_layer, logits = layer(x), network(images())
        assert use_popcount(network) == BODY
        torch.testing.assert_close(network.conv2(x), float_layer, rtol=1e-5, atol=1e-6)
        same = network(images())
    # A value next to a threshold of a later sign may round to its other side.
    assert (same - logits).abs().median() < 1e-4


def test_the_file_tells_what_was_changed(fit, tmp_path):
    module = XNORNet()
    fit(module, steps=1)
    changes = read_metadata(tmp_path / "packed.safetensors")["operators"]
    assert changes == {"removed_relus": ["relu1", "block_relu1", "block_relu2", "relu2"], "scaled": BODY}
