"""The HMQ block: a quantizer whose threshold and bit-width are a Gumbel-softmax sample (HMQ, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers import AffineQuantizer, Quantizer, Traits, power_of_two_exponent, recomputed
from common.random import counter_gumbel

NUM_THRESHOLDS = 9  # T = {2^M, ..., 2^(M-8)}, eq. 1


@dataclass(frozen=True)
class ClipRule:
    """Where the range ends and what the gradient does there.

    Attributes:
        signed: -(t - D) .. t (eq. 2), else 0 .. t - D (eq. 3).
        upper_at_threshold: unsigned ranges end at t, that is at 2^b + 1 levels (public code).
        ends_are_clipped: values that round onto an end of the range count as clipped (public code); by default they
            count as inside.
    """

    signed: bool
    upper_at_threshold: bool = False
    ends_are_clipped: bool = False

    @property
    def upper_follows_step(self) -> bool:
        """Whether the upper end is t - D rather than t."""
        return not (self.signed or self.upper_at_threshold)


def quantize_with(x: Tensor, step: Tensor, threshold: Tensor, rule: ClipRule) -> Tensor:
    """Q(x, D, t): clip(D round(x / D), -(t - D), t) signed (eq. 2), clip(D round(x / D), 0, t - D) unsigned (eq. 3).

    Args:
        x: real values, any shape.
        step: D > 0, broadcasts to x.
        threshold: t > 0, shape of step.
        rule: which range, and what counts as clipped.

    Returns:
        shape and dtype of x; the arithmetic runs in the dtype of `step`. With q = D round(x / D) and the state of the
        clip decided on q, ends of the range included in "inside":
        dQ/dx is 1 inside and 0 outside; dQ/dD is round(x/D) - x/D inside, 1 below (signed), -1 above (unsigned), else
        0; dQ/dt is -1 below (signed), 1 above, else 0.
    """
    if torch.compiler.is_compiling():
        return recomputed(_quantize_plain, x, step, threshold, rule)
    return _QuantizeEager.apply(x, step, threshold, rule)


def _bounds(step: Tensor, threshold: Tensor, rule: ClipRule) -> tuple[Tensor, Tensor]:
    low = step - threshold if rule.signed else torch.zeros_like(step)
    return low, threshold - step if rule.upper_follows_step else threshold


def _quantize_plain(x: Tensor, step: Tensor, threshold: Tensor, rule: ClipRule) -> Tensor:
    """Plain tensor code, which the compiler fuses with its neighbours."""
    low, high = _bounds(step, threshold, rule)
    steps = x.to(step.dtype) / step
    q = step * (steps + (torch.round(steps) - steps).detach())
    below, above = (q <= low, q >= high) if rule.ends_are_clipped else (q < low, q > high)
    return torch.where(below, low, torch.where(above, high, q)).to(x.dtype)


class _QuantizeEager(torch.autograd.Function):
    """The same function with a hand-written backward: fewer passes over memory than autograd makes in eager mode."""

    @staticmethod
    def forward(ctx, x: Tensor, step: Tensor, threshold: Tensor, rule: ClipRule) -> Tensor:
        low, high = _bounds(step, threshold, rule)
        q = torch.div(x.to(step.dtype), step).round_().mul_(step)
        y = torch.maximum(q, low)
        torch.minimum(y, high, out=y)
        inside = (q > low) & (q < high) if rule.ends_are_clipped else torch.eq(y, q)
        ctx.save_for_backward(x, y, inside, step, low, high)
        ctx.rule = rule
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, y, inside, step, low, high = ctx.saved_tensors
        grad_values = grad.to(step.dtype)
        grad_x = torch.where(inside, grad_values, 0.0)  # ten times as fast on a CPU as the product with a bool tensor
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x.to(x.dtype), None, None, None
        # Inside, round(x/D) - x/D = (Q - x) / D; outside grad_x is 0 and drops the term.
        grad_step = _sum_of_products(grad_x, torch.sub(y, x.to(step.dtype)), step.shape) / step
        # Where the value is clipped, Q is one of the two ends: sum c = below + above, sum c Q = low below + high above.
        clipped = grad_values - grad_x
        above = _sum_of_products(clipped, y, step.shape)
        if ctx.rule.signed:
            total = clipped.sum_to_size(step.shape)
            above = (above - low * total) / (high - low)
            below = total - above
            return grad_x.to(x.dtype), grad_step + below, above - below, None
        above = above / high
        return grad_x.to(x.dtype), grad_step - above if ctx.rule.upper_follows_step else grad_step, above, None


def _sum_of_products(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """(a * b).sum_to_size(shape), as batched dot products where one value per sample is asked for."""
    if len(shape) == a.dim() and a.dim() > 1 and shape[0] == a.shape[0] and all(n == 1 for n in shape[1:]):
        n = a.shape[0]
        if a.is_contiguous(memory_format=torch.channels_last) and b.is_contiguous(memory_format=torch.channels_last):
            a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
        # The transposed view, not a column: four times as fast on a CPU.
        return torch.bmm(a.reshape(n, 1, -1), b.reshape(n, 1, -1).transpose(1, 2)).reshape(shape)
    return (a * b).sum_to_size(shape)


class HMQBlock(Quantizer):
    """Owns the grid T x B and one logit per pair.

    While `searching`, training samples the pair (eq. 4) and quantizes with the expected step and threshold (eq. 5, 6);
    eval mode, and training once the pair is frozen, use the chosen pair alone.

    Args:
        bit_widths: B. One entry for activations, whose width follows from a memory bound (section 4.2).
        rule: the range, signed or unsigned, and its gradient at the ends.
        noise: "tensor" draws one sample a forward pass, "batch" one per element of axis 0 (activations), "channel" one
            per element of axis 1 (weights: input channels; a depthwise kernel has one).
        noise_channels: number of samples for "channel".
        initial_probability: probability of (largest t, largest b); the rest is spread evenly (section 5).
        num_thresholds: |T|.
        exponent_margin: added to the smallest M with 2^M >= max |x| (public code: 1 for weights).
        selection: "marginal" takes the width with the largest probability summed over t, then the best t for it (public
            code); "joint" the largest logit (paper). The same for a single width.

    Buffers: max_exponent M, thresholds (T,), bit_widths (B,), step_sizes (T, B), temperature tau, frozen_pair (index
    into T x B, -1 while searching), gumbel (samples, T x B): the noise of this step, which `GumbelNoise` fills in.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)))

    def __init__(
        self,
        bit_widths: Sequence[int],
        rule: ClipRule,
        noise: str = "tensor",
        noise_channels: int = 1,
        initial_probability: float = 0.9,
        num_thresholds: int = NUM_THRESHOLDS,
        exponent_margin: int = 0,
        selection: str = "marginal",
    ) -> None:
        super().__init__()
        if not bit_widths or not all(1 <= b <= 8 for b in bit_widths):
            raise ValueError(f"bit_widths must be a non-empty selection of 1..8, got {list(bit_widths)}")
        if noise not in ("tensor", "batch", "channel"):
            raise ValueError(f"noise must be tensor, batch or channel, got {noise!r}")
        if selection not in ("marginal", "joint"):
            raise ValueError(f"selection must be marginal or joint, got {selection!r}")
        if not 0 < initial_probability < 1:
            raise ValueError(f"initial_probability must lie between 0 and 1, got {initial_probability}")
        self.rule, self.noise, self.noise_channels = rule, noise, noise_channels
        self.selection, self.exponent_margin = selection, exponent_margin
        self.searching = True
        size = (num_thresholds, len(bit_widths))
        self.logits = nn.Parameter(torch.zeros(size))
        self.register_buffer("max_exponent", torch.tensor(0.0))
        self.register_buffer("thresholds", torch.zeros(num_thresholds))
        self.register_buffer("bit_widths", torch.zeros(len(bit_widths)))
        self.register_buffer("step_sizes", torch.zeros(size))
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("frozen_pair", torch.tensor(-1))
        self.register_buffer("gumbel", torch.zeros(0, self.logits.numel()), persistent=False)
        self.set_bit_widths(bit_widths)
        self.reset_logits(initial_probability)

    @classmethod
    def of_width(cls, bit_width: int, signed: bool) -> HMQBlock:
        return cls([bit_width], ClipRule(signed))

    @torch.no_grad()
    def reset_logits(self, probability: float) -> None:
        """log p for (largest t, largest b), log((1 - p) / (n - 1)) for the other n - 1 pairs."""
        others = self.logits.numel() - 1
        if others:
            self.logits.fill_(torch.log(torch.tensor((1 - probability) / others)))
            self.logits[0, self.bit_widths.argmax()] = torch.log(torch.tensor(probability))

    @torch.no_grad()
    def reset_logits_like_public_code(self, generator: torch.Generator, probability: float = 0.95) -> None:
        """-U(0, 1) for all pairs but the first of n, which gets log(p n / (1 - p))."""
        self.logits.copy_(-torch.rand(self.logits.shape, generator=generator))
        n = self.logits.numel()
        if n > 1:
            first = torch.log(torch.tensor(probability * n / (1 - probability)))
            self.logits[0, self.bit_widths.argmax()] = first

    @torch.no_grad()
    def set_max_abs(self, max_abs: float) -> None:
        """Set M to the smallest integer with 2^M >= max_abs (section 4.1)."""
        self.max_exponent.fill_(power_of_two_exponent(max_abs) + self.exponent_margin)
        self._fill_grid()

    @torch.no_grad()
    def set_bit_widths(self, bit_widths: Sequence[int]) -> None:
        """Replace the widths of B, keeping their number and the logits (section 4.2: the column keeps its logits)."""
        self.bit_widths.copy_(torch.tensor([float(b) for b in bit_widths]))
        self._fill_grid()

    def _fill_grid(self) -> None:
        # In Python, where powers of two are exact; torch.exp2 does not promise that.
        top = int(self.max_exponent)
        thresholds = [2.0 ** (top - i) for i in range(len(self.thresholds))]
        scale = 2.0 if self.rule.signed else 1.0
        steps = [[scale * t / 2.0 ** int(b) for b in self.bit_widths.tolist()] for t in thresholds]
        self.thresholds.copy_(torch.tensor(thresholds))
        self.step_sizes.copy_(torch.tensor(steps))

    def probabilities(self) -> Tensor:
        """pi_hat = softmax of the logits over all pairs, (T, B)."""
        return torch.softmax(self.logits.flatten(), 0).reshape(self.logits.shape)

    def num_samples(self, batch_size: int) -> int:
        """How many independent draws a forward pass of `batch_size` images takes."""
        return {"tensor": 1, "batch": batch_size, "channel": self.noise_channels}[self.noise]

    def sample(self, count: int) -> Tensor:
        """P(T, B | g) of eq. 4 with the first `count` draws of g of this step, (count, T, B)."""
        if self.gumbel.shape[0] < count:
            raise ValueError(f"{count} noise draws needed, {self.gumbel.shape[0]} drawn: see GumbelNoise")
        scores = torch.log_softmax(self.logits.flatten(), 0) + self.gumbel[:count]
        return torch.softmax(scores / self.temperature, 1).reshape(count, *self.logits.shape)

    def expected_step_and_threshold(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """D_hat (eq. 5) and t_hat (eq. 6) of each of n samples: (n, T, B) -> (n,), (n,)."""
        step = (probabilities * self.step_sizes).sum((1, 2))
        threshold = (probabilities.sum(2) * self.thresholds).sum(1)
        return step, threshold

    def width_probabilities(self, sampled: bool = False) -> Tensor:
        """P_B, (B,): from softmax(pi), or from the samples of this step's forward pass (eq. 7)."""
        pairs = self.sample(self.num_samples(len(self.gumbel))).mean(0) if sampled else self.probabilities()
        return pairs.sum(0)

    def expected_bit_width(self, sampled: bool = False) -> Tensor:
        """E[b] = sum_b b P_B(b), scalar."""
        return (self.width_probabilities(sampled) * self.bit_widths).sum()

    def best_pair(self, bit_width: int | None = None) -> int:
        """Index into the flattened T x B of the pair to choose; with `bit_width`, the best threshold for that width."""
        pairs = self.probabilities().detach()
        if bit_width is not None:
            column = self.bit_widths.tolist().index(bit_width)
        elif self.selection == "joint":
            return int(pairs.argmax())
        else:
            column = int(pairs.sum(0).argmax())
        return int(pairs[:, column].argmax()) * pairs.shape[1] + column

    def _chosen_pair(self) -> Tensor:
        """The pair as a tensor of shape (1,), without a host synchronisation."""
        pairs = self.probabilities()
        if self.selection == "joint":
            best = pairs.argmax().reshape(1)
        else:
            column = pairs.sum(0).argmax().reshape(1)
            best = pairs.index_select(1, column).argmax().reshape(1) * pairs.shape[1] + column
        return torch.where(self.frozen_pair >= 0, self.frozen_pair, best)

    def hard_step_and_threshold(self) -> tuple[Tensor, Tensor]:
        """D and t of the chosen pair, scalars without gradient."""
        # index_select, not torch.take or indexing with a scalar tensor, which inductor turns into a host read.
        pair = self._chosen_pair().detach()
        step = self.step_sizes.flatten().index_select(0, pair)
        threshold = self.thresholds.index_select(0, pair // self.step_sizes.shape[1])
        return step.reshape(()), threshold.reshape(())

    @torch.no_grad()
    def freeze(self, pair: int | None = None) -> None:
        """End the search: keep `pair` (default: the best one) from now on."""
        self.frozen_pair.fill_(self.best_pair() if pair is None else pair)
        self.searching = False

    @property
    def bit_width(self) -> Tensor:  # type: ignore[override]
        """Width of the chosen pair, scalar tensor."""
        return self.bit_widths.index_select(0, self._chosen_pair() % self.bit_widths.numel()).reshape(())

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.searching):
            step, threshold = self.hard_step_and_threshold()
            return quantize_with(x, step, threshold, self.rule)
        shape = [1] * x.dim()
        if self.noise != "tensor":
            shape[0 if self.noise == "batch" else 1] = -1
        step, threshold = self.expected_step_and_threshold(self.sample(self.num_samples(x.shape[0])))
        return quantize_with(x, step.reshape(shape), threshold.reshape(shape), self.rule)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.searching = int(self.frozen_pair) < 0  # a resumed second phase stays in the second phase

    @torch.no_grad()
    def inference_form(self) -> AffineQuantizer:
        """Integers -(2^(b-1) - 1) .. 2^(b-1) or 0 .. 2^b - 1, scale D: a power of two, so equal in value."""
        bit_width = int(self.bit_width)
        plain = AffineQuantizer(bit_width, self.rule.signed).to(self.step_sizes.device)
        plain.scale.copy_(self.hard_step_and_threshold()[0])
        if self.rule.signed:
            plain.quant_min += 1
            plain.quant_max += 1
        elif self.rule.upper_at_threshold:
            plain.quant_max += 1
        return plain


class GumbelNoise:
    """Draws the noise of all blocks at once, outside compiled code, from a stream per site.

    Args:
        blocks: site name -> block.
        key: site name -> key of its stream.
        eps: added inside both logarithms (public code: 1e-6), which bounds the noise to about -2.6 .. 17.
    """

    def __init__(self, blocks: Mapping[str, HMQBlock], key: Callable[[str], int], eps: float = 1e-6) -> None:
        self.blocks = list(blocks.values())
        self.keys = [key(site) for site in blocks]
        self.eps = eps
        self._layout: tuple[int, Tensor, Tensor, list[int]] | None = None

    def draw(self, step: int, batch_size: int) -> None:
        """Fill every block's noise for one step with `batch_size` images on this rank."""
        device = self.blocks[0].logits.device
        if self._layout is None or self._layout[0] != batch_size or self._layout[1].device != device:
            sizes = [block.num_samples(batch_size) * block.logits.numel() for block in self.blocks]
            keys = torch.repeat_interleave(torch.tensor(self.keys), torch.tensor(sizes)).to(device)
            index = torch.cat([torch.arange(n) for n in sizes]).to(device)
            self._layout = (batch_size, keys, index, sizes)
        _, keys, index, sizes = self._layout
        noise = counter_gumbel(keys, step, index, self.eps)
        for block, part in zip(self.blocks, noise.split(sizes), strict=True):
            block.gumbel = part.reshape(-1, block.logits.numel()).to(block.logits.dtype)
