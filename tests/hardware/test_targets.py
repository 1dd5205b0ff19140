import pytest

from common.errors import UserError
from hardware import cost_model, network, target_names, uniform_widths
from hardware.targets import models_of, uniform_cost

# name: quantity, unit, first and last layer counted, kernel-wise widths, on-disk cache, highest width
TARGETS = {
    "bismo-edge": ("latency", "ms", False, True, False, 8),
    "bismo-cloud": ("latency", "ms", False, True, False, 8),
    "bismo-edge-fast": ("latency", "ms", False, True, False, 8),
    "bismo-cloud-fast": ("latency", "ms", False, True, False, 8),
    "bitfusion": ("latency", "ms", True, False, False, 8),
    "bitfusion-search": ("latency", "ms", True, False, True, 8),
    "bitfusion-energy": ("energy", "mJ", True, False, False, 8),
    "size": ("size", "B", True, True, False, 32),
    "bitops": ("bitops", "", True, True, False, 32),
}


def test_names():
    assert target_names() == tuple(TARGETS)
    assert models_of("energy") == ("bitfusion-energy",)
    assert len(models_of("latency")) == 6
    assert models_of("speed") == ()


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_target_says_of_itself(name):
    model = cost_model(name)
    said = (model.quantity, model.unit, model.counts_first, model.kernel_wise, model.slow, model.highest)
    assert (model.name, *said) == (name, *TARGETS[name])
    assert (model.lowest, model.counts_last) == (1, model.counts_first)
    assert "\n" not in model.description
    assert cost_model(name) is model


# HAQ, tables 3 to 5: all layers at weight / activation bits; and how near the models come
PRINTED = (
    ("bismo-cloud", "mobilenet_v1", 1e-3, {(4, 4): 57.49, (5, 5): 77.52, (6, 6): 99.86, (8, 8): 151.09}),
    ("bismo-cloud", "mobilenet_v2", 1e-3, {(4, 4): 74.46, (5, 5): 99.43, (6, 6): 127.07, (8, 8): 189.82}),
    ("bismo-edge", "mobilenet_v1", 0.035, {(4, 4): 45.45, (5, 5): 57.75, (6, 6): 70.67, (8, 8): 96.20}),
    ("bismo-edge", "mobilenet_v2", 0.035, {(4, 4): 52.15, (5, 5): 66.94, (6, 6): 82.49, (8, 8): 115.84}),
    ("bitfusion", "mobilenet_v1", 0.045, {(4, 4): 7.86, (6, 4): 11.10, (6, 6): 19.99, (8, 8): 20.08}),
    ("bitfusion-search", "mobilenet_v1", 0.045, {(4, 4): 7.86, (6, 4): 11.10, (6, 6): 19.99, (8, 8): 20.08}),
    ("bitfusion-energy", "mobilenet_v1", 0.017, {(4, 4): 13.47, (6, 4): 16.57, (6, 6): 26.80, (8, 8): 31.03}),
)


@pytest.mark.parametrize("target, model, residual, printed", PRINTED)
def test_printed_latencies_and_energies(target, model, residual, printed):
    computed = {bits: uniform_cost(model, target, *bits) for bits in printed}
    assert computed == pytest.approx(printed, rel=residual)


def test_fast_latencies_are_below_the_exact_ones():
    for machine in ("bismo-edge", "bismo-cloud"):
        assert uniform_cost("mobilenet_v2", f"{machine}-fast", 4, 4) < uniform_cost("mobilenet_v2", machine, 4, 4)


def test_uniform_cost_is_that_of_the_network_with_its_arguments():
    layers = network("resnet20", num_classes=100).layers
    total = cost_model("size").network_cost(layers, uniform_widths(layers, 3, 5)).total
    assert uniform_cost("resnet20", "size", 3, 5, num_classes=100) == total != uniform_cost("resnet20", "size", 3, 5)


@pytest.mark.parametrize("name", [name for name, said in TARGETS.items() if said[0] in ("latency", "energy")])
def test_every_constant_has_a_source_and_a_status(name):
    constants = cost_model(name).constants
    assert constants
    for constant in constants:
        assert constant.status in ("published", "decoded", "fitted", "chosen")
        assert constant.source
        machine = cost_model(name).machine
        assert constant.value == getattr(machine, constant.name)  # the one that is computed with


def test_which_constants_are_fitted():
    fitted = {name: [c.name for c in cost_model(name).constants if c.status == "fitted"] for name in TARGETS}
    assert fitted == {name: [] for name in TARGETS} | {
        "bismo-edge": ["activation_row_cycles", "weight_row_cycles"],
        "bismo-edge-fast": ["activation_row_cycles", "weight_row_cycles"],
        "bitfusion-energy": ["nj_per_cycle", "nj_per_activation_bit"],
    }


@pytest.mark.parametrize(
    "name, message",
    [
        ("bismo-egde", "unknown target 'bismo-egde'; did you mean bismo-edge"),
        ("phone", "unknown target 'phone'; choose one of bismo-edge, .*, bitops .or table:FILE."),
        ("", "unknown target ''; choose one of "),
    ],
)
def test_unknown_targets(name, message):
    with pytest.raises(UserError, match=message) as error:
        cost_model(name)
    assert "\n" not in str(error.value)


def test_the_residuals_in_the_readme_are_those_of_the_code(repository):
    text = (repository / "hardware" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `bi")]
    found = {(row[0].strip("`"), row[1]): row[2:6] for row in rows if row[1].startswith("MobileNet")}
    expected = {}
    for target, model, _, printed in PRINTED:
        machines = (target, f"{target}-fast") if target.startswith("bismo") else (target,)
        for each in machines:
            residuals = [uniform_cost(model, each, *bits) / cell - 1 for bits, cell in printed.items()]
            expected[each, model.replace("mobilenet_v", "MobileNet-V")] = [f"{100 * r:+.2f} %" for r in residuals]
    assert found == expected
