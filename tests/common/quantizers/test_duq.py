"""DuQ: its formula and the gradients of both learned scales, starts, and the shift behind h-swish."""

import pytest
import torch
import torch.nn.functional as F

from common.quantizers import AffineQuantizer
from common.quantizers.duq import H_SWISH_OFFSET, DuQ, RescaledQuantizer, inverse_softplus
from common.quantizers.functional import round_ste
from common.quantizers.lsq import OffsetQuantizer


def quantizer(bit_width=3, signed=True, clip=0.7, scale=0.9, offset=0.0):
    module = DuQ(bit_width, signed, offset).double()
    with torch.no_grad():
        module.transform.raw_clip.copy_(inverse_softplus(torch.tensor(clip, dtype=torch.double)))
        module.grid.raw_scale.copy_(inverse_softplus(torch.tensor(scale, dtype=torch.double)))
    return module


def by_the_book(x, raw_clip, raw_scale, bit_width, signed, offset=0.0):
    """c round(clip(x / a) L) / L with autograd and round_ste; the clip by where, as in `functional.clip`."""
    a, c = F.softplus(raw_clip), F.softplus(raw_scale)
    steps = 2 ** (bit_width - 1) - 1 if signed else 2**bit_width - 1
    u, low = (x - offset) / a, -1.0 if signed else 0.0
    u = torch.where(u < low, low, torch.where(u > 1, 1.0, u))
    return c * round_ste(u * steps) / steps + offset


@pytest.mark.parametrize("signed, offset", [(True, 0.0), (False, 0.0), (False, H_SWISH_OFFSET)])
@pytest.mark.parametrize("bit_width", [2, 4, 8])
def test_values_and_gradients_by_the_book(bit_width, signed, offset):
    module = quantizer(bit_width, signed, offset=offset)
    values = torch.randn(300, generator=torch.Generator().manual_seed(6), dtype=torch.double)
    upstream = torch.randn(300, generator=torch.Generator().manual_seed(7), dtype=torch.double)
    x = values.clone().requires_grad_()
    y = module(x)
    y.backward(upstream)
    inputs = [t.detach().clone().requires_grad_() for t in (values, module.transform.raw_clip, module.grid.raw_scale)]
    expected = by_the_book(*inputs, bit_width, signed, offset)
    grads = torch.autograd.grad(expected, inputs, upstream)
    torch.testing.assert_close(y, expected)
    for actual, wanted in zip((x.grad, module.transform.raw_clip.grad, module.grid.raw_scale.grad), grads, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(
    "x, y, dx, dclip, dscale",
    [  # a = 0.5, c = 1, L = 3: dy/da = -c x / a^2 within, dy/dc = y / c
        (-0.8, -1.0, 0.0, 0.0, -1.0),
        (-0.2, -1 / 3, 2.0, 0.8, -1 / 3),
        (0.05, 0.0, 2.0, -0.2, 0.0),
        (0.4, 2 / 3, 2.0, -1.6, 2 / 3),
        (0.6, 1.0, 0.0, 0.0, 1.0),
    ],
)
def test_gradients_in_and_out_of_range(x, y, dx, dclip, dscale):
    module = quantizer(3, clip=0.5, scale=1.0)
    v = torch.tensor(x, dtype=torch.double, requires_grad=True)
    output = module(v)
    output.backward()
    slopes = [torch.sigmoid(p).item() for p in (module.transform.raw_clip, module.grid.raw_scale)]  # of softplus
    actual = [output.item(), v.grad.item(), module.transform.raw_clip.grad.item() / slopes[0]]
    actual.append(module.grid.raw_scale.grad.item() / slopes[1])
    assert actual == pytest.approx([y, dx, dclip, dscale], abs=1e-9)


def test_one_learned_parameter_each():
    assert [name for name, _ in DuQ().named_parameters()] == ["transform.raw_clip", "grid.raw_scale"]


def test_weights_start_below_their_maximum():
    w = torch.tensor([-2.0, 0.5, 1.0])
    for arguments in ((w,), (w[1:], 2.0)):
        module = DuQ(4)
        module.calibrate(*arguments)
        ends = [F.softplus(module.transform.raw_clip).item(), module.grid.output_scale().item()]
        assert ends == pytest.approx([1.8, 1.8], rel=1e-5)


def test_activations_start_at_95_percent_of_the_positive_values():
    x = torch.cat([torch.arange(1, 201) / 100, torch.zeros(1000)])
    module = DuQ(4, signed=False)
    module.calibrate(x[torch.randperm(1200)])
    assert module.grid.output_scale().item() == pytest.approx(1.9, rel=1e-5)
    shifted = DuQ(4, signed=False, offset=H_SWISH_OFFSET)
    shifted.calibrate(torch.arange(1, 201) / 100 + H_SWISH_OFFSET)
    assert shifted.grid.output_scale().item() == pytest.approx(1.9, rel=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_calibration_of_zeros(signed):
    module = DuQ(4, signed)
    module.calibrate(torch.zeros(10))
    assert torch.equal(module(torch.zeros(10)), torch.zeros(10))


@pytest.mark.parametrize("signed, offset", [(True, 0.0), (False, 0.0), (False, H_SWISH_OFFSET)])
def test_the_grid_keeps_the_contract(signed, offset):
    module = quantizer(4, signed, offset=offset).float()
    x = torch.randn(500)
    y = module(x)
    assert torch.equal(module.grid(y), y) and not torch.equal(module(y), y)
    encoding = module.encode(x)
    assert torch.equal(encoding.decode() + 0.0, y + 0.0)
    assert int(encoding.codes.min()) == 0 and int(encoding.codes.max()) == (14 if signed else 15)
    form = module.grid.inference_form()
    assert type(form) is (OffsetQuantizer if offset else AffineQuantizer) and torch.equal(form(y) + 0.0, y + 0.0)


def test_h_swish_range():
    y = quantizer(4, False, clip=2.0, scale=2.0, offset=H_SWISH_OFFSET)(F.hardswish(torch.linspace(-6, 3, 500)))
    assert y.min().item() == -0.375 and y.max().item() == pytest.approx(1.625)


@pytest.mark.parametrize("signed, offset", [(True, 0.0), (False, 0.0), (False, H_SWISH_OFFSET)])
def test_compiled_is_eager(signed, offset):
    torch._dynamo.reset()
    module = quantizer(4, signed, offset=offset).float()
    results = []
    for function in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        module.zero_grad()
        x = torch.linspace(-2, 2, 1001, requires_grad=True)
        y = function(x)
        (y * x.detach()).sum().backward()
        results.append((y.detach(), x.grad, module.transform.raw_clip.grad, module.grid.raw_scale.grad))
    assert torch.equal(results[0][0], results[1][0])
    for eager, fast in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(eager, fast, rtol=1e-5, atol=1e-5)


def test_bfloat16():
    module = quantizer(4, False).float()
    x = torch.rand(100).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).dtype == torch.bfloat16 and module(x.float()).dtype == torch.float32


@pytest.mark.parametrize("value", [1e-8, 0.1, 1.0, 50.0])
def test_inverse_softplus(value):
    assert F.softplus(inverse_softplus(torch.tensor(value))).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("signed, offset", [(True, 0.0), (False, 0.0), (False, H_SWISH_OFFSET)])
def test_the_form_of_an_activation_rescales_and_quantizes(signed, offset):
    module = quantizer(4, signed, offset=offset).float()
    form = module.inference_form()
    assert type(form) is RescaledQuantizer and not list(form.parameters()) and int(form.bit_width) == 4
    x = torch.linspace(-2, 2, 4001)
    assert torch.equal(form(x), module(x))
    with torch.no_grad():
        module.transform.raw_clip.add_(1.0)
    assert not torch.equal(form(x), module(x))  # independent of the module


def test_a_fitted_range_has_the_least_squared_error():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(3))
    module = DuQ(2)
    module.fit_range(x)
    found = module.grid.output_scale().item()
    assert F.softplus(module.transform.raw_clip).item() == pytest.approx(found)

    def error(scale):
        return (torch.where(x.abs() > scale / 2, scale * x.sign(), 0.0) - x).square().sum().item()

    parts = [x.abs().max().item() * i / 100 for i in range(1, 101)]
    assert found == pytest.approx(min(parts, key=error), rel=1e-5)
    for signed in (True, False):
        DuQ(4, signed).fit_range(torch.zeros(10))


def test_offset_of_weights():
    with pytest.raises(ValueError, match=r"offset=-0\.375: weights have none"):
        DuQ(4, offset=-0.375)


def test_width_it_does_not_have():
    with pytest.raises(ValueError, match="bit_width of DuQGrid"):
        DuQ(1)
