"""Level tables: encodings, and the projection onto sorted levels."""

import pytest
import torch

from common.errors import UserError
from common.quantizers.levels import LevelsEncoding, LevelsQuantizer, level_codes, midpoints, project


def encoding(codes, levels, bits=(2,), axis=0, groups=None):
    groups = groups or (codes.shape[axis] if codes.dim() else 1,)
    return LevelsEncoding(torch.as_tensor(codes, dtype=torch.int32), torch.tensor(levels), axis, groups, bits)


def unpack(packed, like):
    return LevelsEncoding.unpack_codes(packed, tuple(like.codes.shape), like.axis, like.group_sizes, like.bits)


def test_decode_looks_codes_up_in_one_table():
    original = encoding(torch.tensor([[3, 0], [1, 2]]), [-1.0, 0.0, 1.5, 2.0])
    assert original.decode().tolist() == [[2.0, -1.0], [0.0, 1.5]]
    assert original.decode().dtype == torch.float32
    assert encoding(torch.tensor(2), [-1.0, 0.0, 1.5, 2.0]).decode().tolist() == 1.5


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_decode_gives_each_group_its_own_row(axis):
    codes = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    original = encoding(codes, [[-1.0, 1.0], [10.0, 20.0]], bits=(1, 1), axis=axis, groups=(1, 2))
    expected = torch.empty(3, 3)
    for i in range(3):
        for j in range(3):
            group = min((i, j, j)[axis], 1)
            expected[i, j] = [[-1.0, 1.0], [10.0, 20.0]][group][codes[i, j]]
    assert torch.equal(original.decode(), expected)


def test_a_pruned_group_decodes_to_zero_and_stores_nothing():
    original = encoding(torch.tensor([[1, 1], [0, 0]]), [[0.5, 3.0], [7.0, 8.0]], bits=(1, 0), groups=(1, 1))
    assert original.decode().tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert original.code_bytes == original.pack().numel() == 1


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3, 3, 1)])
def test_codes_of_every_width_come_back(bits, shape):
    codes = torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    original = encoding(codes, [float(i) for i in range(2**bits)], bits=(bits,))
    assert original.pack().dtype == torch.uint8
    assert original.pack().numel() == original.code_bytes == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack(original.pack(), original), codes)


def test_groups_of_different_widths_share_one_stream():
    codes = torch.cat([torch.arange(8).reshape(2, 4), torch.arange(4).reshape(1, 4)])
    original = encoding(codes, [[0.0] * 8, [0.0] * 8], bits=(3, 2), groups=(2, 1))
    assert original.code_bytes == 4  # 8 codes of 3 bits, 4 of 2
    assert torch.equal(unpack(original.pack(), original), codes.int())


def test_codes_beyond_their_width_are_refused():
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.3, got 0\.\.4"):
        encoding(torch.tensor([0, 4]), [0.0] * 5).pack()


def test_a_stream_of_another_length_is_refused():
    with pytest.raises(UserError, match="packed codes are too short: 1 bytes"):
        LevelsEncoding.unpack_codes(torch.zeros(1, dtype=torch.uint8), (8,), 0, (8,), (2,))


def test_group_sizes_have_to_fill_the_axis():
    with pytest.raises(ValueError, match="group_sizes add up to 3, axis has 4"):
        encoding(torch.zeros(4), [0.0, 1.0], groups=(3,))


def test_every_group_needs_a_width():
    with pytest.raises(ValueError, match="for each of 2 groups"):
        encoding(torch.zeros(4), [0.0, 1.0], groups=(2, 2))


def test_every_group_needs_a_table():
    with pytest.raises(ValueError, match="for each of 2 groups"):
        encoding(torch.zeros(4), [[0.0, 1.0]], bits=(1, 1), groups=(2, 2))


# -- projection ------------------------------------------------------------------------------------------------------

TABLES = {n: torch.randn(n, generator=torch.Generator().manual_seed(n)).sort().values for n in (2, 3, 16, 33, 200)}


def values(table):
    random = torch.randn(500, generator=torch.Generator().manual_seed(7))
    return torch.cat([random, table, midpoints(table), torch.tensor([-1e30, 1e30, 0.0, -0.0])])


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_projection_is_the_nearest_level_of_a_full_scan(table):
    x = torch.randn(500, generator=torch.Generator().manual_seed(7))
    expected = table[(x[:, None] - table).abs().argmin(1)]
    assert torch.equal(project(x, table, midpoints(table)), expected)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("ties_up", [True, False])
def test_codes_count_the_thresholds(table, ties_up):
    thresholds, x = midpoints(table), values(table)
    reached = x[:, None] >= thresholds if ties_up else x[:, None] > thresholds
    codes = level_codes(x, thresholds, ties_up)
    assert codes.dtype == torch.int32 and torch.equal(codes, reached.sum(1).int())
    assert torch.equal(project(x, table, thresholds, ties_up), table[codes.long()])


@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("ties_up", [True, False])
def test_compiled_projection_is_eager(n, ties_up):
    torch._dynamo.reset()
    table = torch.linspace(-2, 2, n)
    x = values(table)
    compiled = torch.compile(project, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, table, midpoints(table), ties_up), project(x, table, midpoints(table), ties_up))


@pytest.mark.parametrize("n", [4, 40])
def test_projection_keeps_the_memory_format(n):
    table = torch.linspace(-2, 2, n)
    x = torch.randn(2, 3, 4, 5)
    for other in (x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3), x[:, :, ::2]):
        y = project(other, table, midpoints(table))
        assert torch.equal(y, project(other.contiguous(), table, midpoints(table)))
        assert y.stride() == torch.empty_like(other).stride()


# -- quantizer -------------------------------------------------------------------------------------------------------

LEVELS = [-1.0, -0.25, 0.0, 0.5]


def test_gradients_of_the_levels():
    quantizer = LevelsQuantizer(2, levels=LEVELS).double()
    quantizer.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.double))
    cases = [  # x, y, dy/dx, dy/dscale: level - x / scale within -2 .. 1, the outermost level beyond
        (-5.0, -2.0, 0, -1.0),
        (-2.0, -2.0, 1, 0.0),
        (-1.6, -2.0, 1, -0.2),
        (0.1, 0.0, 1, -0.05),
        (0.5, 1.0, 1, 0.25),  # halfway: up
        (1.0, 1.0, 1, 0.0),
        (1.1, 1.0, 0, 0.5),
    ]
    for value, y, dx, dscale in cases:
        x = torch.tensor(value, dtype=torch.double, requires_grad=True)
        output = quantizer(x)
        quantizer.scale.grad = None
        output.backward()
        assert (output.item(), x.grad.item(), quantizer.scale.grad.item()) == (y, dx, pytest.approx(dscale, abs=1e-12))


def test_straight_projection_passes_the_gradient_everywhere():
    x = torch.tensor([-9.0, 0.1, 9.0], requires_grad=True)
    LevelsQuantizer(2, levels=LEVELS).project(x, straight=True).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("bit_width", [1, 3, 6])
def test_quantizer_keeps_the_contract(channels, bit_width):
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(5))
    quantizer = LevelsQuantizer(bit_width, channels=channels)
    quantizer.scale.copy_(torch.linspace(0.3, 1.7, 4) if channels else torch.tensor(0.7))
    y = quantizer(x)
    assert torch.equal(quantizer(y), y)
    encoding = quantizer.encode(x)
    assert torch.equal(encoding.decode(), y) and torch.equal(unpack(encoding.pack(), encoding), encoding.codes)
    assert len(encoding.bits) == (channels or 1)
    for channel in range(4):
        single = LevelsQuantizer(bit_width)
        single.scale.copy_(quantizer.scale[channel] if channels else quantizer.scale)
        assert torch.equal(single(x[channel]), y[channel])


def test_default_levels_are_uniform():
    assert LevelsQuantizer(2).levels.tolist() == [-1, -0.5, 0, 0.5]
    assert LevelsQuantizer(2, signed=False).levels.tolist() == [pytest.approx(i / 3) for i in range(4)]
    assert LevelsQuantizer(1).levels.tolist() == [-1, 0]


def test_thresholds_of_its_own():
    quantizer = LevelsQuantizer(2, levels=[0.0, 1.0, 2.0], thresholds=[0.0, 1.5], ties_up=False)
    assert quantizer(torch.tensor([-1.0, 0.0, 0.1, 1.5, 1.6])).tolist() == [0, 0, 1, 1, 2]
    assert quantizer.encode(torch.tensor([0.1])).decode().tolist() == [1]


def test_compiled_quantizer_is_eager():
    torch._dynamo.reset()
    x = torch.randn(300)
    quantizer = LevelsQuantizer(3)
    gradients = []
    for function in (quantizer, torch.compile(quantizer, backend="aot_eager", fullgraph=True)):
        v = x.clone().requires_grad_()
        y = function(v)
        y.square().sum().backward()
        gradients.append((y.detach(), v.grad))
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])


def test_bfloat16_is_compared_in_float32():
    quantizer = LevelsQuantizer(4)
    quantizer.scale.fill_(0.37)
    x = torch.randn(1000).bfloat16()
    y = quantizer(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, quantizer(x.float()).bfloat16())
    assert torch.equal(quantizer.encode(x).decode(), quantizer(x.float()))


def test_its_inference_form_is_itself():
    quantizer = LevelsQuantizer(4)
    assert quantizer.inference_form() is quantizer


@pytest.mark.parametrize("levels", [[0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
def test_levels_that_do_not_fit(levels):
    with pytest.raises(ValueError, match="levels must be 2 to 4 ascending numbers"):
        LevelsQuantizer(2, levels=levels)


@pytest.mark.parametrize("thresholds", [[0.0], [0.5, 0.0]])
def test_thresholds_that_do_not_fit(thresholds):
    with pytest.raises(ValueError, match="thresholds must be 2 ascending numbers"):
        LevelsQuantizer(2, levels=[0.0, 1.0, 2.0], thresholds=thresholds)
