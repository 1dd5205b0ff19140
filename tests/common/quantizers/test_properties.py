"""What every quantizer promises, for every class of the repository, bit-width and sign that its traits declare."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import common.quantizers
import methods
from common.quantizers import AffineQuantizer, Quantizer


def quantizer_classes() -> list[type[Quantizer]]:
    """Every subclass of Quantizer in common.quantizers and in the paper folders."""
    for package in (common.quantizers, methods):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found, waiting = [], [Quantizer]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            ours = cls.__module__.startswith(("common.", "methods."))  # other tests invent some of their own
            if ours and not inspect.isabstract(cls) and cls not in found:
                found.append(cls)
    return sorted(found, key=lambda cls: cls.__name__)


# Their thresholds lie elsewhere than halfway between levels, so that their form agrees with them on the levels alone.
OWN_THRESHOLDS = {"TWN", "ABCNetWeights"}


def cases(applies=lambda cls, bit_width, signed: True):
    """Every class, width and sign that the traits declare, as far as a property applies to it."""
    return pytest.mark.parametrize(
        "cls, bit_width, signed",
        [
            pytest.param(cls, bit_width, signed, id=f"{cls.__name__}-{bit_width}-{'signed' if signed else 'unsigned'}")
            for cls in quantizer_classes()
            for bit_width in cls.traits.bit_widths
            for signed in (True, False)
            if (cls.traits.signed if signed else cls.traits.unsigned) and applies(cls, bit_width, signed)
        ],
    )


def is_evenly_spaced(cls, bit_width, signed) -> bool:
    """Whether the levels are an evenly spaced grid with thresholds halfway between them."""
    plain = type(cls.of_width(bit_width, signed).inference_form()) is AffineQuantizer
    return plain and cls.__name__ not in OWN_THRESHOLDS


every_case = cases()
evenly_spaced_case = cases(is_evenly_spaced)


def values() -> torch.Tensor:
    """Sorted values: Gaussian, ties and ends of binary grids, zero, far outside."""
    generator = torch.Generator().manual_seed(11)
    others = torch.tensor([-100.0, 100.0, -0.0, 1e-9])
    parts = [torch.randn(400, generator=generator), torch.arange(-64, 65) / 32, others]
    return torch.cat(parts).sort().values


def fitted(cls, bit_width, signed, x) -> Quantizer:
    """A quantizer whose range has been filled from x, in eval mode."""
    quantizer = cls.of_width(bit_width, signed)
    if hasattr(quantizer, "calibrate"):
        quantizer.calibrate(x.clamp(-2, 2), 2.0)
    elif hasattr(quantizer, "set_max_abs"):
        quantizer.set_max_abs(2.0)
    else:
        quantizer.inference_form().scale.fill_(0.037)
    return quantizer.eval()


def test_discovery_finds_the_quantizers():
    names = {cls.__name__ for cls in quantizer_classes()}
    assert names >= {"AffineQuantizer", "SymmetricQuantizer", "PowerOfTwoQuantizer", "HMQBlock"}


@every_case
def test_quantizing_twice_changes_nothing(cls, bit_width, signed):
    quantizer = fitted(cls, bit_width, signed, values())
    once = quantizer(values())
    assert torch.equal(quantizer(once), once)


@every_case
def test_it_is_deterministic_in_eval_mode_and_keeps_the_shape(cls, bit_width, signed):
    x = values()[:500].reshape(5, 4, 5, 5)
    quantizer = fitted(cls, bit_width, signed, x)
    assert quantizer(x).shape == x.shape and quantizer(x).dtype == x.dtype
    assert torch.equal(quantizer(x), quantizer(x))


@every_case
def test_decoded_codes_are_the_forward_pass(cls, bit_width, signed):
    x = values()[:500].reshape(5, 4, 5, 5)
    quantizer = fitted(cls, bit_width, signed, x)
    encoding = quantizer.encode(x)
    assert torch.equal(encoding.decode() + 0.0, quantizer(x) + 0.0)
    assert encoding.bits == (bit_width,) and int(quantizer.bit_width) == bit_width
    assert int(encoding.codes.min()) >= 0 and int(encoding.codes.max()) < 2**bit_width
    codes = encoding.unpack_codes(encoding.pack(), x.shape, encoding.axis, encoding.group_sizes, encoding.bits)
    assert torch.equal(codes, encoding.codes)


@every_case
def test_it_has_at_most_two_to_the_bits_values(cls, bit_width, signed):
    x = torch.linspace(-8, 8, 200_000)
    assert (fitted(cls, bit_width, signed, values())(x) + 0.0).unique().numel() <= 2**bit_width


@every_case
def test_order_is_kept(cls, bit_width, signed):
    assert (fitted(cls, bit_width, signed, values())(values()).diff() >= 0).all()


@cases(lambda cls, bit_width, signed: cls.traits.zero_is_level)
def test_zero_stays_zero(cls, bit_width, signed):
    assert not fitted(cls, bit_width, signed, values())(torch.zeros(3)).any()


@every_case
def test_unsigned_ranges_hold_nothing_below_zero(cls, bit_width, signed):
    lowest = fitted(cls, bit_width, signed, values())(values()).min()
    assert lowest >= 0 if not signed else lowest <= 0


@evenly_spaced_case
def test_error_is_at_most_half_a_step_inside_the_range(cls, bit_width, signed):
    quantizer = fitted(cls, bit_width, signed, values())
    grid = quantizer.inference_form()
    low, high = ((end - grid.zero_point) * grid.scale for end in (grid.quant_min, grid.quant_max))
    x = values()
    inside = x[(x >= low) & (x <= high)]
    assert inside.numel() > 2
    assert ((quantizer(inside) - inside).abs() <= grid.scale / 2 * (1 + 1e-5) + 1e-6 * inside.abs()).all()


@every_case
def test_values_outside_the_range_go_to_the_ends_of_the_levels(cls, bit_width, signed):
    quantizer = fitted(cls, bit_width, signed, values())
    levels = quantizer(torch.linspace(-8, 8, 10_000))
    far = quantizer(torch.tensor([-1e4, 1e4]))
    assert far[0] <= levels.min() and far[1] >= levels.max()


@evenly_spaced_case
def test_values_outside_the_range_go_to_its_ends(cls, bit_width, signed):
    quantizer = fitted(cls, bit_width, signed, values())
    grid = quantizer.inference_form()
    ends = quantizer(torch.tensor([-1e4, 1e4]))
    integers = torch.stack([grid.quant_min, grid.quant_max]) - grid.zero_point
    assert torch.equal(ends + 0.0, integers * grid.scale + 0.0)


@every_case
def test_bfloat16_goes_to_the_same_grid(cls, bit_width, signed):
    quantizer = fitted(cls, bit_width, signed, values())
    x = values().bfloat16()
    y = quantizer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, quantizer(x.float()).bfloat16())


@every_case
def test_a_saved_state_restores_the_grid(cls, bit_width, signed):
    quantizer = fitted(cls, bit_width, signed, values())
    restored = cls.of_width(bit_width, signed)
    restored.load_state_dict(quantizer.state_dict())
    assert torch.equal(restored.eval()(values()), quantizer(values()))


@every_case
def test_the_inference_form_is_the_same_function(cls, bit_width, signed):
    quantizer = fitted(cls, bit_width, signed, values())
    once = quantizer(values()) + 0.0
    form = quantizer.inference_form().eval()
    assert torch.equal(form(once) + 0.0, once)
    if cls.__name__ not in OWN_THRESHOLDS:
        assert torch.equal(form(values()) + 0.0, once)


@pytest.mark.parametrize("cls", quantizer_classes())
@pytest.mark.parametrize("beyond", ["below", "above"])
def test_unsupported_widths_name_the_argument(cls, beyond):
    width = min(cls.traits.bit_widths) - 1 if beyond == "below" else max(cls.traits.bit_widths) + 1
    with pytest.raises(ValueError, match="bit_width"):
        cls.of_width(width, signed=True)


@pytest.mark.parametrize(
    "cls, signed",
    [
        (cls, signed)
        for cls in quantizer_classes()
        for signed in (True, False)
        if cls.traits.per_channel and (cls.traits.signed if signed else cls.traits.unsigned)
    ],
)
def test_per_channel_equals_a_loop_over_channels(cls, signed):
    x = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    width = 3 if 3 in cls.traits.bit_widths else max(cls.traits.bit_widths)
    quantizer, singles = cls(width, signed, channels=6), [cls(width, signed) for _ in range(6)]
    if hasattr(quantizer, "calibrate"):
        quantizer.calibrate(x)
        for channel, single in enumerate(singles):
            single.calibrate(x[channel : channel + 1])
    else:
        quantizer.scale.copy_(torch.linspace(0.05, 0.6, 6))
        for channel, single in enumerate(singles):
            single.scale.copy_(quantizer.scale[channel])
    quantizer.eval()
    for channel, single in enumerate(singles):
        expected = single.eval()(x[channel : channel + 1])
        assert torch.allclose(quantizer(x)[channel : channel + 1], expected, rtol=1e-6, atol=1e-7)
