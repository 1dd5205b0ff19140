"""The printed cells of DSQ's tables."""

import pytest

from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize(
    "name, rows, cells",
    [
        (
            "table6",
            10,
            {
                "fp_vgg_small": ("32/32", "91.65"),
                "bnn_vgg_small_w1a1": ("1/1", "89.90"),
                "dsq_resnet20_w1a1": ("1/1", "84.11"),
                "lq_net_resnet20_w1a32": ("1/32", "90.10"),
            },
        ),
        (
            "table7",
            24,
            {
                "fp_resnet18": ("32/32", "69.90"),
                "twn_resnet18_w2a32": ("2/32", "61.80"),
                "dsq_resnet18_w4a4": ("4/4", "69.56"),
                "dsq_resnet34_w3a3": ("3/3", "72.54"),
                "pact_mobilenet_v2_w4a4": ("4/4", "61.40"),
            },
        ),
    ],
)
def test_printed_cells(name, rows, cells):
    table = load_table(f"dsq/{name}")
    assert len(table.rows) == rows
    for row, expected in cells.items():
        assert tuple(map(printed_text, table.row(row).published.values())) == expected
    assert not any(column.kind == "static" for column in table.columns.values())


def test_fully_quantized_rows_say_so():
    marked = {row.name for row in load_table("dsq/table7").rows if "†" in row.notes.get("top1", "")}
    assert marked == {"bcgd_resnet18_w4a4", "dsq_resnet18_w4a4", "bcgd_resnet34_w4a4"}
