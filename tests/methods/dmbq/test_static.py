"""DMBQ's sizes, and the cells of its table files."""

import pytest

from methods.dmbq.static import size
from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize(
    "network, weight_bits, first_last_bits, mb",
    [
        # parameters of torchvision's networks, 4 bytes each
        ("resnet18", 32, 32, 11_689_512 * 4e-6),
        ("resnet34", 32, 32, 21_797_672 * 4e-6),
        ("resnet18", 2, 32, 4.917),
        ("resnet18", 1, 32, 3.523),
        ("resnet34", 2, 32, 7.472),
        ("resnet34", 1, 32, 4.815),
        # 0.0424 and 0.0721 MB of batch norm and bias beyond the codes
        ("resnet18", 3, 8, 4.706 + 0.0424),
        ("resnet18", 2, 8, 3.311 + 0.0424),
        ("resnet18", 1, 8, 1.916 + 0.0424),
        ("resnet34", 2, 8, 5.836 + 0.0721),
        ("resnet34", 1, 8, 3.179 + 0.0721),
        ("resnet18", 3, 3, 4.380 + 0.0424),
    ],
)
def test_size(network, weight_bits, first_last_bits, mb):
    inputs = {"network": network, "weight_bits": weight_bits, "first_last_bits": first_last_bits}
    assert size(inputs) == pytest.approx(mb, abs=6e-4)


@pytest.mark.parametrize(
    "name, rows, cells",
    [
        (
            "ilsvrc12",
            34,
            {
                "fp_resnet18": ("32/32", "46.7", "70.3", "89.5"),
                "hawq_resnet18": ("-", "6.1", "68.6", "-"),
                "autoq_resnet18_w2.2a3.0": ("2.2/3.0", "3.6", "66.4", "-"),
                "dmbq_lba_resnet18_w1.0a32": ("1.0/32", "1.8", "65.9", "87.1"),
                "dmbq_lba_resnet34_w2.0a2.0": ("2.0/2.0", "6.3", "72.1", "90.7"),
            },
        ),
        ("cifar10", 20, {"alq_vgg_small_w0.7a32": ("0.7/32", "92.0"), "dsq_resnet20_w1a32": ("1/32", "90.2")}),
        ("training_time", 8, {"fp": ("32/32", "1.00"), "dmbq_lba_w2.0a32": ("2.0/32", "1.16")}),
        ("ablation_granularity_cifar10", 2, {"cp_w0.7": ("CP", "0.7", "93.7")}),
        ("ablation_granularity_imagenet", 5, {"gp_lp_w1": ("GP/LP", "1", "64.5"), "lp_w2.0": ("LP", "2.0", "69.6")}),
        ("ablation_quantizer", 7, {"fp": ("32", "70.3", "89.5"), "dmbq_w4a4": ("4/4", "70.2", "89.4")}),
    ],
)
def test_printed_cells(name, rows, cells):
    table = load_table(f"dmbq/{name}")
    assert len(table.rows) == rows
    for row, expected in cells.items():
        assert tuple(map(printed_text, table.row(row).published.values())) == expected


def test_starred_methods_keep_first_and_last_layers_in_float():
    rows = load_table("dmbq/ilsvrc12").rows
    float_ends = {row.method for row in rows if row.inputs.get("first_last_bits") == 32}
    assert float_ends == {"FP", "TTQ", "LQ-Net", "BWN", "HWGQ", "DSQ", "PACT"}
