"""ACIQ's constants, the exact optima beside them, and the observers on data of the model's kind."""

import itertools
import math

import pytest
import torch

from common.calibration.aciq import ACIQObserver, clip_constant, clip_error
from common.calibration.observers import MSEObserver

# bits: a / b, a / sigma, model errors there, constants of the reference code (aciq.table)
TABLE = {
    1: (1.862816864432358, 1.2399052709844556, 0.5996433666065264, 0.21501043406017076, 1.86, 1.24),
    2: (2.8306829893702337, 1.7106351681140435, 0.2848777534385515, 0.08714848263179364, 2.83, 1.71),
    3: (3.8972294649451027, 2.151592744740346, 0.11970237725170052, 0.0314294440615665, 3.89, 2.15),
    4: (5.028640136236213, 2.5591364619753367, 0.04602148683885181, 0.010493254196347829, 5.03, 2.55),
    5: (6.204766334013321, 2.9362006121084443, 0.016571828752516844, 0.00332259371588222, 6.2, 2.93),
    6: (7.4131262138435705, 3.2869142152137547, 0.005678767308761544, 0.0010129168498282277, 7.41, 3.28),
    7: (8.645619984034424, 3.6151142152627775, 0.0018725175959554898, 0.0003002152346146698, 8.64, 3.61),
    8: (9.896759770017528, 3.9240354898807808, 0.0005988534214552431, 8.707789897041927e-05, 9.89, 3.92),
}
# aciq.exact_optimum: a / b and a / sigma by bits
OPTIMA = {
    "midrise": {
        "laplace": {1: 2.0, 2: 3.07561098, 3: 4.13478241, 4: 5.21556716, 8: 9.92788631},
        "gauss": {1: 1.59576912, 2: 1.99137335, 3: 2.34407778, 4: 2.68160499, 8: 3.93758567},
    },
    "restricted": {
        "laplace": {2: 2.0, 3: 3.4864008, 4: 4.81991515, 8: 9.88265201},
        "gauss": {2: 1.22400636, 3: 1.95230914, 4: 2.4738793, 8: 3.920501},
    },
    "full": {
        "laplace": {2: 1.71703413, 3: 3.23481188, 4: 4.62946893, 8: 9.85154659},
        "gauss": {2: 1.04838528, 3: 1.80547271, 4: 2.3702556, 8: 3.90722854},
    },
    "one_sided": {
        "laplace": {1: 2.0, 2: 3.4864008, 3: 4.81991515, 4: 6.0980373, 8: 11.15554336},
        "gauss": {1: 1.22400636, 2: 1.95230914, 3: 2.4738793, 4: 2.89872786, 8: 4.21467831},
    },
}
# aciq.exact_optimum.mse_at_optimum
ERRORS = {
    "midrise": {
        "laplace": {1: 1.0, 2: 0.39260453, 3: 0.14349559, 4: 0.05070195, 8: 0.00060284},
        "gauss": {1: 0.36338023, 2: 0.11884605, 3: 0.03743966, 4: 0.01154288, 8: 8.769e-05},
    },
    "restricted": {
        "laplace": {2: 0.52848224, 3: 0.16617304, 4: 0.05479044, 8: 0.0006066},
        "gauss": {2: 0.19017404, 3: 0.04685997, 4: 0.01288939, 8: 8.831e-05},
    },
}


@pytest.mark.parametrize("bits", TABLE)
def test_aciq_constants_are_solved_not_listed(bits):
    laplace, gauss, laplace_error, gauss_error, laplace_code, gauss_code = TABLE[bits]
    assert clip_constant(bits, "laplace") == pytest.approx(laplace, abs=1e-9)
    assert clip_constant(bits, "gauss") == pytest.approx(gauss, abs=1e-9)
    assert clip_error(laplace, bits, "laplace") == pytest.approx(laplace_error, abs=1e-12)
    assert clip_error(gauss, bits, "gauss") == pytest.approx(gauss_error, abs=1e-12)
    assert laplace * math.exp(laplace) == pytest.approx(3 * 4**bits, rel=1e-12)  # Lambert's W
    assert abs(laplace - laplace_code) < 0.01 and abs(gauss - gauss_code) < 0.01


def test_the_lecture_prints_two_constants_rounded_and_one_cut():
    assert [round(clip_constant(bits, "laplace"), 2) for bits in (2, 3, 4)] == [2.83, 3.90, 5.03]
    assert math.floor(100 * clip_constant(3, "laplace")) / 100 == 3.89  # as printed


@pytest.mark.parametrize("density", ["laplace", "gauss"])
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12, 16, 24])
def test_the_constants_minimise_the_model(bits, density):
    best = clip_constant(bits, density)
    for factor in (0.99, 1.01):
        assert clip_error(best, bits, density) < clip_error(factor * best, bits, density)


def test_other_densities_and_widths_are_refused():
    with pytest.raises(ValueError, match="one of laplace, gauss, got 'cauchy'"):
        clip_constant(4, "cauchy")
    with pytest.raises(ValueError, match=r"bit_width must be in \[1, 24\], got 0"):
        clip_constant(0, "gauss")
    with pytest.raises(ValueError, match="laplace, gauss, best"):
        ACIQObserver("cauchy")


# the exact optimum, by integration over every cell


def exact_error(grid, density, bits, threshold):
    """E[(X - Q(X))^2], density symmetric with b = 1 or sigma = 1; one-sided is the same, folded."""
    if grid == "midrise":
        cell = 2 * threshold / 2**bits
        levels = [(i + 0.5) * cell - threshold for i in range(2**bits)]
    else:
        top = 2**bits - 1 if grid == "one_sided" else 2 ** (bits - 1) - 1
        levels = [i * threshold / top for i in range(-top - (grid == "full"), top + 1)]
    edges = [-60.0, *((a + b) / 2 for a, b in itertools.pairwise(levels)), 60.0]
    levels = torch.tensor(levels, dtype=torch.float64)
    moments = torch.stack([moment(torch.tensor(edges, dtype=torch.float64), k, density).diff() for k in range(3)])
    return float((moments[2] - 2 * levels * moments[1] + levels**2 * moments[0]).sum())


def moment(x, order, density):
    """Integral of t^order p(t) from -infinity to x."""
    if density == "gauss":
        phi, mass = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(x)
        return (mass, -phi, mass - x * phi)[order]
    tail = torch.exp(-x.abs()) / 2
    left = (tail, tail * (x - 1), tail * (x**2 - 2 * x + 2))[order]
    right = (1 - tail, -tail * (x + 1), 2 - tail * (x**2 + 2 * x + 2))[order]
    return torch.where(x < 0, left, right)


def exact_optimum(grid, density, bits):
    values = [0.02 * i for i in range(10, 700)]
    errors = [exact_error(grid, density, bits, a) for a in values]
    centre = values[errors.index(min(errors))]
    left, right, golden = centre - 0.02, centre + 0.02, (math.sqrt(5) - 1) / 2
    for _ in range(40):
        inner, outer = right - golden * (right - left), left + golden * (right - left)
        if exact_error(grid, density, bits, inner) < exact_error(grid, density, bits, outer):
            right = outer
        else:
            left = inner
    return (left + right) / 2


CASES = [
    (grid, density, bits, optimum)
    for grid, densities in OPTIMA.items()
    for density, optima in densities.items()
    for bits, optimum in optima.items()
]


@pytest.mark.parametrize("grid, density, bits, optimum", CASES)
def test_aciq_exact_optimum(grid, density, bits, optimum):
    if bits < 8:
        # near a minimum errors tell values apart down to the root of their own precision
        assert exact_optimum(grid, density, bits) == pytest.approx(optimum, abs=2e-6)
    least = exact_error(grid, density, bits, optimum)
    assert least < min(exact_error(grid, density, bits, factor * optimum) for factor in (0.995, 1.005))
    if grid in ERRORS:
        assert least == pytest.approx(ERRORS[grid][density][bits], abs=1e-8)


def ideal_sample(density, one_sided=False, n=10**6):
    """10^6 values of equal probability."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    u = 0.5 + u / 2 if one_sided else u
    if density == "gauss":
        return torch.special.ndtri(u)
    return torch.sign(u - 0.5) * -torch.log1p(-2 * (u - 0.5).abs())


@pytest.mark.parametrize("grid, density, bits, optimum", [case for case in CASES if case[0] != "midrise"])
def test_the_mse_observer_finds_the_exact_optimum_within_2_percent(grid, density, bits, optimum):
    observer = MSEObserver(full_range=grid == "full")
    observer.update(ideal_sample(density, grid == "one_sided"))
    found = float(observer.range(bits, signed=grid != "one_sided")[1])
    assert found == pytest.approx(optimum, rel=0.02)
    assert exact_error(grid, density, bits, found) <= 1.002 * exact_error(grid, density, bits, optimum)


@pytest.mark.parametrize("density", ["laplace", "gauss"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_mse_observer_on_drawn_samples_is_within_2_percent_of_the_least_error(density, bits):
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(10**6, generator=generator)
    if density == "laplace":
        signs = torch.randint(2, x.shape, generator=generator) * 2 - 1
        x = -torch.log(torch.rand(10**6, generator=generator).clamp(min=1e-12)) * signs
    observer = MSEObserver()
    observer.update(x)
    found = float(observer.range(bits)[1])
    assert exact_error("restricted", density, bits, found) <= 1.02 * ERRORS["restricted"][density][bits]


# the observer


@pytest.mark.parametrize("density, spread", [("laplace", 0.7), ("gauss", 1.3)])
@pytest.mark.parametrize("bits", [2, 4])
def test_ranges_are_mean_plus_minus_the_clip(density, spread, bits):
    observer = ACIQObserver(density)
    observer.update(spread * ideal_sample(density) + 0.2)
    low, high = (float(end) for end in observer.range(bits))
    clip = spread * TABLE[bits][0 if density == "laplace" else 1]
    assert (low, high) == pytest.approx((0.2 - clip, 0.2 + clip), rel=2e-3)


def test_after_relu_the_constant_of_one_bit_more():
    x = ideal_sample("laplace").relu()
    observer = ACIQObserver("laplace")
    observer.update(x)
    mean = float(x.mean())
    spread = float((x - mean).abs().mean())
    low, high = observer.range(4, signed=False)
    assert low == 0 and float(high) == pytest.approx(mean + 6.204766334013321 * spread, rel=2e-3)


def test_the_range_ends_where_the_values_end():
    observer = ACIQObserver()
    observer.update(torch.linspace(-1, 3, 1000))
    assert [float(end) for end in observer.range(8)] == [-1, 3]
    assert float(observer.range(8, signed=False)[1]) == 3


@pytest.mark.parametrize("density", ["laplace", "gauss"])
def test_the_best_density_is_the_one_that_the_values_follow(density):
    x = ideal_sample(density)
    best, own = ACIQObserver("best"), ACIQObserver(density)
    best.update(x)
    own.update(x)
    assert best.range(3) == own.range(3)
