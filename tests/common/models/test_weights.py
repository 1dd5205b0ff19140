import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from common.models import build_model, load_weights, state_hash


@pytest.fixture
def digits():
    torch.manual_seed(1)
    return build_model("digits_net")


def save(state: dict[str, torch.Tensor], path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save(state, path)
    return path


def fails(model, path, message: str) -> None:
    """Loading fails with one line, and the network keeps its values."""
    before = state_hash(model)
    with pytest.raises(UserError, match=message) as error:
        load_weights(model, path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert state_hash(model) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt", ".th", ".ckpt", ".pth.tar"])
def test_formats_give_equal_weights_and_hashes(digits, tmp_path, suffix):
    path = save(digits.state_dict(), tmp_path / f"weights{suffix}")
    other = build_model("digits_net")
    assert state_hash(other) != state_hash(digits)
    assert load_weights(other, path) == state_hash(other) == state_hash(digits)
    for name, value in digits.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.0},
        lambda state: {"model": state, "epoch": 3, "args": {"lr": 0.1}},
        lambda state: {"net": {f"module.{k}": v for k, v in state.items()}, "acc": 95.0},
        lambda state: {
            "pytorch-lightning_version": "2.6.0",
            "state_dict": {f"network._orig_mod.{k}": v for k, v in state.items()},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1)}}}],
        },
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["akamaster", "model", "kuangliu", "lightning", "without num_batches_tracked"],
)
def test_checkpoints_are_unwrapped(digits, tmp_path, wrap):
    torch.save(wrap(digits.state_dict()), tmp_path / "checkpoint.pth")
    assert load_weights(build_model("digits_net"), tmp_path / "checkpoint.pth") == state_hash(digits)


def test_a_module_that_is_itself_called_network_keeps_its_name(tmp_path):
    model = nn.ModuleDict({"network": nn.Linear(2, 2)})
    path = save(model.state_dict(), tmp_path / "weights.pth")
    assert load_weights(nn.ModuleDict({"network": nn.Linear(2, 2)}), path) == state_hash(model)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_half_precision_is_cast(tmp_path, suffix):
    model = nn.Linear(2, 1)
    state = {"weight": torch.tensor([[0.5, -1.25]]).half(), "bias": torch.tensor([3.0]).half()}
    load_weights(model, save(state, tmp_path / f"weights{suffix}"))
    assert model.weight.dtype == torch.float32
    assert model.weight.tolist() == [[0.5, -1.25]] and model.bias.tolist() == [3.0]


def test_arrays_of_foreign_byte_order(tmp_path):
    model = nn.Linear(2, 1)
    np.savez(tmp_path / "weights.npz", weight=np.array([[0.5, -1.25]], dtype=">f4"), bias=np.array([3.0], dtype=">f4"))
    load_weights(model, tmp_path / "weights.npz")
    assert model.weight.tolist() == [[0.5, -1.25]]


def test_state_hash_is_the_documented_sha256():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(0.0)
    # printf 'bias (1,)\n\0\0\0\0weight (1, 1)\n\0\0\x80\x3f' | sha256sum
    assert state_hash(model) == "c8e661ddac9a30e5"


def test_state_hash_sees_values_names_and_shapes_but_no_counters(digits):
    before = state_hash(digits)
    digits.bn1.num_batches_tracked += 5
    assert state_hash(digits) == before
    digits.bn1.running_mean[3] += 1e-3
    assert state_hash(digits) != before
    zeros = {name: torch.zeros(2, 3) for name in ("a", "b")}
    hashes = set()
    for name, value in (("a", zeros["a"]), ("b", zeros["b"]), ("a", zeros["a"].reshape(3, 2))):
        module = nn.Module()
        module.register_buffer(name, value)
        hashes.add(state_hash(module))
    assert len(hashes) == 3


def test_missing_entry(digits, tmp_path):
    state = digits.state_dict()
    del state["conv2.weight"], state["bn3.bias"]
    path = save(state, tmp_path / "weights.pth")
    fails(build_model("digits_net"), path, r"conv2.weight \(32, 16, 3, 3\) is missing \(and 1 further mismatches\)")


def test_unexpected_entry(digits, tmp_path):
    path = save({**digits.state_dict(), "extra.weight": torch.zeros(2, 3)}, tmp_path / "weights.safetensors")
    fails(build_model("digits_net"), path, r"extra.weight \(2, 3\) is not in the network")


def test_wrong_shape(digits, tmp_path):
    path = save(digits.state_dict(), tmp_path / "weights.npz")
    message = r"linear.weight has shape \(10, 32\), the network expects \(4, 32\)"
    fails(build_model("digits_net", num_classes=4), path, message)


def test_weights_of_another_network(digits, tmp_path):
    path = save(digits.state_dict(), tmp_path / "weights.pth")
    fails(build_model("resnet20"), path, r"do not fit CifarResNet: conv1.weight has shape \(16, 1, 3, 3\)")


def test_integer_codes_are_no_weights(tmp_path):
    path = save({"weight": torch.zeros(1, 2, dtype=torch.uint8), "bias": torch.zeros(1)}, tmp_path / "weights.npz")
    fails(nn.Linear(2, 1), path, "weight holds torch.uint8, the network expects floating-point values")


def test_values_that_are_not_finite(tmp_path):
    path = save({"weight": torch.tensor([[1.0, float("nan")]]), "bias": torch.zeros(1)}, tmp_path / "weights.npz")
    fails(nn.Linear(2, 1), path, "weight holds NaN or infinite values")


def test_an_entry_with_and_without_prefix(tmp_path):
    linear = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
    path = save({**linear, "module.weight": torch.ones(1, 2)}, tmp_path / "weights.pth")
    fails(nn.Linear(2, 1), path, "holds weight twice")


def test_loading_what_fits_warns(digits, tmp_path):
    path = save(digits.state_dict(), tmp_path / "weights.pth")
    model = build_model("digits_net", num_classes=4)
    with pytest.warns(UserWarning, match="linear.weight has shape .* keeps its own values"):
        load_weights(model, path, strict=False)
    assert torch.equal(model.conv3.weight, digits.conv3.weight)


def test_missing_file(digits, tmp_path):
    fails(digits, tmp_path / "nothing.pth", "does not exist")


def test_unknown_suffix(digits, tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"123")
    fails(digits, tmp_path / "weights.h5", "unknown suffix; expected .safetensors, .npz, .pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".ckpt"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file(digits, tmp_path, suffix, kept):
    path = save(digits.state_dict(), tmp_path / f"weights{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    fails(digits, path, "damaged")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_file_of_something_else(digits, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_text("<html>404: not found</html>\n" * 50)
    fails(digits, path, "damaged")


def test_reasons_of_many_lines_become_one(digits, tmp_path, monkeypatch):
    def load_file(_path):
        raise RuntimeError("first reason\nsecond reason")

    monkeypatch.setattr("safetensors.torch.load_file", load_file)
    fails(digits, save(digits.state_dict(), tmp_path / "weights.safetensors"), "first reason$")


class Harmful:
    def __reduce__(self):
        return (print, ("code in a weights file has run",))


def test_pickled_code_does_not_run(digits, tmp_path, capsys):
    torch.save({"state_dict": digits.state_dict(), "extra": Harmful()}, tmp_path / "weights.pth")
    fails(digits, tmp_path / "weights.pth", "holds more than tensors; save the network's state_dict")
    np.savez(tmp_path / "weights.npz", weight=np.array([Harmful()], dtype=object))
    fails(digits, tmp_path / "weights.npz", "Object arrays cannot be loaded")
    assert "has run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.zeros(3), "holds no state dict, but a value of type Tensor"),
        ({}, "holds no state dict, but nothing"),
        ({"epoch": 3, "weight": torch.zeros(1)}, "holds no state dict: entry 'epoch' is a value of type int"),
    ],
)
def test_torch_file_without_state_dict(digits, tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    fails(digits, tmp_path / "weights.pth", message)


def test_npz_with_a_single_unnamed_array(digits, tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "weights.npz").write_bytes(buffer.getvalue())
    fails(digits, tmp_path / "weights.npz", "a single array without a name")


@pytest.mark.parametrize("name, file", [("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th")])
def test_published_cifar_resnets_load(shared_data, name, file):
    model = build_model(name)
    load_weights(model, shared_data / file)
    published = torch.load(shared_data / file, map_location="cpu", weights_only=True)["state_dict"]
    assert torch.equal(model.layer3[1].bn2.running_var, published["module.layer3.1.bn2.running_var"])
    assert torch.equal(model.linear.bias, published["module.linear.bias"])


def test_published_squeezenet_loads_from_half_precision(shared_data):
    model = build_model("squeezenet1_1")
    load_weights(model, shared_data / "squeezenet1_1_torchvision_fp16.npz")
    assert model.features[0].weight.dtype == torch.float32


def test_published_mobilenet_v2_computes_the_published_function(shared_data):
    path = shared_data / "mobilenetv2_gluon_backbone_fp32.npz"
    model = build_model("mobilenet_v2_relu", num_classes=10).eval()
    load_weights(model, path)
    state = {name: torch.from_numpy(array) for name, array in np.load(path).items()}

    def conv_bn(x, conv, bn, stride=1, groups=1, relu=True):
        weight = state[conv + ".weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        statistics = (state[bn + key] for key in (".running_mean", ".running_var", ".weight", ".bias"))
        x = F.batch_norm(x, *statistics, eps=1e-5)
        return x.relu() if relu else x

    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        x = conv_bn(images, "features.0.0", "features.0.1", 2)
        for index, stride in enumerate([1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1]):
            block = f"features.{index + 1}.conv"
            y = conv_bn(x, block + ".0.0", block + ".0.1")
            y = conv_bn(y, block + ".1.0", block + ".1.1", stride, y.shape[1])
            y = conv_bn(y, block + ".2", block + ".3", relu=False)
            x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
        x = conv_bn(x, "features.18.0", "features.18.1").mean((2, 3))
        expected = F.linear(x, state["classifier10.weight"], state["classifier10.bias"])
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
