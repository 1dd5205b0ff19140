"""Operators of binary networks: ReLUs and pools in front of signs, XNOR-Net's scale, XNOR and popcount."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UserError
from common.graph import insert_quantizers, trace
from common.models import build_model
from common.operators import (
    PopcountConv2d,
    ScaledConv2d,
    move_pools_first,
    operators,
    pools_before,
    relus_before,
    remove_relus,
    repeat_operators,
    scale_outputs,
    use_popcount,
)
from common.quantizers.binary import BWN, BinaryConnect, SignQuantizer


class Pooled(nn.Module):
    """convolution, batch norm, ReLU, pool, dropout, convolution, ReLU as a function, linear"""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.pool = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.dropout, self.conv2, self.linear = nn.Dropout(0.0), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.dropout(self.pool(torch.relu(self.bn1(self.conv1(x)))))
        return self.linear(F.relu(self.conv2(x)).mean((2, 3)))


def pooled():
    torch.manual_seed(0)
    network = Pooled().eval()
    network.bn1.running_mean.normal_()
    network.bn1.weight.data.uniform_(0.5, 2)
    return network


def images(channels=2, size=12):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_a_relu_is_found_through_pools_and_dropout_and_only_before_these_layers():
    network = trace(pooled(), images())
    assert relus_before(network, ["conv2"]) == ["relu"]
    assert relus_before(network, ["linear"]) == ["relu_1"]
    assert relus_before(network, ["conv1"]) == []


def test_without_relus_the_layer_reads_the_pooled_batch_norm():
    plain = pooled()
    network = trace(plain, images())
    remove_relus(network, relus_before(network, ["conv2"]))
    x = plain.pool(plain.bn1(plain.conv1(images())))
    expected = plain.linear(F.relu(plain.conv2(x)).mean((2, 3)))
    assert torch.equal(network(images()), expected)


def test_a_pool_moves_before_batch_norm():
    plain = pooled()
    plain.bn1.weight.data[0] = -1.0  # with a falling channel, the order matters
    network = trace(plain, images())
    remove_relus(network, relus_before(network, ["conv2"]))
    move_pools_first(network, pools_before(network, ["conv2"]))
    x = plain.bn1(plain.pool(plain.conv1(images())))
    expected = plain.linear(F.relu(plain.conv2(x)).mean((2, 3)))
    assert torch.equal(network(images()), expected)
    assert operators(network) == {"removed_relus": ["relu"], "pools_first": ["pool"]}


def test_a_pool_whose_batch_norm_others_read_stays():
    class Shared(Pooled):
        def forward(self, x):
            x = self.bn1(self.conv1(x))
            return self.linear(self.conv2(self.pool(x)).mean((2, 3))) + x.mean()

    assert pools_before(trace(Shared(), images()), ["conv2"]) == []


def test_residual_blocks_become_streams_without_relu():
    torch.manual_seed(0)
    plain = build_model("digits_net", num_classes=10).eval()
    network = trace(plain, images(1, 8))
    remove_relus(network, relus_before(network, ["block.conv1", "block.conv2", "conv2", "conv3"]))
    x = plain.bn1(plain.conv1(images(1, 8)))
    block = plain.block
    x = x + block.bn2(block.conv2(block.bn1(block.conv1(x))))
    x = plain.relu3(plain.bn3(plain.conv3(plain.bn2(plain.conv2(x)))))  # before the classifier it stays
    assert torch.equal(network(images(1, 8)), plain.linear(plain.pool(x).flatten(1)))


def binary_network(weight=lambda n: BWN(channels=n)):
    network = trace(pooled(), images())
    remove_relus(network, ["relu"])
    insert_quantizers(network, {"conv2.input": SignQuantizer(), "conv2.weight": weight(4)})
    network.conv2.weight_quantizer.calibrate(network.conv2.weight.detach())
    return network.eval()


def test_the_scale_is_the_mean_of_the_absolute_values_of_each_window():
    network = binary_network()
    layer = network.conv2
    x = images(4, 6)
    unscaled = layer(x) - layer.bias.reshape(-1, 1, 1)
    windows = F.unfold(x, 3).reshape(2, 36, 16).abs().mean(1).reshape(2, 1, 4, 4)
    scale_outputs(network, ["conv2"])
    assert isinstance(network.conv2, ScaledConv2d)
    torch.testing.assert_close(network.conv2(x), unscaled * windows + layer.bias.reshape(-1, 1, 1))


def test_the_scale_of_a_linear_layer_is_that_of_its_row():
    network = trace(pooled(), images())
    insert_quantizers(network, {"linear.input": SignQuantizer()})
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    expected = F.linear(torch.where(x >= 0, 1.0, -1.0), network.linear.weight) * x.abs().mean(1, keepdim=True)
    scale_outputs(network, ["linear"])
    torch.testing.assert_close(network.linear(x), expected + network.linear.bias)


def test_changes_are_recorded_kept_by_copies_and_repeated():
    network = binary_network()
    move_pools_first(network, ["pool"])
    scale_outputs(network, ["conv2"])
    changes = operators(copy.deepcopy(network))
    assert changes == {"removed_relus": ["relu"], "pools_first": ["pool"], "scaled": ["conv2"]}
    other = trace(pooled(), images())
    insert_quantizers(other, {"conv2.input": SignQuantizer(), "conv2.weight": network.conv2.weight_quantizer})
    repeat_operators(other, changes)
    assert torch.equal(other.eval()(images()), network(images()))


def test_what_a_network_does_not_have_is_refused():
    network = trace(pooled(), images())
    with pytest.raises(UserError, match="unknown change of operators 'folded_twice'"):
        repeat_operators(network, {"folded_twice": []})
    with pytest.raises(UserError, match="no node relu_7"):
        repeat_operators(network, {"removed_relus": ["relu_7"]})
    with pytest.raises(UserError, match="conv2 has no quantizers"):
        scale_outputs(network, ["conv2"])


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 130])  # words that are almost empty, full, and followed by a tail
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}])
def test_counting_signs_is_the_convolution_of_signs(channels, settings):
    torch.manual_seed(channels)
    network = trace(nn.Sequential(nn.Conv2d(channels, 5, 3, bias=False, **settings)), torch.zeros(2, channels, 9, 9))
    insert_quantizers(network, {"0.input": SignQuantizer(), "0.weight": BinaryConnect()})
    network.eval()
    x = torch.randn(2, channels, 9, 9)
    expected = network(x)
    assert use_popcount(network) == ["0"] and isinstance(network.get_submodule("0"), PopcountConv2d)
    assert torch.equal(network(x), expected)


def test_a_linear_layer_counts_signs_too():
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(70, 6, bias=False)), torch.zeros(2, 70))
    insert_quantizers(network, {"0.input": SignQuantizer(), "0.weight": BinaryConnect()})
    x = torch.randn(3, 70)
    expected = network.eval()(x)
    assert use_popcount(network) == ["0"]
    assert torch.equal(network(x), expected)


def test_layers_of_more_than_two_values_do_not_count_signs():
    assert use_popcount(trace(pooled(), images()).eval()) == []
    network = binary_network(weight=lambda n: BWN(channels=n))
    network.conv2.input_quantizer = None
    assert use_popcount(network) == []
