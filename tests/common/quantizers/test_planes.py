"""Bit planes: levels, nearest codes, least squares, encodings, and the contract of every quantizer built on them."""

import itertools

import pytest
import torch

from common.errors import UserError
from common.quantizers.binary import BWN, BinaryConnect, SignQuantizer
from common.quantizers.kmeans import KMeansQuantizer
from common.quantizers.multi_bit import ABCNetActivations, ABCNetWeights, LloydPlanes, LQNetsActivations, LQNetsWeights
from common.quantizers.planes import (
    PlanesEncoding,
    PlanesQuantizer,
    code_signs,
    level_sums,
    nearest_codes,
    nearest_levels,
    plane_levels,
    plane_scales,
    refitted_scales,
    sign_codes,
    solve_scales,
    straight_through,
)
from common.quantizers.ternary import TTQ, TWN


def normal(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- functions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slope, expected", [(None, [1.0, 1.0]), (torch.tensor([True, False]), [1.0, 0.0]), (torch.tensor(5.0), [5.0, 5.0])]
)
def test_straight_through_has_one_value_and_another_gradient(slope, expected):
    torch._dynamo.reset()
    for function in (straight_through, torch.compile(straight_through, backend="aot_eager", fullgraph=True)):
        x = torch.tensor([2.0, -3.0], requires_grad=True)
        y = function(torch.round(x / 7), x, slope)
        y.backward(torch.tensor([1.0, 1.0]))
        assert y.tolist() == [0.0, 0.0] and x.grad.tolist() == expected


def test_bit_m_of_a_code_is_plane_m():
    codes = torch.tensor([[0, 1, 2], [5, 6, 7]])
    planes = code_signs(codes, 3)
    assert planes[0].tolist() == [[-1, 1, -1], [1, -1, 1]]
    assert planes[2].tolist() == [[-1, -1, -1], [1, 1, 1]]
    assert code_signs(codes, 3, low=0)[1].tolist() == [[0, 0, 1], [0, 1, 1]]
    assert torch.equal(sign_codes(planes), codes)
    assert sign_codes(torch.tensor([[0.0], [-0.0]])).item() == 3


def test_levels_of_all_codes():
    scales = torch.tensor([[1.0, 4.0], [0.5, 0.25]])
    assert plane_levels(scales).tolist() == [[-5, -3, 3, 5], [-0.75, 0.25, -0.25, 0.75]]
    assert plane_levels(scales, low=0).tolist() == [[0, 1, 4, 5], [0, 0.5, 0.25, 0.75]]


def test_nearest_codes_by_the_book():
    x, levels = normal(4, 300), normal(4, 8, seed=1)
    codes = nearest_codes(x, levels)
    assert torch.equal(codes, (x[:, :, None] - levels[:, None]).abs().argmin(2))


def test_halfway_goes_up():
    assert nearest_codes(torch.tensor([[-1.0, 0.0, -0.0, 1.0]]), torch.tensor([[2.0, 0.0, -2.0]])).tolist() == [
        [1, 1, 1, 0]
    ]


def test_a_level_is_its_own_nearest_one_even_beside_its_neighbour():
    one = torch.tensor(1.0)
    for x in (one, torch.nextafter(one, 2 * one), 3 * one):
        levels = torch.stack([torch.nextafter(x, 2 * x), x, torch.nextafter(x, 0 * x), x])[None]
        chosen = levels[0, nearest_codes(levels, levels)[0]]
        assert torch.equal(chosen, levels[0])


@pytest.mark.parametrize("low", [-1, 0])
def test_scales_are_the_least_squares_solution(low):
    x, codes = normal(5, 40), torch.randint(8, (5, 40), generator=torch.Generator().manual_seed(0))
    planes = code_signs(codes, 3, low, torch.double)
    expected = torch.linalg.lstsq(planes.permute(1, 2, 0), x[:, :, None]).solution[:, :, 0]
    torch.testing.assert_close(plane_scales(x, planes), expected)


@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize("planes", [1, 3, 5])  # 2, 8 and 32 levels: compared and searched
def test_refitted_scales_are_the_least_squares_ones_of_the_nearest_codes(planes, low):
    x, scales, start = normal(4, 200), normal(4, planes, seed=1).abs(), normal(4, planes, seed=2)
    codes = nearest_codes(x, plane_levels(scales, low))
    b = code_signs(codes, planes, low, torch.double).permute(1, 2, 0)
    expected = torch.linalg.lstsq(b, x[:, :, None], driver="gelsd").solution[:, :, 0]
    torch.testing.assert_close(refitted_scales(x, scales, low), expected)
    ridge = 0.5 * torch.eye(planes)
    solution = torch.linalg.solve(b.mT @ b + ridge, (b.mT @ x[:, :, None])[:, :, 0] + 0.5 * start)
    torch.testing.assert_close(refitted_scales(x, scales, low, start, ridge=0.5), solution)


@pytest.mark.parametrize("levels", [1, 2, 7, 16, 17, 100])
def test_sums_of_levels_by_the_book(levels):
    x, table = normal(3, 500), normal(3, levels, seed=1)
    table[:, -1] = table[:, 0]  # one level twice
    codes = nearest_codes(x, table)
    assert torch.equal(nearest_levels(x, table), table.gather(1, codes))
    counts, sums = level_sums(x, table)
    for g in range(3):
        for level in range(levels):
            assert counts[g, level] == (codes[g] == level).sum()
            assert sums[g, level].item() == pytest.approx(x[g, codes[g] == level].sum().item(), abs=1e-9)


@pytest.mark.parametrize("levels", [8, 40])
def test_one_table_serves_any_shape(levels):
    x, table = normal(3, 4, 5, 2).to(memory_format=torch.channels_last), normal(levels, seed=1)
    row = x.reshape(1, -1), table[None]
    assert torch.equal(nearest_codes(x, table), nearest_codes(*row).reshape(x.shape))
    assert torch.equal(nearest_levels(x, table), nearest_levels(*row).reshape(x.shape))
    for one, rows in zip(level_sums(x, table), level_sums(*row), strict=True):
        torch.testing.assert_close(one, rows[0])
    scales = normal(3, seed=2)
    torch.testing.assert_close(refitted_scales(x, scales), refitted_scales(row[0], scales[None])[0])


def test_coinciding_planes_share_their_scale_or_stay_near_the_start():
    x = torch.tensor([[3.0, -3.0, 3.0]], dtype=torch.double)
    planes = torch.tensor([1.0, -1.0, 1.0], dtype=torch.double).expand(2, 1, 3)
    torch.testing.assert_close(plane_scales(x, planes), torch.tensor([[1.5, 1.5]], dtype=torch.double))
    gram, moments = torch.full((1, 2, 2), 3.0).double(), torch.tensor([[9.0, 9.0]]).double()
    start = torch.tensor([[2.0, 0.0]], dtype=torch.double)
    torch.testing.assert_close(solve_scales(gram, moments, start), torch.tensor([[2.5, 0.5]], dtype=torch.double))
    torch.testing.assert_close(solve_scales(0 * gram, 0 * moments, start), start)


def test_many_values_are_summed_exactly_enough():
    x = torch.full((1, 5_000_000), 0.1)
    assert plane_scales(x, torch.ones(1, 1, 5_000_000)).item() == pytest.approx(0.1, rel=1e-6)
    assert refitted_scales(x, torch.ones(1, 1)).item() == pytest.approx(0.1, rel=1e-6)


# -- encoding ----------------------------------------------------------------------------------------------------------


def encoding(codes, scales, planes, axis=0, group_sizes=None):
    sizes = group_sizes or (1,) * len(planes)
    return PlanesEncoding(torch.tensor(codes, dtype=torch.int32), torch.tensor(scales), axis, sizes, planes)


def test_decoded_values_are_signed_sums_of_their_groups_scales():
    encoded = encoding([[0, 1], [2, 3], [1, 0]], [[1.0, 4.0], [0.5, 9.0]], (2, 1), group_sizes=(2, 1))
    assert encoded.decode().tolist() == [[-5, -3], [3, 5], [0.5, -0.5]]
    assert encoded.decode().dtype == torch.float32


def test_groups_lie_along_any_axis():
    encoded = encoding([[0, 1, 1], [1, 0, 1]], [[1.0], [3.0]], (1, 1), axis=1, group_sizes=(2, 1))
    assert encoded.decode().tolist() == [[-1, 1, 3], [1, -1, 3]]


def test_a_group_without_planes_is_zero_and_takes_no_bits():
    encoded = encoding([[0, 0], [3, 1]], [[7.0, 7.0], [1.0, 4.0]], (0, 2))
    assert encoded.decode().tolist() == [[0, 0], [5, -3]]
    assert encoded.bits == (0, 2) and encoded.code_bytes == 1 and encoded.pack().tolist() == [0b0111]


@pytest.mark.parametrize("planes", [(1, 3, 2), (0, 0, 3), (3, 3, 3)])
def test_packed_planes_come_back(planes):
    generator = torch.Generator().manual_seed(1)
    codes = torch.stack([torch.randint(2**m, (7, 5), generator=generator, dtype=torch.int32) for m in planes])
    original = PlanesEncoding(codes, torch.rand(3, 3, generator=generator), 0, (1, 1, 1), planes)
    assert original.pack().numel() == original.code_bytes == -(-35 * sum(planes) // 8)
    unpacked = PlanesEncoding.unpack_codes(original.pack(), (3, 7, 5), 0, (1, 1, 1), planes)
    assert torch.equal(unpacked, codes)


def test_a_short_stream_is_refused():
    with pytest.raises(UserError, match="packed codes are too short"):
        PlanesEncoding.unpack_codes(torch.zeros(1, dtype=torch.uint8), (3, 4), 0, (3,), (1,))


def test_every_group_needs_scales():
    with pytest.raises(ValueError, match="for each of 2 groups"):
        encoding([[0], [1]], [[1.0]], (1, 1))


def test_planes_need_scales():
    with pytest.raises(ValueError, match=r"planes must lie in 0\.\.1, the scales of a group, got \(1, 2\)"):
        encoding([[0], [1]], [[1.0], [1.0]], (1, 2))


def test_group_sizes_have_to_fill_the_axis():
    with pytest.raises(ValueError, match="group_sizes add up to 3, axis has 2"):
        encoding([[0], [1]], [[1.0], [1.0]], (1, 1), group_sizes=(1, 2))


# -- PlanesQuantizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit_width", range(1, 9))
def test_first_levels_are_uniform_from_minus_one_to_one(bit_width):
    values = PlanesQuantizer(bit_width)(torch.linspace(-2, 2, 20_001)).unique()
    torch.testing.assert_close(values, torch.linspace(-1, 1, 2**bit_width))


@pytest.mark.parametrize("channels, expected", [(None, [-3.0, 3.0]), (2, [-3.0, -1.0, 1.0, 3.0])])
def test_uniform_levels_end_at_the_largest_value(channels, expected):
    x = torch.tensor([[-1.0, 0.9], [0.1, 3.0]])
    quantizer = PlanesQuantizer(1, channels=channels)
    quantizer.calibrate(x)
    assert quantizer(torch.tensor([[-9.0, 9.0], [9.0, -9.0]])).unique().tolist() == expected


def test_clipped_gradient_ends_at_the_largest_level():
    quantizer = PlanesQuantizer(2, channels=2, clipped=True)
    quantizer.scales.copy_(torch.tensor([[1.0, 0.5], [2.0, -1.0]]))
    x = torch.tensor([[1.5, 1.51, -1.5, -1.51], [1.51, -3.0, 3.01, 0.0]], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]
    x.grad = None
    quantizer.clipped = False
    quantizer(x).sum().backward()
    assert (x.grad == 1).all()


# -- every quantizer ---------------------------------------------------------------------------------------------------

WEIGHTS = [PlanesQuantizer, BinaryConnect, BWN, LloydPlanes, LQNetsWeights, ABCNetWeights, TWN, TTQ, KMeansQuantizer]
ACTIVATIONS = [SignQuantizer, LQNetsActivations, ABCNetActivations]
CASES = [
    pytest.param(kind, bit_width, id=f"{kind.__name__}-{bit_width}")
    for kind in WEIGHTS + ACTIVATIONS
    for bit_width in kind.traits.bit_widths
    if bit_width <= 4 or bit_width == 8
]
every_case = pytest.mark.parametrize("kind, bit_width", CASES)
PER_CHANNEL = [kind for kind in WEIGHTS + ACTIVATIONS if kind.traits.per_channel]


def values():
    others = torch.tensor([-100.0, 100.0, -0.0, 1e-9])
    return torch.cat([normal(291, dtype=torch.float), torch.arange(-32, 33) / 16, others]).sort().values


def fitted(kind, bit_width):
    quantizer = kind.of_width(bit_width, signed=kind.traits.signed)
    quantizer.calibrate(values().clamp(-2, 2) if kind.traits.signed else values().clamp(0, 2), 2.0)
    return quantizer.eval()


@every_case
def test_quantizing_twice_changes_nothing(kind, bit_width):
    quantizer = fitted(kind, bit_width)
    once = quantizer(values())
    assert torch.equal(quantizer(once), once)
    assert torch.equal(quantizer.inference_form()(once), once)
    assert torch.equal(quantizer(values()), once)


@every_case
def test_decoded_codes_are_the_forward_pass(kind, bit_width):
    quantizer, x = fitted(kind, bit_width), values().reshape(5, 6, 12)
    encoding = quantizer.encode(x)
    assert torch.equal(encoding.decode() + 0.0, quantizer(x) + 0.0)
    assert encoding.bits == (bit_width,) == (int(quantizer.bit_width),)
    codes = encoding.unpack_codes(encoding.pack(), x.shape, encoding.axis, encoding.group_sizes, encoding.bits)
    assert torch.equal(codes, encoding.codes) and codes.dtype == encoding.codes.dtype == torch.int32


@every_case
def test_values_are_few_and_keep_their_order(kind, bit_width):
    y = fitted(kind, bit_width)(torch.linspace(-8, 8, 50_000))
    assert (y + 0.0).unique().numel() <= 2**bit_width
    assert (y.diff() >= 0).all()
    if not kind.traits.signed:
        assert y.min() >= 0


@pytest.mark.parametrize("kind", [TWN, TTQ, LQNetsActivations])
def test_zero_stays_zero_where_it_is_a_level(kind):
    assert kind.traits.zero_is_level
    assert not any(fitted(kind, b)(torch.zeros(3)).any() for b in kind.traits.bit_widths)


@every_case
def test_bfloat16_goes_to_the_same_levels(kind, bit_width):
    quantizer, x = fitted(kind, bit_width), values().bfloat16()
    assert quantizer(x).dtype == torch.bfloat16
    assert torch.equal(quantizer(x), quantizer(x.float()).bfloat16())


@every_case
def test_a_saved_state_restores_the_levels(kind, bit_width):
    quantizer, restored = fitted(kind, bit_width), kind.of_width(bit_width, kind.traits.signed)
    restored.load_state_dict(quantizer.state_dict())
    assert torch.equal(restored.eval()(values()), quantizer(values()))


@pytest.mark.parametrize("kind", WEIGHTS + ACTIVATIONS)
@pytest.mark.parametrize("beyond", ["below", "above"])
def test_other_widths_are_refused(kind, beyond):
    widths = kind.traits.bit_widths
    with pytest.raises(ValueError, match=f"bit_width of {kind.__name__} must be one of"):
        kind.of_width(min(widths) - 1 if beyond == "below" else max(widths) + 1, signed=True)


@pytest.mark.parametrize("kind", WEIGHTS + ACTIVATIONS)
def test_the_other_range_is_refused(kind):
    assert kind.traits.signed != kind.traits.unsigned
    with pytest.raises(ValueError, match=f"{kind.__name__} has no .*signed range"):
        kind.of_width(kind.traits.bit_widths[0], signed=kind.traits.unsigned)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", PER_CHANNEL)
def test_per_channel_equals_a_loop_over_channels(kind, training):
    x = normal(5, 3, 4, 2, dtype=torch.float) * torch.tensor([0.1, 1.0, 2.0, 5.0, 0.01]).reshape(5, 1, 1, 1)
    bit_width = kind.traits.bit_widths[-1] if len(kind.traits.bit_widths) == 1 else 3
    together = kind(bit_width, channels=5)
    together.calibrate(x)
    for _ in range(2):
        y = together.train(training)(x)
    encoded = together.encode(x)
    assert encoded.bits == (bit_width,) * 5 and encoded.group_sizes == (1,) * 5
    for channel in range(5):
        single = kind(bit_width)
        single.calibrate(x[channel : channel + 1])
        for _ in range(2):
            alone = single.train(training)(x[channel : channel + 1])
        torch.testing.assert_close(y[channel : channel + 1], alone)
        torch.testing.assert_close(encoded.decode()[channel], single.encode(x[channel : channel + 1]).decode()[0])


def twin(kind, training):
    quantizer = kind.of_width(kind.traits.bit_widths[min(2, len(kind.traits.bit_widths) - 1)], kind.traits.signed)
    return quantizer.train(training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", WEIGHTS + ACTIVATIONS)
def test_compiled_steps_equal_eager_ones(kind, training):
    eager, other = twin(kind, training), twin(kind, training)
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for step in range(2):
        results = []
        for quantizer in (eager, compiled):
            x = normal(6, 4, 3, 3, seed=step, dtype=torch.float).requires_grad_()
            y = quantizer(x)
            (y * torch.arange(9.0).reshape(3, 3)).sum().backward()
            results.append((y.detach(), x.grad))
        torch.testing.assert_close(*results)
    for (name, a), (_, b) in zip(eager.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    for a, b in zip(eager.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("kind", WEIGHTS + ACTIVATIONS)
def test_bfloat16_autocast_leaves_float32_weights_alone(kind):
    plain, cast = twin(kind, True), twin(kind, True)
    x = normal(6, 4, 3, 3, dtype=torch.float)
    for _ in range(2):
        expected = plain(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = cast(x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("make", [BWN, TWN, lambda: ABCNetWeights(3)], ids=["bwn", "twn", "abc_net_M3"])
def test_golden_idempotence_on_W(make):
    """With statistics of the quantized matrix, not frozen ones."""
    weight = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]
    quantizer = make().double()
    once = quantizer(torch.tensor(weight, dtype=torch.double))
    torch.testing.assert_close(quantizer(once), once, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_keep_their_memory_format(kind):
    x = normal(2, 4, 3, 3, dtype=torch.float).to(memory_format=torch.channels_last)
    assert twin(kind, True)(x).is_contiguous(memory_format=torch.channels_last)


def test_of_all_gradients_none_is_missing():
    for kind, training in itertools.product(WEIGHTS + ACTIVATIONS, (True, False)):
        quantizer, x = twin(kind, training), normal(6, 4, dtype=torch.float).requires_grad_()
        quantizer(x).sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in quantizer.parameters())
