"""Packed files of networks whose structure calibration changed."""

import json
import sys
import types

import pytest
import torch
from safetensors import safe_open
from torch import nn

from common.errors import UserError
from common.graph import find_sites, trace
from common.graph.rewrites import describe_changes, repeat_changes
from common.models import build_model
from common.packing import load_packed
from common.training.calibration import calibrate
from data import DigitsData
from methods.ptq import PTQ


class Capped(nn.Module):
    """Two pairs with ReLU6, one of them functional; the last convolution has no batch norm and no bias."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6()
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, num_classes, 1, bias=False)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = nn.functional.relu6(self.bn2(self.conv2(x)))
        return self.conv3(x).mean((2, 3))


@pytest.fixture
def capped(monkeypatch):
    monkeypatch.setitem(sys.modules, "capped_net", types.ModuleType("capped_net"))
    sys.modules["capped_net"].Capped = Capped
    return {"model": "capped_net.Capped", "num_classes": 10, "input_shape": [1, 8, 8]}


@pytest.mark.parametrize("correction", ["none", "empirical"])
def test_caps_and_made_biases_survive_a_packed_file(capped, correction, tmp_path):
    module = PTQ(**capped, equalization=True, bias_correction=correction)
    calibrate(module, DigitsData(batch_size=16, subset=128), tmp_path)
    with safe_open(tmp_path / "packed.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["network"])
    assert about["folded"] is True and about["activations"] == {"act1": 6, "relu6": 6}
    loaded, _ = load_packed(tmp_path / "packed.safetensors", model=capped["model"])
    x = torch.randn(20, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), module.eval()(x))
    assert (loaded.conv3.bias is not None) == (correction != "none")


def test_an_unchanged_network_is_not_told_to_be_folded():
    example = torch.zeros(2, 1, 8, 8)
    network = trace(build_model("digits_net"), example)
    assert describe_changes(network) == {}
    names = [site.name for site in find_sites(network, example)]
    repeat_changes(network, {}, [])
    assert [site.name for site in find_sites(network, example)] == names


@pytest.mark.parametrize("activations", [{"relu1": 3}, {"nowhere": 0}, ["relu1"], {"relu1": "x"}])
def test_a_header_that_does_not_fit_is_one_line(activations):
    network = trace(build_model("digits_net"), torch.zeros(2, 1, 8, 8))
    with pytest.raises(UserError, match="file does not fit: the network has no ReLU6 "):
        repeat_changes(network, {"activations": activations}, [])
