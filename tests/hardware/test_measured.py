import itertools

import numpy as np
import pytest

from common.bit_policy import BitPolicy, GroupBits
from common.errors import UserError
from hardware import cost_model, cost_table, network, uniform_widths
from hardware.measured import load_measured

HEADER = "layer,weight_bits,activation_bits,cost\n"


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_round_trip_of_a_whole_table(write):
    layers = network("digits_net").layers
    exact = cost_table(cost_model("bitfusion"), layers)
    rows = [
        f"{layer.name},{w},{a},{exact.values[i, w - 1, a - 1]!r}\n"
        for i, layer in enumerate(layers)
        for w, a in itertools.product(range(1, 9), repeat=2)
    ]
    model = cost_model(f"table:{write(HEADER + ''.join(rows).replace('np.float64(', '').replace(')', ''))}")
    assert (model.quantity, model.unit) == ("latency", "ms")
    assert model.description == f"measured, {64 * len(layers)} pairs of widths of {len(layers)} layers"
    assert np.array_equal(cost_table(model, layers).values, exact.values)
    widths = uniform_widths(layers, 3, 5, 8)
    assert model.network_cost(layers, widths) == cost_model("bitfusion").network_cost(layers, widths)


def test_all_layers_that_were_measured_count_and_comments_are_read(write):
    path = write(
        "# my phone, 2 cores\n# quantity: energy\n#unit:uJ\n\n"
        + HEADER
        + "conv1 , 4, 8,0.25\n# the last one\nlinear,4,8,1e-3\n"
    )
    model = load_measured(path)
    assert (model.name, model.quantity, model.unit) == (f"table:{path}", "energy", "uJ")
    layers = [layer for layer in network("digits_net").layers if layer.name in ("conv1", "linear")]
    cost = model.network_cost(layers, uniform_widths(layers, 4, 8))
    assert (cost.costs, cost.counted) == ((0.25, 0.001), (True, True))
    assert [(c.name, c.value, c.status) for c in model.constants] == [("measurements", 2, "measured")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_spreadsheets_write_byte_order_marks_and_other_line_ends(write, encoding):
    model = load_measured(write(HEADER.strip() + "\r\nconv1,4,8,0.25\r\n", encoding))
    assert model.layer_cost(network("digits_net").layers[0], 4, 8) == 0.25


def test_pairs_that_were_not_measured_are_nan_in_tables_and_refused_in_costs(write):
    layers = network("digits_net").layers
    path = write(HEADER + "".join(f"{layer.name},4,8,1\n{layer.name},8,8,2\n" for layer in layers))
    model = load_measured(path)
    table = cost_table(model, layers)
    assert np.isfinite(table.values).sum() == 2 * len(layers)
    assert table.cost([4] * len(layers), [8] * len(layers)) == len(layers)
    with pytest.raises(UserError, match="has no cost of layer 'conv1' at 4/4 bits"):
        table.cost([4] * len(layers), [4] * len(layers))
    with pytest.raises(UserError) as error:
        model.network_cost(layers, uniform_widths(layers, 4, 4))
    assert str(error.value) == f"{path} has no measurement of layer 'conv1' at 4/4 bits"


def test_a_layer_that_was_not_measured_is_refused_by_name(write):
    model = load_measured(write(HEADER + "conv1,4,8,1\n"))
    layers = network("digits_net").layers
    message = f"has no measurement of layer {layers[1].name!r}$"
    with pytest.raises(UserError, match=message):
        model.network_cost(layers, uniform_widths(layers, 4, 8))
    with pytest.raises(UserError, match=message):
        cost_table(model, layers)


def test_float_layers_and_groups_are_refused_by_name(write):
    layers = network("digits_net").layers
    model = load_measured(write(HEADER + "conv1,4,8,1\n"))
    with pytest.raises(UserError, match=r"layer 'conv1' has weights at 32 bits .*does not name 'conv1.weight'"):
        model.policy_cost(layers, BitPolicy("digits_net", (1, 8, 8), {}))
    outputs = layers[0].out_channels
    with pytest.raises(UserError, match=r"layer 'conv1': table:.* has no model of weights whose width varies"):
        model.layer_cost(layers[0], GroupBits("out", (1, outputs - 1), (2, 4)), 8)
    assert model.layer_cost(layers[0], GroupBits("out", (1, outputs - 1), (4, 4)), 8) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected the header layer,weight_bits,activation_bits,cost"),
        ("layer,w,a,ms\nconv1,4,8,1\n", "expected the header layer,weight_bits,activation_bits,cost"),
        ("conv1,4,8,1\n", "expected the header"),
        (HEADER + "conv1,4,8\n", "line 2: expected layer,weight_bits,activation_bits,cost, got 'conv1,4,8'"),
        (HEADER + "conv1,4,8,1,ms\n", "line 2: expected layer,"),
        ("# unit: ms\n\n" + HEADER + "conv1,4,8,1\n\nconv1,four,8,1\n", "line 6: expected layer,"),
        (HEADER + "conv1,4.5,8,1\n", "line 2: expected layer,"),
        (HEADER + "conv1,4,8,fast\n", "line 2: expected layer,"),
        (HEADER + "conv1,4,8,1\nconv1,9,8,1\n", "line 3: widths must lie in 1..8, the cost must be 0 or more"),
        (HEADER + "conv1,4,0,1\n", "line 2: widths must lie in 1..8"),
        (HEADER + "conv1,4,8,-1\n", "line 2: widths must lie in 1..8, the cost must be 0 or more"),
        (HEADER + "conv1,4,8,nan\n", "line 2: widths must lie in 1..8, the cost must be 0 or more"),
        (HEADER + "conv1,4,8,inf\n", "line 2: widths must lie in 1..8, the cost must be 0 or more"),
        (HEADER + "conv1,4,8,1\nconv1,4,4,1\nconv1,4,8,2\n", "line 4: layer 'conv1' is there twice at these widths"),
        ("# unit: hours\n" + HEADER, "expected quantity latency or energy with a unit of it, got latency in 'hours'"),
        ("# quantity: energy\n" + HEADER, "got energy in 'ms'"),
        ("# quantity: heat\n# unit: J\n" + HEADER, "got heat in 'J'"),
    ],
)
def test_errors_name_file_and_line(write, text, message):
    path = write(text)
    with pytest.raises(UserError) as error:
        load_measured(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match=r"cannot read .*image.csv: not a text file"):
        load_measured(tmp_path / "image.csv")
    with pytest.raises(UserError, match=r"cannot read .*none.csv: No such file or directory"):
        load_measured(tmp_path / "none.csv")
