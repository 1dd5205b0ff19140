import json
import subprocess
import sys

import matplotlib.image
import pytest

from common.bit_policy import BitPolicy, GroupBits
from common.command_line import guarded
from hardware import cost_model, network, target_names, uniform_widths
from hardware.cli import main

DIGITS = ("--model", "digits_net")


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (status, standard output, standard error), as `python -m hardware` would."""

    def run(*arguments):
        status = guarded(main, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def save(tmp_path):
    """save(model, **widths of sites) -> file of a policy of all weights and read tensors at 4 bits, with changes."""

    def save(model="digits_net", weights=4, activations=4, changes=None):
        net = network(model)
        sites = {f"{layer.name}.weight": weights for layer in net.layers}
        sites |= {read.names[-1]: activations for layer in net.layers for read in layer.reads if not read.is_image}
        sites = {name: bits for name, bits in (sites | (changes or {})).items() if bits is not None}
        path = tmp_path / "policy.json"
        BitPolicy(model, net.input_shape, sites).save(path)
        return path

    return save


# -- what it prints --------------------------------------------------------------------------------------------------


def test_an_error_in_the_shell_is_one_line_and_status_2(repository):
    command = [sys.executable, "-m", "hardware", *DIGITS, "--bits", "4/4", "--target", "phone"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown target 'phone'; choose one of bismo-edge, ")
    assert done.stderr.count("\n") == 1


def test_text(run):
    status, out, err = run("--model", "mobilenet_v2", "--bits", "4/4", "--target", "bismo-edge")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "mobilenet_v2 at 3x224x224, 4/4: latency 53.7909 ms",
        "bismo-edge: bit-serial 8x8 array on a small FPGA (BISMO), per image, without first and last layer",
    ]


def test_sizes_are_given_in_mib_too(run):
    _, out, _ = run("--model", "mobilenet_v2", "--bits", "8/8", "--target", "size")
    assert "size 3,469,760 B (3.309 MiB)" in out


def test_layers(run):
    status, out, _ = run("--model", "mobilenet_v2", "--bits", "4/4", "--target", "bismo-edge", "--layers")
    lines = out.splitlines()[3:]
    assert (status, len(lines)) == (0, 54)
    assert lines[0].split() == ["layer", "kind", "kernel", "in", "->", "out", "MACs", "W", "A", "ms", "share"]
    assert lines[1].split()[:5] == ["features.0.0", "conv", "3x3", "3", "->"]
    assert lines[1].endswith("not counted")
    # 4 products of 1568 row tiles, each fetched in 256 cycles, and 1344 cycles to begin: 1,611,008 cycles at 200 MHz
    first_counted = [
        "features.1.conv.0.0",
        "depthwise",
        "3x3",
        "32",
        "->",
        "32",
        "3,612,672",
        "4",
        "4",
        "8.05504",
        "15.0%",
    ]
    assert lines[2].split() == first_counted
    assert lines[-1].split()[:3] == ["classifier.1", "linear", "-"]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[2:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.05 * 51)


@pytest.mark.parametrize("target", ["bismo-edge", "bitfusion", "bitfusion-energy", "size", "bitops"])
def test_json(run, target):
    status, out, err = run("--model", "mobilenet_v2", "--bits", "4/6", "--target", target, "--json")
    content = json.loads(out)
    assert (status, err) == (0, "")
    assert {"model", "target", "unit", "total", "layers"} <= set(content)
    model, layers = cost_model(target), network("mobilenet_v2").layers
    assert (content["model"], content["target"], content["unit"]) == ("mobilenet_v2", target, model.unit)
    assert content["input_shape"] == [3, 224, 224]
    assert [layer["name"] for layer in content["layers"]] == [layer.name for layer in layers]
    expected = model.network_cost(layers, uniform_widths(layers, 4, 6))
    assert [layer["cost"] for layer in content["layers"]] == list(expected.costs)
    assert content["total"] == sum(layer["cost"] for layer in content["layers"])
    assert [layer["counted"] for layer in content["layers"]] == list(expected.counted)
    assert (content["layers"][5]["weight_bits"], content["layers"][5]["activation_bits"]) == (4, 6)
    assert sum(layer["macs"] for layer in content["layers"]) == 300_774_272


def test_first_and_last_layer_may_have_widths_of_their_own(run):
    _, out, _ = run(*DIGITS, "--bits", "2/3", "--first-last-bits", "8", "--target", "bitops", "--json")
    layers = json.loads(out)["layers"]
    widths = [(layer["weight_bits"], layer["activation_bits"]) for layer in layers]
    assert widths == [(8, 8), *[(2, 3)] * (len(layers) - 2), (8, 8)]


def test_input_shape_and_number_of_classes(run):
    _, out, _ = run(*DIGITS, "--bits", "4/4", "--target", "bitops", "--input-shape", "1,16,16", "--json")
    assert json.loads(out)["input_shape"] == [1, 16, 16]
    _, out, _ = run(*DIGITS, "--bits", "4/4", "--target", "size", "--num-classes", "20", "--json")
    _, usual, _ = run(*DIGITS, "--bits", "4/4", "--target", "size", "--json")
    assert json.loads(out)["layers"][-1]["weights"] == 2 * json.loads(usual)["layers"][-1]["weights"]


def test_a_class_path_with_its_input_shape(run):
    arguments = ("--model", "torchvision.models.SqueezeNet", "--bits", "4/4", "--target", "bitops")
    status, out, _ = run(*arguments, "--input-shape", "3,224,224")
    assert (status, out.splitlines()[0]) == (
        0,
        "torchvision.models.SqueezeNet at 3x224x224, 4/4: bitops 1.31028e+10",  # 818,924,576 MACs
    )
    assert run(*arguments)[0] == 2  # it does not say for which size it was made


# -- policies --------------------------------------------------------------------------------------------------------


def test_a_policy_file_names_its_network(run, save):
    path = save(weights=3, activations=5)
    status, out, _ = run("--policy", path, "--target", "bitops", "--json")
    content = json.loads(out)
    assert (status, content["model"]) == (0, "digits_net")
    layers = network("digits_net").layers
    assert content["total"] == layers[0].num_macs * 3 * 8 + sum(layer.num_macs * 3 * 5 for layer in layers[1:])
    _, text, _ = run("--policy", path, "--target", "bitops")
    assert text.startswith("digits_net at 1x8x8, policy.json: bitops ")
    assert run(*DIGITS, "--policy", path, "--target", "bitops")[1] == text


def test_a_policy_with_groups_of_channels(run, save):
    layer = network("digits_net").layers[1]
    groups = GroupBits("out", (1, layer.out_channels - 1), (8, 2))
    path = save(changes={f"{layer.name}.weight": groups})
    _, out, _ = run("--policy", path, "--target", "size", "--json")
    found = json.loads(out)["layers"][1]
    assert found["weight_bits"] == {"axis": "out", "groups": list(groups.groups), "bits": [8, 2]}
    per_channel = layer.num_weights // layer.out_channels
    assert found["cost"] == -(-per_channel * (8 + 2 * (layer.out_channels - 1)) // 8)
    _, out, _ = run("--policy", path, "--target", "size", "--layers")
    assert f"~{groups.mean:.2f}" in out


def test_a_measured_table(run, save, tmp_path):
    layers = network("digits_net").layers
    table = tmp_path / "my.phone-2" / "t.csv"
    table.parent.mkdir()
    rows = [f"{layer.name},4,{a},0.5\n" for layer in layers for a in (4, 8)]
    table.write_text("# unit: us\nlayer,weight_bits,activation_bits,cost\n" + "".join(rows))
    status, out, _ = run("--policy", save(), "--target", f"table:{table}", "--json")
    content = json.loads(out)
    assert (status, content["unit"], content["target"]) == (0, "us", f"table:{table}")
    assert content["total"] == 0.5 * len(layers)
    status, _, err = run(*DIGITS, "--bits", "2/2", "--target", f"table:{table}")
    assert (status, err) == (2, f"error: {table} has no measurement of layer 'conv1' at 2/2 bits\n")
    status, out, _ = run("--list", "--target", f"table:{table}")
    assert (status, out.splitlines()[0]) == (
        0,
        f"table:{table}: latency [us], measured, {2 * len(layers)} pairs of widths of {len(layers)} layers",
    )


# -- pictures and lists ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["bismo-edge", "bitfusion"])
def test_plot(run, tmp_path, target):
    path = tmp_path / "cost.png"
    status, out, err = run("--model", "mobilenet_v2", "--bits", "4/4", "--target", target, "--plot", path)
    assert (status, err, out.splitlines()[-1]) == (0, "", f"wrote {path}")
    assert matplotlib.image.imread(path).shape == (1092, 1300, 4)


def test_plot_and_json_together(run, tmp_path):
    status, out, _ = run(*DIGITS, "--bits", "4/4", "--target", "size", "--json", "--plot", tmp_path / "cost.png")
    assert (status, json.loads(out)["target"]) == (0, "size")
    assert (tmp_path / "cost.png").is_file()


def test_list_of_targets(run):
    status, out, _ = run("--list")
    lines = out.splitlines()
    assert (status, [line.split()[0] for line in lines]) == (0, [*target_names(), "table:FILE"])
    assert lines[0].split()[1:3] == ["latency", "[ms]"]


@pytest.mark.parametrize("target", target_names())
def test_list_of_the_constants_of_a_target(run, target):
    status, out, _ = run("--list", "--target", target)
    assert status == 0
    constants = cost_model(target).constants
    lines = out.splitlines()
    assert lines[0].startswith(f"{target}: ")
    if not constants:
        assert lines[1:] == ["counts only: no constant"]
    else:
        assert lines[1].split() == ["constant", "value", "unit", "status", "source"]
        assert [line.split()[0] for line in lines[2:]] == [constant.name for constant in constants]
        assert all(constant.source in line for line, constant in zip(lines[2:], constants, strict=True))


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((*DIGITS, "--bits", "4/4", "--target", "bismo-egde"), "unknown target 'bismo-egde'; did you mean bismo-edge"),
        (("--list", "--target", "phone"), "unknown target 'phone'"),
        ((*DIGITS, "--bits", "4/4"), "name a target (--list shows them), as in python -m hardware --model"),
        (("--bits", "4/4", "--target", "size"), "name a network with --model"),
        (("--model", "mobilnet_v2", "--bits", "4/4", "--target", "size"), "unknown model 'mobilnet_v2'; did you mean"),
        (
            ("--model", "torch.nn.Identity", "--bits", "4/4", "--target", "size"),
            "torch.nn.Identity states no input size; give one (C, H, W)",
        ),
        ((*DIGITS, "--target", "size"), "give either --bits W/A or --policy FILE"),
        ((*DIGITS, "--bits", "4", "--target", "size"), "--bits must be W/A, such as 4/8, got '4'"),
        ((*DIGITS, "--bits", "4/-4", "--target", "size"), "--bits must be W/A, such as 4/8, got '4/-4'"),
        ((*DIGITS, "--bits", "9/4", "--target", "bitfusion"), "layer 'conv1' has weights at 9 bits; bitfusion takes 1"),
        ((*DIGITS, "--bits", "4/0", "--target", "bitfusion"), "layer 'conv1' reads 0 bits; bitfusion takes 1 to 8"),
        ((*DIGITS, "--bits", "4/33", "--target", "bitops"), "layer 'conv1' reads 33 bits; bitops takes 1 to 32"),
        (
            (*DIGITS, "--bits", "4/4", "--first-last-bits", "12", "--target", "bitfusion"),
            "layer 'conv1' has weights at 12 bits; bitfusion takes 1 to 8",
        ),
        (
            (*DIGITS, "--bits", "4/4", "--target", "size", "--input-shape", "8,8"),
            "--input-shape must be C,H,W, such as 3,224,224, got '8,8'",
        ),
        ((*DIGITS, "--bits", "4/4", "--target", "size", "--input-shape", "1,0,8"), "--input-shape must be C,H,W"),
        ((*DIGITS, "--bits", "4/4", "--target", "size", "--input-shape", "3,8,8"), "to have 1 channels"),
        (
            (*DIGITS, "--bits", "4/4", "--target", "size", "--num-classes", "0"),
            "--num-classes must be at least 1, got 0",
        ),
        ((*DIGITS, "--bits", "4/4", "--target", "size", "--num-classes", "x"), "--num-classes: invalid int value: 'x'"),
        (
            (*DIGITS, "--bits", "4/4", "--target", "size", "--plot", "/no/such/folder.png"),
            "cannot write /no/such/folder",
        ),
        ((*DIGITS, "--bits", "4/4", "--target", "size", "--laers"), "unrecognized arguments: --laers"),
        (("--policy", "/no/such.json", "--target", "size"), "no policy file /no/such.json"),
        ((*DIGITS, "--bits", "4/4", "--target", "table:/no/such.csv"), "cannot read /no/such.csv: No such file"),
        (
            ("--model", "timm:vit_tiny_patch16_224", "--bits", "4/4", "--target", "bitops"),
            "no cost model for 'scaled_dot_product_attention'",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "changes, target, message",
    [
        ({"conv2.weight": None}, "bitfusion", "layer 'conv2' has weights at 32 bits (float: the policy does not name"),
        ({"relu1.output": None}, "bitfusion", "layer 'block.conv1' reads 32 bits (float: the policy names neither"),
        ({"conv2.weight": 12}, "bismo-edge", "layer 'conv2' has weights at 12 bits; bismo-edge takes 1 to 8"),
        ({"conv9.weight": 4}, "size", "the policy names site 'conv9.weight', which 'digits_net' does not have"),
    ],
)
def test_policies_that_do_not_fit(run, save, changes, target, message):
    status, out, err = run("--policy", save(changes=changes), "--target", target)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")


def test_a_policy_of_another_network_or_size_and_options_that_exclude_each_other(run, save, tmp_path):
    path = save()
    for arguments, message in (
        (("--model", "mobilenet_v2"), f"{path} is for model 'digits_net', not for 'mobilenet_v2'"),
        (("--input-shape", "1,16,16"), f"{path} is for inputs of (1, 8, 8), not (1, 16, 16)"),
        (("--bits", "4/4"), "give either --bits W/A or --policy FILE"),
        (("--first-last-bits", "8"), "--first-last-bits goes with --bits; a policy says it itself"),
    ):
        assert run("--policy", path, "--target", "size", *arguments) == (2, "", f"error: {message}\n")
    path.write_text("{")
    status, _, err = run("--policy", path, "--target", "size")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {path} is not a policy file")
