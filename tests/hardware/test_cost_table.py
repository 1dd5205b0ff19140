import dataclasses
import importlib
import itertools
import math
import random
import time

import numpy as np
import pytest
import torch

from common.bit_policy import LayerBits
from common.errors import UserError
from hardware import CostModel, cost_model, cost_table, expected_cost, interpolated_cost, network, spatial
from hardware.cost_model import Unmeasured
from hardware.cost_table import CostTable

MODULE = importlib.import_module("hardware.cost_table")  # `hardware.cost_table` is the function
PAIRS = [
    ("bismo-edge", "mobilenet_v2"),
    ("bismo-cloud", "resnet18"),
    ("bismo-cloud-fast", "squeezenet1_1"),
    ("bitfusion", "efficientnet_b0"),
    ("bitfusion-search", "resnet20"),
    ("bitfusion-energy", "mobilenet_v1"),
    ("size", "digits_net"),
    ("bitops", "resnet20"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and nothing remembered."""
    monkeypatch.setenv("HARDWARE_CACHE", str(tmp_path / "cache"))
    MODULE._table.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch):
    """How many tables were computed so far."""
    calls, compute = [], MODULE._compute
    monkeypatch.setattr(MODULE, "_compute", lambda *a: calls.append(1) or compute(*a))
    return calls


def policies(num_layers, count=25):
    draw = random.Random(1)
    for _ in range(count):
        yield [draw.randint(1, 8) for _ in range(num_layers)], [draw.randint(1, 8) for _ in range(num_layers)]


def one_hot(widths):
    return torch.eye(8, dtype=torch.float64)[torch.tensor(widths) - 1]


def real(widths):
    return torch.tensor(widths, dtype=torch.float64)


def table_of(values) -> CostTable:
    values = np.array(values, dtype=float)
    return CostTable("mine", "ms", tuple(f"layer{i}" for i in range(len(values))), values)


def gaps() -> CostTable:
    """Two layers; the second was measured at 4/4, 8/4, 8/8 only: 1.5, 3.0, 5.0."""
    values = np.stack([np.arange(64.0).reshape(8, 8), np.full((8, 8), np.nan)])
    values[1, 3, 3], values[1, 7, 3], values[1, 7, 7] = 1.5, 3.0, 5.0
    return table_of(values)


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target, model", PAIRS)
def test_the_three_forms_equal_the_exact_total_on_integer_policies(target, model):
    layers, exact = network(model).layers, cost_model(target)
    table = cost_table(exact, layers)
    assert table.values.shape == (len(layers), 8, 8)
    for w, a in policies(len(layers)):
        widths = [LayerBits(*pair) for pair in zip(w, a, strict=True)]
        total = exact.network_cost(layers, widths).total
        assert table.cost(w, a) == pytest.approx(total, rel=1e-12)
        assert float(interpolated_cost(table.tensor(), real(w), real(a))) == pytest.approx(total, rel=1e-12)
        assert float(expected_cost(table.tensor(), one_hot(w), one_hot(a))) == pytest.approx(total, rel=1e-12)


def test_table_of_mobilenet_v2_gives_the_printed_cloud_latency():
    table = cost_table(cost_model("bismo-cloud"), network("mobilenet_v2").layers)
    assert table.cost([8] * 53, [8] * 53) == pytest.approx(189.82, rel=1e-3)  # HAQ, table 3
    assert table.cost([4] * 53, [4] * 53) == pytest.approx(74.46, rel=1e-3)
    assert (table.values[0] == 0).all()
    assert (table.values[-1] == 0).all()
    assert (table.values[1:-1] > 0).all()
    assert (table.unit, table.name, table.layers[1]) == ("ms", "bismo-cloud", "features.1.conv.0.0")


@pytest.mark.parametrize("target, model", [pair for pair in PAIRS if pair[0] != "bitfusion-search"])
def test_wider_is_never_cheaper(target, model):
    values = cost_table(cost_model(target), network(model).layers).values
    assert (np.diff(values, axis=1) >= 0).all()
    assert (np.diff(values, axis=2) >= 0).all()


def test_only_the_tile_search_finds_wider_layers_cheaper():
    """hardware/README.md says how often, and by how much."""
    values = cost_table(cost_model("bitfusion-search"), network("mobilenet_v2").layers).values
    for axis, drops, worst in ((1, 330, -0.18), (2, 267, -0.11)):
        steps = np.diff(values, axis=axis)
        assert ((steps < 0).sum(), steps.size) == (drops, 2968)
        assert (steps / np.delete(values, -1, axis=axis)).min() == pytest.approx(worst, abs=0.005)


@pytest.mark.parametrize("target, seconds", [("bismo-edge", 1), ("bismo-cloud", 1), ("bitfusion-search", 60)])
def test_time_of_the_full_table_of_mobilenet_v2(target, seconds, computed):
    layers, model = network("mobilenet_v2").layers, cost_model(target)
    spatial._search.cache_clear()
    start = time.process_time()  # of this process alone: other work on the machine does not count
    assert cost_table(model, layers).values.shape == (53, 8, 8)
    assert time.process_time() - start < seconds
    assert len(computed) == 1


@pytest.mark.parametrize("model, layers", [("resnet50", 54), ("efficientnet_b0", 82)])
def test_larger_networks_have_tables_too(model, layers):
    for target in ("bismo-edge", "bitfusion"):
        assert np.isfinite(cost_table(cost_model(target), network(model).layers).values).all()
        assert len(cost_table(cost_model(target), network(model).layers).layers) == layers


def test_a_look_up_takes_less_than_a_millisecond():
    layers, model = network("mobilenet_v2").layers, cost_model("bismo-edge")
    cost_table(model, layers)
    drawn = list(policies(53, count=50))
    start = time.process_time()
    for w, a in drawn:
        cost_table(model, layers).cost(w, a)  # the table itself from memory as well
    assert (time.process_time() - start) / 50 < 1e-3


def test_a_table_cannot_be_changed_by_accident():
    table = cost_table(cost_model("bitops"), network("digits_net").layers)
    with pytest.raises(ValueError, match="read-only"):
        table.values[0, 0, 0] = 1
    table.tensor()[0, 0, 0] = -1
    assert table.values[0, 0, 0] > 0


@pytest.mark.parametrize(
    "w, a, error, message",
    [
        ([4], [4], ValueError, "expected 2 widths of each kind"),
        ([4, 4], [4, 4, 4], ValueError, "expected 2 widths of each kind"),
        ([4, 9], [4, 4], IndexError, "widths must lie in 1..8"),
        ([4, 4], [0, 4], IndexError, "widths must lie in 1..8"),
        ([4, 4], [4, 5], UserError, "^mine has no cost of layer 'layer1' at 4/5 bits$"),
    ],
)
def test_look_ups_that_make_no_sense_are_refused(w, a, error, message):
    with pytest.raises(error, match=message):
        gaps().cost(w, a)


def test_a_layer_that_a_model_cannot_cost_is_refused_by_name():
    def fails(layer, w, a):
        raise UserError(f"layer {layer.name!r} is too round")

    with pytest.raises(UserError, match="layer 'conv1' is too round"):
        cost_table(CostModel("mine", "latency", "ms", "", fails), network("digits_net").layers)


def test_pairs_that_a_model_has_not_measured_are_nan():
    def sparse(layer, w, a):
        if w % 2:
            raise Unmeasured("odd")
        return w * a

    table = cost_table(CostModel("mine", "latency", "ms", "", sparse), network("digits_net").layers)
    assert np.isnan(table.values[:, ::2]).all()
    assert (table.values[0, 3] == 4 * np.arange(1, 9)).all()


# -- differentiable forms --------------------------------------------------------------------------------------------


def test_interpolation_by_hand():
    values = np.zeros((1, 8, 8))
    values[0, 3, 1], values[0, 3, 2], values[0, 4, 1], values[0, 4, 2] = 10, 20, 50, 80
    tensor = table_of(values).tensor()
    # 4 + 1/4 weight bits, 2 + 1/2 activation bits: rows 15 and 65
    assert float(interpolated_cost(tensor, real([4.25]), real([2.5]))) == 0.75 * 15 + 0.25 * 65
    w, a = real([4.25]).requires_grad_(), real([2.5]).requires_grad_()
    interpolated_cost(tensor, w, a).backward()
    assert w.grad.tolist() == [50]
    assert a.grad.tolist() == [0.75 * 10 + 0.25 * 30]


@pytest.mark.parametrize("target, model", PAIRS[:4])
def test_gradients(target, model):
    layers = network(model).layers
    values = cost_table(cost_model(target), layers).tensor()
    draw = torch.Generator().manual_seed(0)
    n = len(layers)
    # between integers, where finite differences stay on one piece
    w, a = (
        (torch.randint(1, 8, (n,), generator=draw) + 0.1 + 0.8 * torch.rand(n, generator=draw, dtype=torch.float64))
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(
        lambda w, a: interpolated_cost(values, w, a), (w.requires_grad_(), a.requires_grad_()), eps=1e-4
    )
    p, q = (torch.rand(n, 8, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda p, q: expected_cost(values, p, q), (p, q), eps=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width, low, high", [(1, 1, 2), (4, 4, 5), (8, 7, 8)])
def test_gradient_at_an_integer_is_that_of_the_interval_above_and_at_8_of_that_below(width, low, high):
    table = cost_table(cost_model("bismo-edge"), network("mobilenet_v2").layers)
    w, a = (torch.full((53,), float(width), dtype=torch.float64, requires_grad=True) for _ in range(2))
    interpolated_cost(table.tensor(), w, a).backward()
    np.testing.assert_allclose(w.grad, table.values[:, high - 1, width - 1] - table.values[:, low - 1, width - 1])
    np.testing.assert_allclose(a.grad, table.values[:, width - 1, high - 1] - table.values[:, width - 1, low - 1])


def test_widths_beyond_1_to_8_are_clamped_without_a_gradient():
    table = cost_table(cost_model("bitops"), network("digits_net").layers)
    n = len(table.layers)
    w = torch.full((n,), 9.5, dtype=torch.float64, requires_grad=True)
    a = torch.full((n,), 0.25, dtype=torch.float64, requires_grad=True)
    cost = interpolated_cost(table.tensor(), w, a)
    assert cost.item() == table.cost([8] * n, [1] * n)
    cost.backward()
    assert w.grad.abs().sum() == a.grad.abs().sum() == 0


def test_interpolation_is_monotone_where_the_table_is():
    values = cost_table(cost_model("bismo-edge"), network("mobilenet_v2").layers).tensor()
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        w, a = (1 + 7 * torch.rand(53, generator=draw, dtype=torch.float64) for _ in range(2))
        cost = interpolated_cost(values, w, a)
        assert interpolated_cost(values, w + torch.rand(53, generator=draw), a) >= cost
        assert interpolated_cost(values, w, a + torch.rand(53, generator=draw)) >= cost


def test_expectation_is_the_mean_over_all_policies():
    table = cost_table(cost_model("bitfusion"), network("digits_net").layers)
    n = len(table.layers)
    draw = torch.Generator().manual_seed(0)
    p, q = torch.zeros(n, 8, dtype=torch.float64), torch.zeros(n, 8, dtype=torch.float64)
    for row in range(n):
        for probabilities, columns in ((p, (1, 4)), (q, (2, 7))):
            share = float(torch.rand((), generator=draw))
            probabilities[row, columns[0]], probabilities[row, columns[1]] = share, 1 - share
    mean = 0.0
    for w in itertools.product((1, 4), repeat=n):
        for a in itertools.product((2, 7), repeat=n):
            chance = math.prod(float(p[i, w[i]] * q[i, a[i]]) for i in range(n))
            mean += chance * table.cost([x + 1 for x in w], [x + 1 for x in a])
    assert float(expected_cost(table.tensor(), p, q)) == pytest.approx(mean, rel=1e-12)


def test_results_have_the_dtype_of_the_widths():
    values = gaps().tensor()
    assert interpolated_cost(values, torch.tensor([4.0, 4.0]), real([4, 4])).dtype == torch.float32
    assert expected_cost(values, one_hot([4, 4]).float(), one_hot([4, 4])).dtype == torch.float32


def test_unmeasured_pairs_matter_only_where_they_are_used():
    table = gaps()
    for w, a, expected in ((4, 4, 1.5), (8, 4, 3.0), (8, 8, 5.0)):
        assert table.cost([1, w], [1, a]) == expected
        assert float(interpolated_cost(table.tensor(), real([1, w]), real([1, a]))) == expected
        assert float(expected_cost(table.tensor(), one_hot([1, w]), one_hot([1, a]))) == expected
    # between 4 and 8 nothing was measured
    assert math.isnan(interpolated_cost(table.tensor(), real([1, 4.5]), real([1, 4])))
    assert math.isnan(interpolated_cost(table.tensor(), real([1, 5]), real([1, 4])))
    mixed = (one_hot([1, 4]) + one_hot([1, 8])) / 2
    assert float(expected_cost(table.tensor(), mixed, one_hot([1, 4]))) == (1.5 + 3.0) / 2
    assert math.isnan(expected_cost(table.tensor(), mixed, one_hot([1, 8])))  # 4/8 was not measured


def test_gradients_stay_finite_beside_unmeasured_pairs():
    table = gaps()
    w, a = real([1, 4]).requires_grad_(), real([1, 4]).requires_grad_()
    interpolated_cost(table.tensor(), w, a).backward()
    assert w.grad.tolist() == [8, 0]
    assert a.grad.tolist() == [1, 0]
    p = ((one_hot([1, 4]) + one_hot([1, 8])) / 2).requires_grad_()
    expected_cost(table.tensor(), p, one_hot([1, 4])).backward()
    assert p.grad.isfinite().all()
    assert p.grad[1, [3, 7]].tolist() == [1.5, 3.0]


# -- the cache on disk -----------------------------------------------------------------------------------------------


def forget():
    MODULE._table.cache_clear()


def test_slow_tables_come_from_the_cache_the_second_time(cache, computed):
    layers, model = network("digits_net").layers, cost_model("bitfusion-search")
    first = cost_table(model, layers)
    (entry,) = cache.iterdir()
    forget()
    second = cost_table(model, layers)
    assert len(computed) == 1
    assert (second.values == first.values).all()
    assert not second.values.flags.writeable
    forget()
    cost_table(model, network("resnet20").layers)  # another network has another entry
    assert len(computed) == 2
    assert len(list(cache.iterdir())) == 2
    assert entry.is_file()


def test_fast_tables_are_not_kept(cache):
    cost_table(cost_model("bismo-edge"), network("digits_net").layers)
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-8],
        lambda content: content + b"\0" * 8,
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: b"\x93NUMPY" + content,
        lambda content: b"not a table",
    ],
    ids=["empty", "cut", "longer", "one bit", "another format", "text"],
)
def test_a_damaged_entry_is_computed_anew(cache, computed, damage):
    layers, model = network("digits_net").layers, cost_model("bitfusion-search")
    expected = cost_table(model, layers).values
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    forget()
    assert (cost_table(model, layers).values == expected).all()
    assert len(computed) == 2
    assert entry.read_bytes() == whole


def test_an_entry_of_another_table_is_not_taken(cache, computed):
    layers, model = network("digits_net").layers, cost_model("bitfusion-search")
    other = dataclasses.replace(model, constants=model.constants[1:])
    cost_table(model, layers)
    (entry,) = cache.iterdir()
    cost_table(other, layers)
    (second,) = set(cache.iterdir()) - {entry}
    second.write_bytes(entry.read_bytes())
    forget()
    cost_table(other, layers)
    assert len(computed) == 3


def test_a_folder_in_place_of_an_entry_does_no_harm(cache):
    layers, model = network("digits_net").layers, cost_model("bitfusion-search")
    expected = cost_table(model, layers).values
    (entry,) = cache.iterdir()
    entry.unlink()
    entry.mkdir()
    forget()
    assert (cost_table(model, layers).values == expected).all()


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HARDWARE_CACHE", str(tmp_path / "file" / "cache"))
    assert cost_table(cost_model("bitfusion-search"), network("digits_net").layers).values.shape == (6, 8, 8)


def test_an_empty_setting_means_the_usual_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDWARE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost_table(cost_model("bitfusion-search"), network("digits_net").layers)
    assert [path.name.startswith("bitfusion-search-") for path in (tmp_path / "network-quantization").iterdir()] == [
        True
    ]
