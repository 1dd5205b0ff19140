"""Observers: ranges by the book, golden numbers of the lecture; batches may come in any order and from anywhere."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from common.calibration.aciq import ACIQObserver
from common.calibration.kl import KLObserver
from common.calibration.observers import (
    MeanExtremesObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
    affine_parameters,
    mse_max_abs,
    observe_sites,
    set_affine_range,
    set_symmetric_range,
    symmetric_scale,
)
from common.graph import activation_outputs, find_sites, trace
from common.models import build_model
from common.quantizers import AffineQuantizer

W = torch.tensor(
    [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]],
    dtype=torch.float64,
)
OBSERVERS = {
    "min_max": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "mean_extremes": MeanExtremesObserver,
    "percentile": lambda: PercentileObserver(99.0),
    "percentile_affine": lambda: PercentileObserver(99.0, symmetric=False),
    "mse": MSEObserver,
    "mse_affine": lambda: MSEObserver(symmetric=False),
    "aciq": ACIQObserver,
    "aciq_best": lambda: ACIQObserver("best"),
    "kl": KLObserver,
}


def seen(observer, *batches):
    for batch in batches:
        observer.update(batch)
    return observer


def ends(observer, bit_width=8, signed=True):
    return tuple(end.item() for end in observer.range(bit_width, signed))


# golden numbers


def test_affine_2bit():
    scale, zero_point = affine_parameters(W.min(), W.max(), -2, 1)
    assert scale.item() == pytest.approx(1.0666666666666667, abs=1e-12) and zero_point.item() == -1
    assert (-2 - W.min() / scale).item() == pytest.approx(-0.9874999999999998, abs=1e-12)
    quantizer = AffineQuantizer(2).double()
    set_affine_range(quantizer, W.min(), W.max())
    encoding = quantizer.encode(W)
    assert (encoding.codes - 2).tolist() == [[1, -2, 0, -1], [-1, -1, -2, 1], [-2, 1, -1, -2], [1, -1, 0, 0]]
    s = 1.0666666666666667
    expected = [[2 * s, -s, s, 0], [0, 0, -s, 2 * s], [-s, 2 * s, 0, -s], [2 * s, 0, s, s]]
    torch.testing.assert_close(quantizer(W), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    error = quantizer(W) - W
    assert error.square().sum().item() == pytest.approx(0.7454222222222222, abs=1e-9)
    assert error.norm().item() == pytest.approx(0.8633783772033107, abs=1e-9)
    quantizer.scale.fill_(1.07)  # as printed
    assert (quantizer(W) - W).norm().item() == pytest.approx(0.8636550237218562, abs=1e-9)
    assert pytest.approx(-0.9906542056074765, abs=1e-12) == (-2 + 1.08 / 1.07)


@pytest.mark.parametrize("full_range", [False, True])
def test_symmetric_per_tensor_2bit(full_range):
    quantizer = AffineQuantizer(2).double()
    set_symmetric_range(quantizer, W.abs().max(), full_range)
    assert quantizer.scale.item() == pytest.approx(2.12, abs=1e-12) and quantizer.zero_point.item() == 0
    assert quantizer.quant_min.item() == (-2 if full_range else -1)
    codes = quantizer.encode(W).codes + int(quantizer.quant_min)
    assert codes.tolist() == [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 1, 1]]
    error = quantizer(W) - W
    assert error.square().sum().item() == pytest.approx(5.219200000000001, abs=1e-9)
    assert error.norm().item() == pytest.approx(2.284556849806982, abs=1e-9)


def test_symmetric_per_channel_2bit():
    low, high = seen(MinMaxObserver(axis=0, channels=4).double(), W).range(2)
    quantizer = AffineQuantizer(2, channels=4).double()
    set_symmetric_range(quantizer, torch.maximum(-low, high).double())
    torch.testing.assert_close(
        quantizer.scale, torch.tensor([2.09, 2.12, 1.92, 1.87], dtype=torch.float64), atol=1e-6, rtol=0
    )
    quantizer.scale.copy_(W.abs().amax(1))  # without float32 in between
    codes = quantizer.encode(W).codes + int(quantizer.quant_min)
    assert codes.tolist() == [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, -1], [1, 0, 1, 1]]
    expected = [[2.09, 0, 2.09, 0], [0, 0, -2.12, 2.12], [0, 1.92, 0, -1.92], [1.87, 0, 1.87, 1.87]]
    torch.testing.assert_close(quantizer(W), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    error = quantizer(W) - W
    assert error.square().sum().item() == pytest.approx(4.3245000000000005, abs=1e-9)
    assert error.norm().item() == pytest.approx(2.0795432190748047, abs=1e-9)


def test_ema_range():
    observer, found = MovingAverageObserver(momentum=0.1).double(), []
    for low, high in [(-1.0, 2.0), (-1.5, 4.0), (-0.5, 3.0)]:
        observer.update(torch.tensor([low, 0.3, high]))
        found.append(observer.average.tolist())
    expected = [[-1.0, 2.0], [-1.05, 2.2], [-0.9950000000000001, 2.2800000000000002]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-9, rtol=0)


# from a range to a grid


@pytest.mark.parametrize(
    "low, high, quant_min, quant_max, scale, zero_point",
    [
        (0.5, 2.55, 0, 255, 0.01, 0),  # widened to hold 0
        (-2.55, -0.5, 0, 255, 0.01, 255),
        (-1.0, 1.55, 0, 255, 0.01, 100),
        (-1.0, 1.55, -128, 127, 0.01, -28),
        (0.0, 0.0, 0, 255, 1.0, 0),
    ],
)
def test_affine_parameters(low, high, quant_min, quant_max, scale, zero_point):
    found = affine_parameters(torch.tensor(low), torch.tensor(high), quant_min, quant_max)
    assert found[0].item() == pytest.approx(scale, rel=1e-6) and found[1].item() == zero_point


def test_zero_is_a_level_and_quantizing_twice_changes_nothing():
    for seed in range(20):
        torch.manual_seed(seed)
        low, high = torch.randn(2).sort().values
        quantizer = AffineQuantizer(3, signed=bool(seed % 2))
        set_affine_range(quantizer, low, high)
        y = quantizer(torch.randn(200))
        assert quantizer(torch.zeros(1)).item() == 0 and torch.equal(quantizer(y), y)
        assert len(y.unique()) <= 8


def test_a_grid_without_room_is_refused():
    with pytest.raises(ValueError, match="quant_min must be below"):
        affine_parameters(torch.tensor(0.0), torch.tensor(1.0), 3, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        symmetric_scale(torch.tensor(1.0), 0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        set_symmetric_range(AffineQuantizer(1), torch.tensor(1.0))


def test_an_unsigned_symmetric_range_starts_at_zero():
    quantizer = AffineQuantizer(4, signed=False)
    set_symmetric_range(quantizer, torch.tensor(3.0))
    assert quantizer.quant_min == 0 and quantizer.scale.item() == pytest.approx(0.2)


# what all observers keep to


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_observer_returns_what_it_sees_and_its_state_is_a_state_dict(name):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5)
    observer = OBSERVERS[name]()
    assert observer(x) is x and not list(observer.parameters())
    copied = OBSERVERS[name]()
    copied.load_state_dict(observer.state_dict())
    assert ends(copied, 4) == ends(observer, 4)


@pytest.mark.parametrize("name", OBSERVERS)
def test_unsigned_ranges_start_at_zero_and_signed_ones_hold_it(name):
    torch.manual_seed(0)
    observer = seen(OBSERVERS[name](), torch.randn(64, 50))
    low, high = ends(observer, 4)
    assert low < 0 < high
    assert ends(observer, 4, signed=False)[0] == 0 < ends(observer, 4, signed=False)[1]


@pytest.mark.parametrize("name", OBSERVERS)
def test_before_the_first_batch_there_is_no_range(name):
    with pytest.raises(ValueError, match="has seen no values"):
        OBSERVERS[name]().range(8, True)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(name, value):
    observer = OBSERVERS[name]()
    with pytest.raises(ValueError, match="not finite"):
        observer.update(torch.tensor([[1.0, value]]))
        observer.range(8, True)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_tensor_of_zeros_has_the_range_zero(name):
    assert ends(seen(OBSERVERS[name](), torch.zeros(2, 3)), 4) == (0, 0)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("signed", [True, False])
def test_scaling_by_a_power_of_two_scales_the_range(name, signed):
    torch.manual_seed(0)
    x = torch.randn(16, 500) ** 3
    plain, scaled = (ends(seen(OBSERVERS[name](), factor * x), 4, signed) for factor in (1, 0.125))
    assert scaled == pytest.approx([0.125 * end for end in plain], rel=1e-5)


@pytest.mark.parametrize("name", OBSERVERS)
def test_merged_observers_answer_as_one_that_saw_everything(name):
    torch.manual_seed(0)
    batches = [torch.randn(4, 7, 9) * scale for scale in (1, 30, 0.2, 5)]
    batches[2].relu_()
    whole = seen(OBSERVERS[name](), *batches)
    first, second, empty = (
        seen(OBSERVERS[name](), *batches[:2]),
        seen(OBSERVERS[name](), *batches[2:]),
        OBSERVERS[name](),
    )
    second_before = copy.deepcopy(second.state_dict())
    first.merge(second)
    first.merge(OBSERVERS[name]())
    empty.merge(first)
    for observer in (first, empty):
        for signed in (True, False):
            assert ends(observer, 4, signed) == pytest.approx(ends(whole, 4, signed), rel=1e-6)
    assert all(torch.equal(second_before[key], value) for key, value in second.state_dict().items())


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "moving_average"])
def test_the_order_of_batches_does_not_matter(name):
    torch.manual_seed(0)
    batches = [torch.randn(4, 50) * scale for scale in (1, 1000, 1e-4, 5)]
    one, other = seen(OBSERVERS[name](), *batches), seen(OBSERVERS[name](), *batches[::-1])
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_synchronized_observers_are_equal_and_merged_in_the_order_of_ranks(name, monkeypatch):
    torch.manual_seed(0)
    batches = [torch.randn(4, 50) * scale for scale in (1, 30, 0.2, 5)]
    ranks = [seen(OBSERVERS[name](), *batches[:2]), seen(OBSERVERS[name](), *batches[2:])]
    states = [copy.deepcopy(rank.state_dict()) for rank in ranks]

    asked = []

    def gather(found, own):
        asked.append(copy.deepcopy(own))  # the buffers themselves, which change next
        found[:] = copy.deepcopy(states)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in ranks:
        rank.synchronize()
    for own, state in zip(asked, states, strict=True):
        assert all(torch.equal(own[key], value) for key, value in state.items())
    whole = seen(OBSERVERS[name](), *batches)
    for rank in ranks:
        assert ends(rank, 4) == pytest.approx(ends(whole, 4), rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(ranks[0].buffers(), ranks[1].buffers(), strict=True))


PROCESS = """
import sys, torch, torch.distributed as dist
from common.calibration.aciq import ACIQObserver
from common.calibration.kl import KLObserver
from common.calibration.observers import *
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
batches = [torch.randn(4, 50) * scale for scale in (1, 30, 0.2, 5)]
for kind in (MinMaxObserver, MovingAverageObserver, MeanExtremesObserver, PercentileObserver, MSEObserver, ACIQObserver,
             KLObserver):
    whole, own = kind(), kind()
    for batch in batches:
        whole.update(batch)
    for batch in batches[2 * rank : 2 * rank + 2]:
        own.update(batch)
    own.synchronize()
    for a, b in zip(own.state_dict().values(), whole.state_dict().values(), strict=True):
        if kind is not MovingAverageObserver or a.shape == whole.average.shape:
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(own.range(4, True), whole.range(4, True))
print("equal")
"""


@pytest.mark.slow
def test_two_processes_agree_on_what_one_would_have_seen(tmp_path, repository):
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=repository,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        output, errors = process.communicate(timeout=300)
        assert output.strip() == "equal", errors[-2000:]


def test_alone_synchronize_does_nothing():
    observer = seen(MinMaxObserver(), torch.tensor([-1.0, 2.0]))
    observer.synchronize()
    assert ends(observer) == (-1, 2)


@pytest.mark.parametrize("name", ["min_max", "moving_average", "mean_extremes"])
def test_observers_of_training_compile_into_one_graph(name):
    torch.manual_seed(0)
    plain, compiled = OBSERVERS[name](), OBSERVERS[name]()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for scale in (1.0, 3.0):
        x = torch.randn(4, 3, 5) * scale
        plain(x)
        run(x)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), compiled.buffers(), strict=True))


def test_bfloat16_is_seen_in_float32():
    x = torch.tensor([[-1.5, 0.25, 3.0]], dtype=torch.bfloat16)
    for name in OBSERVERS:
        low, high = seen(OBSERVERS[name](), x).range(8, True)
        assert low.dtype == high.dtype == torch.float32


def test_observers_at_the_sites_of_a_network():
    torch.manual_seed(0)
    example = torch.zeros(1, 1, 8, 8)
    network = trace(build_model("digits_net"), example).eval()
    sites = activation_outputs(find_sites(network, example), network)
    batches = [torch.randn(4, 1, 8, 8) for _ in range(3)]
    observers = observe_sites(network, batches, iter(sites), lambda site: MinMaxObserver())
    assert list(observers) == [site.name for site in sites]
    with torch.no_grad():
        first = torch.relu(network.bn1(network.conv1(torch.cat(batches))))
    assert ends(observers["relu1.output"]) == pytest.approx((0, first.max().item()), rel=1e-6)


# one by one


def test_min_max_per_channel_is_a_loop_over_channels():
    torch.manual_seed(0)
    batches = [torch.randn(5, 3, 4) for _ in range(2)]
    low, high = seen(MinMaxObserver(axis=1, channels=3), *batches).range(8)
    for channel in range(3):
        alone = seen(MinMaxObserver(), *(batch[:, channel] for batch in batches))
        assert ends(alone) == (low[channel].item(), high[channel].item())
    with pytest.raises(ValueError, match="belong together"):
        MinMaxObserver(axis=0)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5])
def test_a_momentum_outside_its_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\]"):
        MovingAverageObserver(momentum)


def test_mean_of_the_extremes_of_each_sample():
    x = torch.tensor([[-1.0, 2.0, 0.0], [-3.0, 1.0, 0.0], [0.5, 9.0, 0.0]])
    assert ends(seen(MeanExtremesObserver(), x[:1], x[1:])) == pytest.approx((-4 / 3, 4.0))


def test_percentiles_are_those_of_all_values():
    torch.manual_seed(0)
    x = torch.randn(20_000) * torch.tensor([1.0, 3.0]).repeat(10_000)
    x[::4] = 0  # many zeros count as values too
    observer = seen(PercentileObserver(99.0), x[:7000], x[7000:])
    assert ends(observer)[1] == pytest.approx(x.abs().quantile(0.99).item(), rel=3e-3)
    assert ends(observer)[0] == -ends(observer)[1]
    affine = seen(PercentileObserver(99.0, symmetric=False), x + (x > 0) * x)
    expected = [(x + (x > 0) * x).quantile(q).item() for q in (0.01, 0.99)]
    assert ends(affine) == pytest.approx(expected, rel=1e-2)
    assert ends(seen(PercentileObserver(100.0), x)) == (-x.abs().max().item(), x.abs().max().item())
    one_sided = seen(PercentileObserver(90.0), torch.cat([torch.arange(101.0), torch.full((5,), -1000.0)]))
    assert ends(one_sided, signed=False)[1] == pytest.approx(90, abs=1)
    with pytest.raises(ValueError, match="percentile must be in"):
        PercentileObserver(50)


def test_the_histogram_counts_every_value_once():
    torch.manual_seed(0)
    x = torch.randn(100_000)
    x[::3] = 0
    observer = MSEObserver(bins=256)
    for part in (0.01 * x, x, 0.5 * x):
        observer.update(part)
    values = torch.cat([0.01 * x, x, 0.5 * x])
    width = observer.bin_width
    assert 256 <= values.abs().max() / width <= 512
    assert observer.zeros == (values == 0).sum()
    expected = torch.bincount((values[values != 0] / width).floor().long() + 512, minlength=1024)
    assert torch.equal(observer.histogram, expected)
    assert observer.magnitudes().sum() + observer.zeros == values.numel()
    assert observer.max_abs == values.abs().max()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30, 3e38])
def test_the_histogram_takes_values_of_any_size(scale):
    x = torch.tensor([-1.0, 0.0, 0.25, 1.0]) * scale
    observer = seen(MSEObserver(), x)
    assert observer.zeros == 1 and observer.histogram.sum() == 3
    assert 0 < ends(observer)[1] <= scale * 1.0001


def test_values_smaller_than_a_bin_of_larger_ones_join_it():
    observer = seen(MSEObserver(), torch.tensor([1e-20, -1e-20]), torch.tensor([1.0]))
    assert observer.histogram[observer.half] == 1 == observer.histogram[observer.half - 1]


def test_the_number_of_bins_is_a_power_of_two():
    with pytest.raises(ValueError, match="bins must be a power of two, got 2000"):
        MSEObserver(bins=2000)


# least squared error


def error_of(x, threshold, quant_min, quant_max):
    scale = threshold / quant_max
    return (scale * torch.clamp(torch.round(x / scale), quant_min, quant_max) - x).square().mean()


@pytest.mark.parametrize(
    "bit_width, signed, full_range", [(2, True, False), (3, True, True), (4, False, False), (8, True, False)]
)
def test_the_error_of_the_histogram_is_that_of_the_values(bit_width, signed, full_range):
    torch.manual_seed(0)
    x = torch.randn(200_000).double().abs() ** 1.5 * (torch.randint(2, (200_000,)) * 2 - 1 if signed else 1)
    x[::5] = 0
    observer = seen(MSEObserver(full_range=full_range, bins=4096), x)
    quant_max = 2 ** (bit_width - signed) - 1
    quant_min = -quant_max - full_range if signed else 0
    for share in (0.1, 0.5, 0.9):
        threshold = share * x.abs().max()
        found = observer.error((threshold / quant_max)[None], quant_min, quant_max)
        assert found.item() == pytest.approx(error_of(x, threshold, quant_min, quant_max).item(), rel=5e-3)


@pytest.mark.parametrize("bit_width, signed, full_range", [(2, True, False), (3, True, True), (4, False, False)])
def test_the_mse_range_is_the_best_of_many(bit_width, signed, full_range):
    torch.manual_seed(0)
    x = torch.randn(50_000) ** 3
    x = x if signed else x.abs()
    quant_max = 2 ** (bit_width - signed) - 1
    quant_min = -quant_max - full_range if signed else 0
    best = min(error_of(x, i / 2000 * x.abs().max(), quant_min, quant_max) for i in range(1, 2001))
    for threshold in (
        seen(MSEObserver(full_range=full_range), x).range(bit_width, signed)[1],
        mse_max_abs(x, bit_width, signed=signed, full_range=full_range),
    ):
        assert error_of(x, threshold, quant_min, quant_max) <= 1.002 * best


def test_the_affine_mse_range_shrinks_both_ends_alike():
    torch.manual_seed(0)
    x = torch.randn(50_000) ** 3 + 0.5
    low, high = ends(seen(MSEObserver(symmetric=False), x), 3)
    assert low / x.min().item() == pytest.approx(high / x.max().item(), rel=1e-5) and 0.05 < high / x.max() < 0.6
    quantizer = AffineQuantizer(3)

    def error(share):
        set_affine_range(quantizer, share * x.min(), share * x.max())
        return (quantizer(x) - x).square().mean().item()

    assert error(high / x.max().item()) <= 1.01 * min(error(i / 500) for i in range(1, 501))


def test_per_channel_mse_is_a_loop_over_channels_and_no_worse_than_per_tensor():
    torch.manual_seed(0)
    for _ in range(5):
        weight = torch.randn(6, 4, 3, 3) * torch.rand(6, 1, 1, 1)
        per_channel, per_tensor = mse_max_abs(weight, 4, axis=0), mse_max_abs(weight, 4)
        loop = torch.stack([mse_max_abs(channel, 4) for channel in weight])
        torch.testing.assert_close(per_channel, loop)
        errors = [error_of(w, a, -7, 7) for w, a in zip(weight, per_channel, strict=True)]
        assert torch.stack(errors).mean() <= error_of(weight, per_tensor, -7, 7)


def test_channels_of_zeros_and_of_one_value():
    weight = torch.stack([torch.zeros(9), torch.full((9,), -0.7)])
    assert mse_max_abs(weight, 4, axis=0).tolist() == pytest.approx([0.0, 0.7], rel=1e-4)
