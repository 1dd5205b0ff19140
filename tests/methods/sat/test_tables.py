"""The printed cells of SAT's tables."""

import pytest

from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize(
    "name, rows, cells",
    [
        (
            "table1",
            28,
            {
                "pact_mobilenet_v1_4bit": ("4", "70.3", "89.2"),
                "haq_mobilenet_v2_5bit": ("flexible", "70.90", "89.91"),
                "sat_mobilenet_v2_8bit": ("8", "72.5", "90.7"),
                "sat_mobilenet_v1_fp": ("FP", "71.7", "90.2"),
            },
        ),
        (
            "table2",
            24,
            {
                "deep_compression_mobilenet_v1_2bit": ("2", "37.62", "64.31"),
                "haq_mobilenet_v2_4bit": ("flexible", "71.47", "90.23"),
                "sat_mobilenet_v2_3bit": ("3", "71.1", "89.9"),
            },
        ),
        (
            "table3_both",
            16,
            {"lsq_resnet50_3bit": ("3", "75.8", "92.7"), "sat_resnet50_2bit": ("2", "74.1", "91.7")},
        ),
        (
            "table3_weights",
            16,
            {"lqnet_resnet50_3bit": ("3", "-", "-"), "haq_resnet50_3bit": ("flexible", "75.30", "92.45")},
        ),
    ],
)
def test_printed_cells(name, rows, cells):
    table = load_table(f"sat/{name}")
    assert len(table.rows) == rows
    for row, expected in cells.items():
        assert tuple(map(printed_text, table.row(row).published.values())) == expected
    assert not any(column.kind == "static" for column in table.columns.values())


def test_haq_at_8_bits_is_marked_as_a_misprint():
    table = load_table("sat/table1")
    noted = {row.name for row in table.rows if row.notes.get("bits", "").startswith("misprint")}
    assert noted == {"haq_mobilenet_v1_8bit", "haq_mobilenet_v2_8bit"}
