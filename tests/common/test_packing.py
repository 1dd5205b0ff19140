"""Packed files: bit-identical logits, an exact account of the bytes, one clear line for what cannot be read."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.bit_policy import BitPolicy
from common.errors import UserError
from common.graph import activation_outputs, find_sites, insert_quantizers, layer_table, trace
from common.models import build_model
from common.packing import load_packed, read_metadata, save_packed, size_account
from common.quantizers import AffineQuantizer, SymmetricQuantizer
from common.quantizers.binary import BWN
from common.quantizers.duq import H_SWISH_OFFSET, DuQ
from common.quantizers.half_wave import HWGQ
from common.quantizers.levels import LevelsQuantizer
from common.quantizers.lsq import LSQ
from common.quantizers.planes import PlanesQuantizer
from common.quantizers.ternary import TTQ

SIZES = {"conv1": 144, "block.conv1": 2304, "block.conv2": 2304, "conv2": 4608, "conv3": 9216, "linear": 320}
WIDTHS = dict(zip(SIZES, (8, 3, 1, 4, 2, 5), strict=True))
EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def network():
    """digits_net, weights at 1 to 8 bits (conv3 with a scale per channel), activations at 4, with used batch norms."""
    torch.manual_seed(0)
    network = trace(build_model("digits_net"), EXAMPLE)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 1, 8, 8))
    network.eval()
    chosen = {}
    for layer in layer_table(network, EXAMPLE):
        weight = network.get_submodule(layer.name).weight.detach()
        if layer.name == "conv3":
            quantizer = AffineQuantizer(2, channels=32)
            quantizer.scale.copy_(weight.flatten(1).abs().amax(1) / 2)
        else:
            quantizer = SymmetricQuantizer(WIDTHS[layer.name])
            quantizer.calibrate(weight, float(weight.abs().max()))
        chosen[f"{layer.name}.weight"] = quantizer
    for site in activation_outputs(find_sites(network, EXAMPLE), network):
        chosen[site.name] = SymmetricQuantizer(4, signed=not site.non_negative)
        chosen[site.name].calibrate(torch.rand(100) * 2, 2.0)
    insert_quantizers(network, chosen)
    return network


@pytest.fixture(scope="module")
def policy(network):
    sites = {f"{name}.weight": width for name, width in WIDTHS.items()}
    outputs = activation_outputs(find_sites(network, EXAMPLE), network)
    return BitPolicy("digits_net", (1, 8, 8), sites | {site.name: 4 for site in outputs})


@pytest.fixture
def packed(tmp_path, network, policy):
    save_packed(tmp_path / "packed.safetensors", network, policy, num_classes=10, method="test", note=[1, None])
    return tmp_path / "packed.safetensors"


def rewrite(path, change):
    """Load tensors and header of a packed file, let `change(tensors, header)` alter them, write them back."""
    with safe_open(path, framework="pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, header)
    save_file(tensors, path, metadata=header)


def one_line(caught):
    assert "\n" not in str(caught.value) and str(caught.value)


def test_loaded_logits_are_bit_identical(packed, network):
    loaded, _ = load_packed(packed)
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    assert not loaded.training


def test_saving_leaves_the_network_as_it_was(tmp_path, network, policy):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    save_packed(tmp_path / "packed.safetensors", network, policy, num_classes=10)
    after = network.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_bytes_are_accounted_for(packed):
    # Codes: 144 + 864 + 288 + 2304 + 2304 + 200 bytes.
    # Tables: scale and zero point of 5 tensors and 32 channels, five numbers of 5 activations: (10 + 64 + 25) x 4.
    # Floats: batch norm 4 x (16 + 16 + 16 + 32 + 32) values, 10 biases: 458 x 4.
    account = size_account(packed)
    header = account.pop("header_bytes")
    size = packed.stat().st_size
    assert account == {"codes_bytes": 6104, "tables_bytes": 396, "floats_bytes": 1832, "file_bytes": size}
    assert 6104 + 396 + 1832 + header == size and header > 0


def test_saving_returns_the_account(tmp_path, network, policy):
    account = save_packed(tmp_path / "a.safetensors", network, policy, num_classes=10)
    assert account == size_account(tmp_path / "a.safetensors")


def test_policy_and_metadata_come_back(packed, policy):
    _, metadata = load_packed(packed)
    assert metadata["policy"] == policy
    assert metadata["metadata"] == {"method": "test", "note": [1, None]}
    assert metadata["network"] == {"num_classes": 10, "model_args": {}}
    assert metadata["encodings"]["block.conv1.weight"]["bits"] == [3]
    assert read_metadata(packed) == metadata


def test_a_float_network_packs_too(tmp_path):
    network = trace(build_model("digits_net"), EXAMPLE).eval()
    save_packed(tmp_path / "float.safetensors", network, BitPolicy("digits_net", (1, 8, 8), {}), num_classes=10)
    loaded, _ = load_packed(tmp_path / "float.safetensors")
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    assert size_account(tmp_path / "float.safetensors")["codes_bytes"] == 0


def test_an_existing_file_is_replaced_at_once(packed, network, policy, monkeypatch):
    before = packed.read_bytes()

    def fails(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("common.packing.os.replace", fails)
    with pytest.raises(KeyboardInterrupt):
        save_packed(packed, network, policy, num_classes=10, method="another")
    assert packed.read_bytes() == before


def test_metadata_that_json_does_not_hold_is_refused(tmp_path, network, policy):
    with pytest.raises(UserError, match=r"packing .* not JSON serializable") as caught:
        save_packed(tmp_path / "packed.safetensors", network, policy, num_classes=10, thing=object())
    one_line(caught)


def test_a_folder_that_does_not_exist_is_named(tmp_path, network, policy):
    with pytest.raises(UserError, match=r"cannot write .*nowhere") as caught:
        save_packed(tmp_path / "nowhere" / "packed.safetensors", network, policy, num_classes=10)
    one_line(caught)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no packed file") as caught:
        load_packed(tmp_path / "missing.safetensors")
    one_line(caught)


@pytest.mark.parametrize("kept", [0, 5, 100, 5000])
def test_a_truncated_file_is_named(packed, kept):
    packed.write_bytes(packed.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"packed\.safetensors is not a readable safetensors file") as caught:
        load_packed(packed)
    one_line(caught)


def test_a_weights_file_is_no_packed_model(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="is not a packed model") as caught:
        load_packed(tmp_path / "weights.safetensors")
    one_line(caught)


DAMAGES = {
    "codes too short": lambda t, h: t.update({"codes/conv1.weight": t["codes/conv1.weight"][:-1]}),
    "codes too long": lambda t, h: t.update({"codes/conv1.weight": t["codes/conv1.weight"].repeat(2)}),
    "codes missing": lambda t, h: t.pop("codes/conv1.weight"),
    "scale missing": lambda t, h: t.pop("tables/conv1.weight.scale"),
    "scales too few": lambda t, h: t.update({"tables/conv3.weight.scale": t["tables/conv3.weight.scale"][:5]}),
    "grid missing": lambda t, h: t.pop("tables/relu1.output.scale"),
    "grid of another shape": lambda t, h: t.update({"tables/relu1.output.scale": torch.ones(3)}),
    "batch norm missing": lambda t, h: t.pop("floats/bn1.weight"),
    "unknown tensor": lambda t, h: t.update({"floats/bn9.weight": torch.ones(3)}),
    "batch norm of another shape": lambda t, h: t.update({"floats/bn1.weight": torch.ones(3)}),
    "another network": lambda t, h: h.update(network=json.dumps({"num_classes": 7, "model_args": {}})),
    "unknown argument": lambda t, h: h.update(network=json.dumps({"num_classes": 10, "model_args": {"depth": 3}})),
    "network is no object": lambda t, h: h.update(network="[]"),
    "arguments are no object": lambda t, h: h.update(network=json.dumps({"num_classes": 10, "model_args": 3})),
    "images of another shape": lambda t, h: h.update(policy=h["policy"].replace("[1, 8, 8]", "[3, 8, 8]")),
    "no network": lambda t, h: h.pop("network"),
    "header is not JSON": lambda t, h: h.update(encodings="{"),
    "encodings are no object": lambda t, h: h.update(encodings="[]"),
    "an encoding without bits": lambda t, h: h.update(encodings=h["encodings"].replace('"bits"', '"wide"')),
    "an encoding is no object": lambda t, h: h.update(encodings=json.dumps({"conv1.weight": 3})),
    "an encoding of another kind": lambda t, h: h.update(encodings=h["encodings"].replace('"affine"', '"planes"')),
    "another format": lambda t, h: h.update(format="packed-network-9"),
    "policy of an unknown model": lambda t, h: h.update(policy=h["policy"].replace("digits_net", "digits_not")),
    "policy names an unknown site": lambda t, h: h.update(policy=h["policy"].replace("conv3.w", "conv9.w")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_content_is_one_line(packed, damage):
    rewrite(packed, DAMAGES[damage])
    with pytest.raises(UserError) as caught:
        load_packed(packed)
    one_line(caught)


def test_a_class_path_in_a_file_is_not_imported(packed):
    rewrite(packed, lambda t, h: h.update(policy=h["policy"].replace("digits_net", "antigravity.Thing")))
    with pytest.raises(UserError, match=r"confirm it with --model antigravity\.Thing"):
        load_packed(packed)


def test_a_class_path_that_the_user_gives_is(packed, network):
    name = "common.models.digits_net.DigitsNet"
    rewrite(packed, lambda t, h: h.update(policy=h["policy"].replace('"digits_net"', f'"{name}"')))
    loaded, _ = load_packed(packed, model=name)
    images = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_loading_never_fetches_pretrained_weights(packed, monkeypatch):
    arguments = {}
    monkeypatch.setattr(
        "common.packing.build_model", lambda name, **given: arguments.update(given) or build_model(name)
    )
    model_args = {"pretrained": True, "checkpoint_path": "x", "weights": "y"}
    network = json.dumps({"num_classes": 10, "model_args": model_args})
    rewrite(packed, lambda t, h: h.update(network=network))
    load_packed(packed)
    assert arguments == {"num_classes": 10}


def scaled(quantizer, weight):
    quantizer.scale.copy_(weight.flatten(1).abs().amax(1))
    return quantizer


def unequal(quantizer):
    """A DuQ whose clipping level is not its output scale, also after calibration."""
    calibrate = quantizer.calibrate

    def then_move(x):
        calibrate(x)
        with torch.no_grad():
            quantizer.transform.raw_clip.add_(0.3)

    quantizer.calibrate = then_move
    return quantizer


WEIGHTS = {
    "levels": lambda weight: TTQ(),
    "levels per channel": lambda weight: scaled(LevelsQuantizer(3, channels=len(weight)), weight),
    "planes": lambda weight: PlanesQuantizer(3),
    "planes per channel": lambda weight: BWN(channels=len(weight)),
    "offset": lambda weight: LSQ(4, channels=len(weight), offset=True),
}
INPUTS = {
    "levels": lambda: HWGQ(2),
    "tied downwards": lambda: LevelsQuantizer(2, signed=False, levels=[0.0, 0.25, 1.0], ties_up=False),
    "offset": lambda: LSQ(3, signed=False, offset=True, batched=True),
    "planes": lambda: PlanesQuantizer(2),
    "rescaled": lambda: unequal(DuQ(3, signed=False)),
    "rescaled with an offset": lambda: unequal(DuQ(3, signed=False, offset=H_SWISH_OFFSET)),
    "rescaled, signed": lambda: unequal(DuQ(3)),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_levels_planes_and_offsets_come_back_bit_by_bit(tmp_path, weights, inputs):
    torch.manual_seed(1)
    network = trace(build_model("digits_net"), EXAMPLE)
    chosen, codes = {}, 0
    for layer in layer_table(network, EXAMPLE):
        weight = network.get_submodule(layer.name).weight.detach()
        quantizer = WEIGHTS[weights](weight)
        if hasattr(quantizer, "calibrate"):
            quantizer.calibrate(weight)
        chosen[f"{layer.name}.weight"] = quantizer
        codes += -(-weight.numel() * int(quantizer.bit_width) // 8)
        if layer.name != "conv1":
            chosen[f"{layer.name}.input"] = INPUTS[inputs]()
            if hasattr(chosen[f"{layer.name}.input"], "calibrate"):
                chosen[f"{layer.name}.input"].calibrate(torch.rand(500))
    insert_quantizers(network, chosen)
    network.eval()
    policy = BitPolicy("digits_net", (1, 8, 8), {name: int(q.bit_width) for name, q in chosen.items()})
    path = tmp_path / "packed.safetensors"
    account = save_packed(path, network, policy, num_classes=10)
    assert account["codes_bytes"] == codes
    assert sum(account[f"{part}_bytes"] for part in ("codes", "tables", "floats", "header")) == path.stat().st_size
    loaded, metadata = load_packed(path)
    assert metadata["policy"] == policy
    x = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize(
    "part, value, message",
    [
        ("levels", torch.tensor([1.0, 0.0, 2.0]), "levels must be 2 to 4 ascending numbers"),
        ("thresholds", torch.zeros(7), "thresholds must be 2 ascending numbers"),
        ("bit_width", torch.tensor(99.0), "bit_width of LevelsQuantizer must be one of"),
    ],
)
def test_a_damaged_table_of_levels_is_refused(tmp_path, part, value, message):
    network = trace(build_model("digits_net"), EXAMPLE)
    insert_quantizers(network, {"conv2.input": INPUTS["tied downwards"]()})
    path = tmp_path / "packed.safetensors"
    save_packed(path, network.eval(), BitPolicy("digits_net", (1, 8, 8), {"conv2.input": 2}), num_classes=10)

    def change(tensors, header):
        tensors[f"tables/conv2.input.{part}"] = value

    rewrite(path, change)
    with pytest.raises(UserError, match=message) as caught:
        load_packed(path)
    one_line(caught)


def test_a_grid_that_no_file_holds_is_named(tmp_path):
    class Strange(LevelsQuantizer):
        def inference_form(self):
            return self

    network = trace(build_model("digits_net"), EXAMPLE)
    insert_quantizers(network, {"conv2.input": Strange(2)})
    with pytest.raises(TypeError, match="holds no activation grid of type Strange"):
        save_packed(tmp_path / "x", network, BitPolicy("digits_net", (1, 8, 8), {"conv2.input": 2}), num_classes=10)
