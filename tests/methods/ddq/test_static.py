"""DDQ's sizes and memory ratios, and the cells of its table files."""

import pytest

from methods.ddq.static import memory_ratio, size_of_weights, size_with_batch_norm
from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize("bits, mib", [(4, 1.788), (32, 13.370)])
def test_mobilenet_v2_with_batch_norm_and_bias(bits, mib):
    assert size_with_batch_norm({"network": "mobilenet_v2", "weight_bits": bits}) == pytest.approx(mib, abs=5e-4)


@pytest.mark.parametrize("bits, mib", [(4, 5.818), (8, 44.552 / 4), (32, 44.552)])
def test_resnet18_with_first_and_last_layer_at_8_bits_or_more(bits, mib):
    assert size_of_weights({"network": "resnet18", "weight_bits": bits}) == pytest.approx(mib, abs=5e-4)


def test_neither_convention_gives_both_printed_sizes():
    assert size_of_weights({"network": "mobilenet_v2", "weight_bits": 4}) == pytest.approx(2.265, abs=5e-4)
    assert size_with_batch_norm({"network": "resnet18", "weight_bits": 4}) == pytest.approx(5.609, abs=5e-4)


def test_memory_ratio_of_one_width():
    assert memory_ratio({"weight_bits": 6, "target_bits": 4}) == 1.5


@pytest.mark.parametrize(
    "name, rows, cells",
    [
        (
            "table1_mobilenet_v2",
            20,
            {
                "full_precision": ("120", "13.2", "32", "71.9"),
                "ddq_w4a8_mixed_30ep": ("30", "1.8", "4/8 (mixed)", "71.7"),
                "deep_compression_w4a32": ("-", "1.8", "4/32", "71.2"),
                "apot_w4a4_30ep": ("30", "1.8", "4/4", "69.7"),
                "uhlich_et_al_w4a4_mixed": ("50", "1.6", "4/4 (mixed)", "69.7"),
            },
        ),
        (
            "table1_resnet18",
            21,
            {
                "ddq_w4a4_fixed_90ep": ("90", "5.8", "4/4 (fixed)", "71.1"),
                "wrpn_w4a8": ("100", "5.8", "4/8", "66.4"),
                "apot_w4a4": ("100", "5.8", "4/4", "70.7"),
                "pact_w4a4": ("110", "5.6", "4/4", "69.2"),
            },
        ),
        (
            "table2",
            10,
            {"pact_pot_resnet18": ("4", "4", "1", "67.8"), "ddq_mixed_mobilenet_v2_max8": ("8", "4", "1.03", "71.5")},
        ),
        (
            "table3",
            34,
            {
                "uq_mobilenet_v2_w2a4": ("2/4", "-"),
                "ddq_fix_mobilenet_v2_w2a2": ("2/2", "51.1"),
                "ddq_fix_grad_correct_resnet18_w4a8": ("4/8", "70.9"),
            },
        ),
        ("table4", 5, {"fp": ("32/32", "-", "7.8", "71.9"), "ddq_mixed_uq_w4a8": ("4/8", "✓", "4.1", "70.8")}),
    ],
)
def test_printed_cells(name, rows, cells):
    table = load_table(f"ddq/{name}")
    assert len(table.rows) == rows
    for row, expected in cells.items():
        assert tuple(map(printed_text, table.row(row).published.values())) == expected


def test_diverged_runs_have_no_number():
    rows = [row for row in load_table("ddq/table3").rows if row.published["top1"] is None]
    assert {row.model for row in rows} == {"MobileNetV2"}
    assert [row.notes["top1"] for row in rows] == ["training diverged"] * 4


def test_learned_widths_are_no_static_cells():
    for name in ("table1_mobilenet_v2", "table1_resnet18"):
        rows = load_table(f"ddq/{name}").rows
        assert sum(row.columns["size"].kind == "trained" for row in rows) == 4
        assert all("mixed" in row.name for row in rows if row.columns["size"].kind == "trained")
