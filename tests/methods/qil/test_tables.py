"""The printed cells of QIL's tables."""

from collections import Counter

import pytest

from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize(
    "name, rows, cells",
    [
        (
            "table1",
            50,
            {
                "fp_alexnet": "61.8",
                "qil_resnet18_a2w2": "65.7",
                "qil_alexnet_a4w4": "62.0",
                "dorefa_net_alexnet_a3w3": "55.0",
                "abc_net_resnet34_a3w3": "66.7",
                "zhuang_et_al_alexnet_a4w4": "58.1",
                "weq_alexnet_a2w2": "50.6",
            },
        ),
        ("table2", 8, {"direct_a32w32": "70.2", "direct_a2w2": "56.0", "progressive_a3w3": "69.2"}),
        ("table3", 9, {"joint_training_a4w4": "70.1", "quantizer_only_a2w2": "20.9"}),
    ],
)
def test_printed_cells(name, rows, cells):
    table = load_table(f"qil/{name}")
    assert len(table.rows) == rows
    assert {row: printed_text(table.row(row).published["top1"]) for row in cells} == cells
    assert not any(column.kind == "static" for column in table.columns.values())


def test_numbers_per_network_in_table_1():
    rows = load_table("qil/table1").rows
    assert Counter(row.model for row in rows) == {"ResNet-18": 19, "ResNet-34": 9, "AlexNet": 22}
    assert all(row.published["top1"] is not None for row in rows)
