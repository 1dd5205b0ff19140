"""The bit policy: round trip, groups, the view of a layer, one clear line for what is no policy."""

import json
from types import SimpleNamespace

import pytest

from common.bit_policy import BitPolicy, GroupBits, LayerBits
from common.errors import UserError
from common.graph import Read

POLICY = BitPolicy(
    "digits_net",
    (1, 8, 8),
    {"conv1.weight": 3, "conv2.weight": GroupBits("out", (8, 24), (0, 4)), "relu1.output": 8, "linear.input": 6},
)
CONTENT = {
    "version": 1,
    "model": "digits_net",
    "input_shape": [1, 8, 8],
    "sites": {
        "conv1.weight": 3,
        "conv2.weight": {"axis": "out", "groups": [8, 24], "bits": [0, 4]},
        "relu1.output": 8,
        "linear.input": 6,
    },
}


def test_file_has_the_documented_content(tmp_path):
    POLICY.save(tmp_path / "new" / "policy.json")
    assert json.loads((tmp_path / "new" / "policy.json").read_text()) == CONTENT


def test_a_saved_policy_comes_back(tmp_path):
    POLICY.save(tmp_path / "policy.json")
    assert BitPolicy.load(tmp_path / "policy.json") == POLICY


def test_bits_of_a_site():
    assert POLICY.bits("conv1.weight") == 3
    assert POLICY.bits("conv2.weight") == 3  # (8 x 0 + 24 x 4) / 32
    assert POLICY.bits("conv3.weight") == 32  # not named: float


def reading(name, *tensors):
    """A layer that reads tensors; each a chain of sites, "image" at its end for the network's input."""
    reads = tuple(Read(names, names[-1] == "image") for names in tensors)
    return SimpleNamespace(name=name, reads=reads)


@pytest.mark.parametrize(
    "layer, expected",
    [
        (reading("conv1", ("image",)), LayerBits(3, 8)),  # images have 8 bits
        (reading("conv2", ("relu1.output",)), LayerBits(POLICY.sites["conv2.weight"], 8)),
        (reading("linear", ("relu1.output",)), LayerBits(32, 6)),  # its own edge goes before the tensor
        (reading("conv1", ("pool.output", "relu1.output")), LayerBits(3, 8)),  # a pool writes what it reads
        (reading("conv1", ("relu9.output",)), LayerBits(3, 32)),
        (reading("conv1", ("relu1.output",), ("image",), ("relu9.output",)), LayerBits(3, 32)),  # the widest counts
    ],
)
def test_bits_of_a_layer(layer, expected):
    assert POLICY.layer_bits(layer) == expected


def test_the_width_of_images_can_be_given():
    assert POLICY.layer_bits(reading("conv1", ("image",)), image_bits=6).activation == 6


def test_a_fitting_policy_is_valid():
    POLICY.validate("digits_net", {*POLICY.sites, "conv3.weight"})


def test_a_policy_of_another_model_is_refused():
    with pytest.raises(UserError, match="the policy is for model 'digits_net', not for 'resnet20'"):
        POLICY.validate("resnet20", set(POLICY.sites))


def test_an_unknown_site_is_refused():
    with pytest.raises(UserError, match=r"names site 'linear\.input', which 'digits_net' does not have"):
        POLICY.validate("digits_net", set(POLICY.sites) - {"linear.input"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no policy file .*missing\.json"):
        BitPolicy.load(tmp_path / "missing.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", json.dumps(CONTENT)[:60].encode()])
def test_a_damaged_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"policy\.json is not a policy file") as caught:
        BitPolicy.load(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_policy_file(tmp_path):
    with pytest.raises(UserError, match="is not a policy file"):
        BitPolicy.load(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, '"version": 1'),
        ({"model": None}, '"model"'),
        ({"sites": []}, '"sites"'),
        ({"input_shape": "1x8x8"}, '"input_shape" as a list of integers'),
        ({"sites": {"a": 33}}, "site 'a' has no valid bit-width: 33"),
        ({"sites": {"a": -1}}, "site 'a' has no valid bit-width: -1"),
        ({"sites": {"a": 2.5}}, "site 'a' has no valid bit-width: 2.5"),
        ({"sites": {"a": True}}, "site 'a' has no valid bit-width: True"),
        ({"sites": {"a": {"axis": "up", "groups": [1], "bits": [1]}}}, "site 'a'"),
        ({"sites": {"a": {"axis": "in", "groups": [1, 2], "bits": [1]}}}, "site 'a'"),
        ({"sites": {"a": {"axis": "in", "groups": [0], "bits": [1]}}}, "site 'a'"),
        ({"sites": {"a": {"axis": "in", "groups": [], "bits": []}}}, "site 'a'"),
    ],
)
def test_wrong_content_is_named(change, message):
    with pytest.raises(UserError) as caught:
        BitPolicy.from_dict(CONTENT | change, source="mine.json")
    assert message in str(caught.value) and str(caught.value).startswith("mine.json: ")


@pytest.mark.parametrize("content", [[], None, "policy", 3])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(UserError, match="expected an object"):
        BitPolicy.from_dict(content)
