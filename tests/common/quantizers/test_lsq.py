"""LSQ and LSQ+: the paper's numbers and equations, in and out of range, and the module around them."""

import math

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from common.quantizers.lsq import LSQ, OffsetQuantizer, learned_scale, positive, quantize_learned, scale_gradient

V = [-1.3, -0.45, -0.2, 0.0, 0.12, 0.3, 0.38, 0.9]  # golden input; scale 0.25


def double(values):
    return torch.tensor(values, dtype=torch.double)


def approx(values):
    return pytest.approx(values, abs=1e-9)


def per_element(function, x, scale):
    """y, dy/dx and dy/dscale of each element by itself."""
    results = []
    for value in x:
        v, s = double(value).requires_grad_(), double(scale).requires_grad_()
        y = function(v, s)
        results.append((y.item(), *(g.item() for g in torch.autograd.grad(y, [v, s]))))
    return [list(column) for column in zip(*results, strict=True)]


def test_golden_lsq_signed_3bit():
    y, mask, grad_scale = per_element(lambda v, s: quantize_learned(v, s, double(-4.0), double(3.0)), V, 0.25)
    assert y == approx([-1.0, -0.5, -0.25, 0.0, 0.0, 0.25, 0.5, 0.75])
    assert mask == [0, 1, 1, 1, 1, 1, 1, 0]
    assert grad_scale == approx([-4.0, -0.2, -0.2, 0.0, -0.48, -0.2, 0.48, 3.0])
    assert sum(grad_scale) == approx(-1.6)


def test_golden_lsq_unsigned_3bit():
    y, mask, grad_scale = per_element(lambda v, s: quantize_learned(v, s, double(0.0), double(7.0)), V, 0.25)
    assert y == approx([0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 1.0])
    assert mask == [0, 0, 0, 0, 1, 1, 1, 1]
    assert grad_scale == approx([0.0, 0.0, 0.0, 0.0, -0.48, -0.2, 0.48, 0.4])


@pytest.mark.parametrize(
    "signed, start, gradient",
    [(True, 0.5268321206355335, -0.32659863237109055), (False, 0.34489258162091985, 0.2 * 0.1336306209562122)],
)
def test_golden_lsq_start_and_scaled_gradient(signed, start, gradient):
    quantizer = LSQ(3, signed).double()
    quantizer.calibrate(double(V), 1.3)
    assert quantizer.scale.item() == approx(start)
    with torch.no_grad():
        quantizer.scale.fill_(0.25)
    quantizer(double(V)).sum().backward()
    assert quantizer.scale.grad.item() == approx(gradient)


@pytest.mark.parametrize(
    "inside, x, y, dx, dscale",
    [  # scale 1, integers -4 .. 3; halves go to even
        ("open", -9.0, -4.0, 0, -4.0),
        ("open", -4.0, -4.0, 0, -4.0),
        ("open", -3.99, -4.0, 1, -0.01),
        ("open", 2.99, 3.0, 1, 0.01),
        ("open", 3.0, 3.0, 0, 3.0),
        ("open", 9.0, 3.0, 0, 3.0),
        ("closed", -4.01, -4.0, 0, -4.0),
        ("closed", -4.0, -4.0, 1, 0.0),
        ("closed", 3.0, 3.0, 1, 0.0),
        ("closed", 3.01, 3.0, 0, 3.0),
        ("rounded", -4.6, -4.0, 0, -4.0),
        ("rounded", -4.5, -4.0, 1, 0.5),
        ("rounded", 3.4, 3.0, 1, -0.4),
        ("rounded", 3.5, 3.0, 0, 3.0),
    ],
)
def test_gradients_at_and_near_the_ends(inside, x, y, dx, dscale):
    result = per_element(lambda v, s: quantize_learned(v, s, double(-4.0), double(3.0), inside), [x], 1.0)
    assert result == [[y], [dx], approx([dscale])]


def test_gradients_are_those_of_the_surrogate_with_frozen_codes():
    # Frozen: the rounding error in steps and the side of the range. What is left is smooth.
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, generator=generator, dtype=torch.double) * 2
    scale, low, high, h = 0.31, -4.0, 3.0, 1e-6
    steps = x / scale
    error = torch.round(steps) - steps
    below, above = steps <= low, steps >= high

    def surrogate(x, s):
        inside = s * (x / s + error)
        return torch.where(below, s * low, torch.where(above, s * high, inside))

    v, s = x.clone().requires_grad_(), double(scale).requires_grad_()
    weight = torch.randn(200, generator=generator, dtype=torch.double)
    (quantize_learned(v, s, double(low), double(high)) * weight).sum().backward()
    by_x = (surrogate(x + h, scale) - surrogate(x - h, scale)) / (2 * h) * weight
    by_scale = ((surrogate(x, scale + h) - surrogate(x, scale - h)) / (2 * h) * weight).sum()
    torch.testing.assert_close(v.grad, by_x, atol=1e-7, rtol=0)
    assert s.grad.item() == pytest.approx(by_scale.item(), abs=1e-6)


@pytest.mark.parametrize("inside", ["open", "closed", "rounded"])
@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_compiled_is_eager(inside, straight, per_channel):
    torch._dynamo.reset()
    low, high = torch.tensor(-4.0), torch.tensor(3.0)
    x = torch.cat([torch.randn(500), torch.tensor([-1.2, -1.35, 0.9, 1.05, 99.0, -99.0])]).reshape(2, 253)
    size = (2, 1) if per_channel else ()

    def function(x, scale):
        project = lambda steps: torch.clamp(steps.round_(), low, high)  # noqa: E731
        return learned_scale(x, scale, low, high, project, inside, straight)

    results = []
    for f in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        v, s = x.clone().requires_grad_(), torch.full(size, 0.3).requires_grad_()
        y = f(v, s)
        (y * torch.linspace(-1, 1, 506).reshape(2, 253)).sum().backward()
        results.append((y.detach(), v.grad, s.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inside", ["open", "closed", "rounded"])
def test_compiled_forward_hands_on_no_masks(inside):
    found = []

    def forward(graph_module, inputs):
        (outputs,) = next(node for node in graph_module.graph.nodes if node.op == "output").args
        found.extend(node.meta["val"] for node in outputs if node is not None)
        return make_boxed_func(graph_module)

    backend = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph_module, inputs: make_boxed_func(graph_module),
        partition_fn=min_cut_rematerialization_partition,
    )
    torch._dynamo.reset()
    low, high = torch.tensor(-4.0), torch.tensor(3.0)
    compiled = torch.compile(
        lambda x, s: quantize_learned(x * 2, s, low, high, inside), backend=backend, fullgraph=True
    )
    compiled(torch.randn(8, 100, requires_grad=True), torch.tensor(0.3, requires_grad=True)).sum().backward()
    assert {v.dtype for v in found if isinstance(v, torch.Tensor) and v.numel() > 1} == {torch.float32}


def test_straight_gradient_passes_everywhere_and_leaves_the_scale_alone():
    def function(v, s):
        return learned_scale(v, s, double(-1.0), double(1.0), lambda u: u.round_().clamp_(-1, 1), straight=True)

    assert per_element(function, [-3.0, 0.2, 3.0], 1.0) == [[-1, 0, 1], [1, 1, 1], approx([-1, -0.2, 1])]


@pytest.mark.parametrize("function", [positive, lambda x: scale_gradient(x, 1.0)])
def test_parameters_pass_unchanged(function):
    x = torch.rand(1000) + 1e-3
    assert torch.equal(function(x), x)


def test_positive_keeps_the_gradient_of_a_step_that_fell_below():
    x = torch.tensor([-0.3, 0.0, 1e-9, 0.5], requires_grad=True)
    y = positive(x)
    y.sum().backward()
    assert y.tolist() == pytest.approx([1e-8, 1e-8, 1e-8, 0.5]) and (y > 0).all()
    assert x.grad.tolist() == [1, 1, 1, 1]


def test_a_negative_step_gives_no_nan():
    quantizer = LSQ(3)
    with torch.no_grad():
        quantizer.scale.fill_(-0.1)
    y = quantizer(torch.randn(10, requires_grad=True))
    y.sum().backward()
    assert y.isfinite().all() and quantizer.scale.grad.isfinite() and quantizer.scale.grad != 0


def test_scale_gradient_multiplies():
    x = torch.tensor(3.0, requires_grad=True)
    (scale_gradient(x, 0.25) * 2).backward()
    assert x.grad == 0.5


@pytest.mark.parametrize(
    "quantizer, shape, count",
    [
        (LSQ(3), (4, 2, 3), 24),
        (LSQ(3, channels=4), (4, 2, 3), 6),
        (LSQ(3, signed=False, batched=True), (4, 2, 3), 6),
        (LSQ(3, signed=False, batched=True), (16, 2, 3), 6),
    ],
)
def test_gradient_scale_counts_the_values_that_share_a_step(quantizer, shape, count):
    x = torch.full(shape, 100.0)  # all above the range: dv/ds = Q_P each
    quantizer(x).sum().backward()
    top = 3.0 if quantizer.signed else 7.0
    values = x.numel() / quantizer.scale.numel()
    expected = values * top / math.sqrt(count * top)
    torch.testing.assert_close(quantizer.scale.grad, torch.full_like(quantizer.scale, expected))


def test_per_channel_is_a_loop_over_channels():
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    together = LSQ(3, channels=3)
    together.calibrate(x)
    y = together(x)
    (y * x).sum().backward()
    for channel in range(3):
        single = LSQ(3)
        single.calibrate(x[channel])
        torch.testing.assert_close(single.scale, together.scale[channel])
        with torch.no_grad():
            single.scale.copy_(together.scale[channel])
        z = single(x[channel])
        (z * x[channel]).sum().backward()
        assert torch.equal(z, y[channel])
        torch.testing.assert_close(single.scale.grad, together.scale.grad[channel])


# -- LSQ+ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, y, dx, dscale, doffset",
    [  # s = 0.5, beta = -0.3, integers 0 .. 7: values -0.3 .. 3.2
        (-2.0, -0.3, 0, 0.0, 1),
        (-0.3, -0.3, 0, 0.0, 1),
        (0.6, 0.7, 1, 0.2, 0),
        (1.0, 1.2, 1, 0.4, 0),
        (3.3, 3.2, 0, 7.0, 1),
    ],
)
def test_offset_learns_outside_the_range_only(x, y, dx, dscale, doffset):
    quantizer = LSQ(3, signed=False, offset=True).double()
    with torch.no_grad():
        quantizer.scale.fill_(0.5)
        quantizer.offset.fill_(-0.3)
    v = double(x).requires_grad_()
    output = quantizer(v)
    output.backward()
    factor = 1 / math.sqrt(7)  # of one value
    assert output.item() == approx(y) and v.grad.item() == dx
    assert quantizer.scale.grad.item() == approx(dscale * factor)
    assert quantizer.offset.grad.item() == approx(doffset * factor)


@pytest.mark.parametrize("channels", [None, 5])
@pytest.mark.parametrize("signed", [False, True])
def test_offset_grid_keeps_the_contract(channels, signed):
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(3)) + 1.5
    quantizer = LSQ(3, signed, channels, offset=True)
    quantizer.calibrate(x)
    y = quantizer(x).detach()
    assert torch.equal(quantizer(y), y)
    encoding = quantizer.encode(x)
    assert torch.equal(encoding.decode(), y) and encoding.codes.max() == 7 and encoding.codes.min() == 0
    form = quantizer.inference_form()
    assert isinstance(form, OffsetQuantizer) and torch.equal(form(x), y) and form.inference_form() is form
    assert torch.equal(form.encode(x).decode(), y)
    error = (y - x).abs().amax(1) if channels else (y - x).abs().max()
    assert (error <= quantizer.scale / 2 * 1.001).all()  # the range covers x


def test_offset_quantizer_of_bfloat16():
    quantizer = OffsetQuantizer(4)
    quantizer.offset.fill_(0.25)
    x = torch.randn(100).bfloat16()
    assert torch.equal(quantizer(x), quantizer(x.float()).bfloat16())


# -- module ----------------------------------------------------------------------------------------------------------


def test_state_is_complete_when_init_ends():
    assert set(LSQ(offset=True).state_dict()) == {"bit_width", "quant_min", "quant_max", "scale", "offset"}
    assert [name for name, _ in LSQ().named_parameters()] == ["scale"]


def test_the_width_can_change_without_a_recompilation():
    torch._dynamo.reset()
    quantizer = LSQ(8, signed=False)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(quantizer, backend=counter, fullgraph=True)
    x = torch.linspace(-1, 20, 1000, requires_grad=True)
    for width in (8, 5, 4, 2):
        quantizer.set_bit_width(width)
        y = compiled(x)
        y.sum().backward()
        assert y.detach().unique().tolist() == list(range(min(2**width, 21)))
        assert torch.equal(y, quantizer(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("offset", [False, True])
def test_bfloat16_autocast_keeps_weights_in_float32(offset):
    weight = torch.nn.Parameter(torch.randn(4, 5))
    quantizer = LSQ(4, offset=offset)
    quantizer.calibrate(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = quantizer(weight)
        torch.nn.functional.linear(torch.randn(2, 5), y).sum().backward()
    assert y.dtype == torch.float32 and torch.equal(y, quantizer(weight))
    assert weight.grad.dtype == torch.float32 and quantizer.scale.grad.isfinite()


def test_activations_in_bfloat16_have_gradients_of_the_float32_grid():
    quantizer = LSQ(8, signed=False)
    with torch.no_grad():
        quantizer.scale.fill_(0.1)
    x = torch.rand(1000).bfloat16().requires_grad_()
    y = quantizer(x)
    y.sum().backward()
    low, quantizer.scale.grad = quantizer.scale.grad, None
    quantizer(x.detach().float()).sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low, quantizer.scale.grad)


def test_calibration_of_zeros_gives_zeros():
    for offset in (False, True):
        quantizer = LSQ(4, offset=offset)
        quantizer.calibrate(torch.zeros(3, 4), 0.0)
        assert torch.equal(quantizer(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("width", [1, 9])
def test_widths_it_does_not_have(width):
    with pytest.raises(ValueError, match=f"bit_width of LSQ must be .* got {width}"):
        LSQ(width)


def test_a_later_width_is_checked_too():
    with pytest.raises(ValueError, match=r"bit_width of LSQ must be .* got 1"):
        LSQ(4).set_bit_width(1)


def test_channels_of_a_batch():
    with pytest.raises(ValueError, match="channels=3 are those of a weight"):
        LSQ(4, channels=3, batched=True)
