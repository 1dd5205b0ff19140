"""AdaBits' sizes and BitOPs, and the cells of its table file."""

import pytest

from hardware.network import network
from methods.adabits.static import adaptive_size, giga_bitops, size
from reproduce.tables import load_table, printed_text

CELLS = [
    ("mobilenet_v1", 8, 4.0976, 36.3994),
    ("mobilenet_v1", 6, 3.3384, 20.8068),
    ("mobilenet_v1", 5, 2.9588, 14.6811),
    ("mobilenet_v1", 4, 2.5792, 9.6692),
    ("mobilenet_v2", 8, 3.4391, 19.2496),
    ("mobilenet_v2", 6, 2.9173, 11.1672),
    ("mobilenet_v2", 5, 2.6563, 7.9920),
    ("mobilenet_v2", 4, 2.3954, 5.3941),
    ("resnet50_no_max_pool", 4, 13.3444, 71.8065),
    ("resnet50_no_max_pool", 3, 10.5495, 43.7529),
    ("resnet50_no_max_pool", 2, 7.7546, 23.7146),
]


@pytest.mark.parametrize("model, bits, mib, bitops", CELLS)
def test_size_and_bitops_of_one_width(model, bits, mib, bitops):
    inputs = {"network": model, "weight_bits": bits, "activation_bits": bits}
    assert size(inputs) == pytest.approx(mib, abs=5e-5)
    assert giga_bitops(inputs) == pytest.approx(bitops, abs=5e-5)


@pytest.mark.parametrize("model, mib", [("mobilenet_v1", 4.3481), ("mobilenet_v2", 3.8295)])
def test_size_of_the_adaptive_model(model, mib):
    assert adaptive_size({"network": model, "bit_widths": [8, 6, 5, 4]}) == pytest.approx(mib, abs=5e-5)


def test_an_adaptive_model_of_one_width_is_the_8_bit_model():
    inputs = {"network": "mobilenet_v2", "bit_widths": [8], "weight_bits": 8}
    assert adaptive_size(inputs) == size(inputs)


@pytest.mark.parametrize(
    "model, weights, macs, channels",
    [
        ("mobilenet_v1", 4_209_088, 568_740_352, 10_944),
        ("mobilenet_v2", 3_469_760, 300_774_272, 17_056),
        ("resnet50_no_max_pool", 25_502_912, 4_127_719_424, 26_560),
    ],
)
def test_counts_behind_the_columns(model, weights, macs, channels):
    counted = network(model)
    assert (counted.num_weights, counted.num_macs, counted.batch_norm_channels) == (weights, macs, channels)


def test_resnet50_with_max_pool_does_not_give_the_printed_bitops():
    inputs = {"network": "resnet50", "weight_bits": 4, "activation_bits": 4}
    assert giga_bitops(inputs) == pytest.approx(71.19, abs=5e-3)
    assert size(inputs) == pytest.approx(13.3444, abs=5e-5)


def test_individual_half_holds_the_printed_cells():
    table = load_table("adabits/table4_individual")
    assert len(table.rows) == 19
    row = table.row("sat_modified_mobilenet_v2_4bit")
    assert [printed_text(row.published[key]) for key in table.columns] == ["modified", "4", "2.40", "70.3", "5.39"]
    assert table.row("sat_original_resnet50_2bit").published["top1"] == 73.3
    assert not any("modified_resnet50" in row.name for row in table.rows)


def test_adaptive_half_holds_the_printed_cells():
    table = load_table("adabits/table4_adaptive")
    assert [row.published["size"] for row in table.rows] == ["FP", "FP", "FP", 4.35, 3.83]
    row = table.row("adabits_original_resnet50")
    assert row.published["bits"] == "4,3,2"
    assert [row.published[f"top1_{bits}bit"] for bits in (8, 4, 3, 2)] == [None, 76.1, 75.8, 73.2]
    assert printed_text(table.row("adabits_modified_mobilenet_v2").published["delta_4bit"]) == "0.0"


def test_every_delta_is_the_difference_of_the_two_accuracies():
    individual = load_table("adabits/table4_individual")
    deltas = 0
    for row in load_table("adabits/table4_adaptive").rows:
        for bits in (8, 6, 5, 4, 3, 2):
            if (delta := row.published[f"delta_{bits}bit"]) is not None:
                alone = individual.row(f"sat_{row.name.removeprefix('adabits_')}_{bits}bit")
                assert row.published[f"top1_{bits}bit"] - alone.published["top1"] == pytest.approx(delta, abs=1e-9)
                deltas += 1
    assert deltas == 19
