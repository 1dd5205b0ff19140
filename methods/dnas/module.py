"""DNAS's two phases: search of bit-widths with their costs in the loss, then training of the chosen network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from common.callbacks import PhaseSwitch
from common.compression import FLOAT_BITS, packed_bytes
from common.errors import UserError
from common.graph import Layer, Site
from common.quantizers.pact import PACT
from common.random import counter_gumbel, stream_key
from common.search.gumbel import exponential_temperature
from common.search.repair import Change, repair_to_budget
from common.training.quantization_aware import QuantizationAware
from common.training.schedule import CyclicSchedule
from methods.dnas.blocks import block_of, can_be_skipped
from methods.dnas.quantizer import MixedWeight


def cost_factor(cost: Tensor, beta: float, gamma: float) -> Tensor:
    """C = beta (log cost)^gamma, which multiplies the task loss."""
    return beta * cost.log() ** gamma


class DNAS(QuantizationAware):
    """Every block mixes its candidates; logits learn on a part of the data; the chosen network trains to the end.

    Args:
        weight_bit_widths: candidates; 0 skips a block that has a shortcut (only with `choice: block`), 32 is float.
        activation_bit_width: of the inputs of all searched layers (PACT); 32 is float (paper, ResNet-20).
        choice: one width per "block" (paper) or per "layer".
        beta, gamma: of `cost_factor`; the cost is the bits of the weights. The factor scales the weights' gradients,
            too: with another gamma choose beta so that it stays about 1.
        search_fraction: share of the search in the run.
        theta_start: fraction of the search after which the logits begin to learn: 10 of 90 epochs.
        theta_data_fraction: share of the batches, evenly spread, that train the logits instead of the weights.
        theta_learning_rate, theta_weight_decay: of the logits (Adam).
        published_theta_steps: in a run with fewer steps of the logits, multiply their rate by this over their number;
            None: do not.
        temperature, temperature_rate: of the Gumbel-softmax: temperature e^(-rate epoch) ...
        published_epochs: ... with so many epochs in the search, however long it is.
        selection: the final widths are the most probable ones, "argmax", or a "sample" of the probabilities.
        target_wcr: choose the widths of largest total log-probability at this compression; None: each block's own.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: words, fractions and candidates that do not exist; a target that no candidates reach.
    """

    own_eight_bits = False

    def __init__(
        self,
        weight_bit_widths: Sequence[int] = (0, 1, 2, 3, 4, 8, 32),
        activation_bit_width: int = FLOAT_BITS,
        choice: Literal["block", "layer"] = "block",
        beta: float = 0.1,
        gamma: float = 0.9,
        search_fraction: float = 0.5,
        theta_start: float = 10 / 90,
        theta_data_fraction: float = 0.2,
        theta_learning_rate: float = 5e-3,
        theta_weight_decay: float = 1e-3,
        published_theta_steps: int | None = None,
        temperature: float = 5.0,
        temperature_rate: float = 0.045,
        published_epochs: int = 90,
        selection: Literal["argmax", "sample"] = "argmax",
        target_wcr: float | None = None,
        first_last: Literal["float", "8bit", "same"] = "float",
        learning_rate: float = 0.1,
        **kwargs: Any,
    ) -> None:
        for name, value, words in (
            ("choice", choice, ("block", "layer")),
            ("selection", selection, ("argmax", "sample")),
        ):
            if value not in words:
                raise UserError(f"{name} must be {' or '.join(words)}, got {value!r}")
        fractions = {"search_fraction": search_fraction, "theta_start": theta_start}
        fractions["theta_data_fraction"] = theta_data_fraction
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise UserError(f"{name} must lie in 0..1, got {value:g}")
        if temperature <= 0:
            raise UserError(f"temperature must be positive, got {temperature:g}")
        self.weight_bit_widths, self.choice = tuple(sorted(weight_bit_widths)), choice
        super().__init__(
            weight_bit_width=8,  # whatever is not 32: candidates take its place
            activation_bit_width=activation_bit_width,
            first_last=first_last,
            learning_rate=learning_rate,
            **kwargs,
        )
        self.beta, self.gamma = beta, gamma
        self.search_fraction, self.theta_start = search_fraction, theta_start
        self.theta_data_fraction = theta_data_fraction
        self.theta_learning_rate, self.theta_weight_decay = theta_learning_rate, theta_weight_decay
        self.published_theta_steps = published_theta_steps
        self.start_temperature, self.temperature_rate = temperature, temperature_rate
        self.published_epochs, self.selection, self.target_wcr = published_epochs, selection, target_wcr
        self.repair_log: list[Change] = []
        self.chosen: dict[str, int] | None = None
        self._theta_state: dict[str, Any] | None = None
        self._check_target()

    # -- the network ------------------------------------------------------------------------------------------------

    def _choose(self) -> dict[str, nn.Module]:
        searched = [layer.name for layer in self.layers if not self.is_outer(layer) or self.first_last == "same"]
        self.blocks: dict[str, list[str]] = {}  # name -> its searched layers
        for name in searched:
            block = block_of(name, searched) if self.choice == "block" else name
            self.blocks.setdefault(block, []).append(name)
        self.theta = nn.ParameterList()
        self._block_of = {name: block for block, names in self.blocks.items() for name in names}
        for block in self.blocks:
            self.theta.append(nn.Parameter(torch.zeros(len(self.candidates(block)))))
        return super()._choose()

    def candidates(self, block: str) -> tuple[int, ...]:
        """Bit-widths that a block chooses from."""
        if self.choice == "block" and can_be_skipped(self.network.graph, self.blocks[block]):
            return self.weight_bit_widths
        return tuple(width for width in self.weight_bit_widths if width)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        block = self._block_of[layer.name]
        return MixedWeight(self.candidates(block), self.theta[list(self.blocks).index(block)])

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return PACT(bit_width, signed=not site.non_negative)

    def mixed(self, block: str) -> list[MixedWeight]:
        """The quantizers of a block's weights; those that became float are gone."""
        found = (self.quantizers.get(f"{name}.weight") for name in self.blocks[block])
        return [quantizer for quantizer in found if isinstance(quantizer, MixedWeight)]

    def num_weights(self, block: str) -> list[int]:
        """Weights of each of its layers."""
        return [layer.num_weights for layer in self.layers if layer.name in self.blocks[block]]

    # -- the choice -------------------------------------------------------------------------------------------------

    def block_bytes(self) -> dict[str, dict[int, float]]:
        """Bytes of the packed codes of every block at each of its widths."""
        return {
            block: {
                width: float(sum(packed_bytes(n, width) for n in self.num_weights(block)))
                for width in self.candidates(block)
            }
            for block in self.blocks
        }

    def budget_bytes(self) -> float:
        """What `target_wcr` leaves for the blocks."""
        total = 4 * sum(layer.num_weights for layer in self.layers)
        others = [layer for layer in self.layers if layer.name not in self._block_of]
        fixed = sum(packed_bytes(layer.num_weights, self.widths_of(layer)[0]) for layer in others)
        return int(total / self.target_wcr) - fixed

    def _check_target(self) -> None:
        if self.target_wcr is None:
            return
        if not self.target_wcr > 0:
            raise UserError(f"target_wcr must be a positive rate, got {self.target_wcr:g}")
        least = sum(min(costs.values()) for costs in self.block_bytes().values())
        if least > self.budget_bytes():
            raise UserError(
                f"target_wcr {self.target_wcr:g} leaves {self.budget_bytes():.0f} bytes for the searched layers, which "
                f"take at least {least:.0f}"
            )

    @torch.no_grad()
    def preferences(self) -> dict[str, dict[int, float]]:
        """log P of every width; for a sample plus Gumbel noise, whose largest sum is one."""
        found = {}
        for block, theta in zip(self.blocks, self.theta, strict=True):
            values = theta.log_softmax(0).cpu()
            if self.selection == "sample":
                key = torch.tensor(stream_key(self.seed, "selection", block))  # the same on every rank
                values = values + counter_gumbel(key, 0, torch.arange(len(values)))
            found[block] = dict(zip(self.candidates(block), values.tolist(), strict=True))
        return found

    def freeze(self) -> None:
        """Fix every block's width; with `target_wcr`, those of largest total preference that fill the budget."""
        preferences = self.preferences()
        widths = {
            block: max(values, key=lambda width, values=values: values[width]) for block, values in preferences.items()
        }
        if self.target_wcr is not None:
            widths, self.repair_log = repair_to_budget(preferences, self.block_bytes(), self.budget_bytes())
        self._fix(widths)

    def _fix(self, widths: dict[str, int]) -> None:
        self.chosen = widths
        for block, width in widths.items():
            for name in self.blocks[block]:
                if width == FLOAT_BITS:  # a float weight has no quantizer
                    self.network.get_submodule(name).weight_quantizer = None
            for quantizer in self.mixed(block):
                quantizer.fix(width)

    # -- schedule ---------------------------------------------------------------------------------------------------

    @property
    def schedule(self) -> CyclicSchedule:
        return CyclicSchedule(self.total_steps, round(self.total_steps * self.search_fraction), 1)

    def configure_callbacks(self) -> list[Callback]:
        return [PhaseSwitch(), *super().configure_callbacks()]

    def on_phase(self, phase: int) -> None:
        if phase == 2 and self.chosen is None:
            self.freeze()

    def searching(self) -> bool:
        """Whether the present batch belongs to the search."""
        return self.schedule.phase(self.step) == 1

    def trains_theta(self, step: int) -> bool:
        """Whether a batch trains the logits instead of the weights."""
        schedule, share = self.schedule, self.theta_data_fraction
        if schedule.phase(step) == 2 or step < self.theta_start * schedule.search_steps:
            return False
        return int((step + 1) * share) > int(step * share)

    def theta_steps(self) -> int:
        """Steps of the logits in this run."""
        return sum(self.trains_theta(step) for step in range(self.schedule.search_steps))

    def before_step(self, images: Tensor) -> None:
        super().before_step(images)
        self.theta_turn = self.trains_theta(self.step)
        if not self.searching():
            return
        time = self.published_epochs * self.step / self.schedule.search_steps
        temperature = exponential_temperature(self.start_temperature, self.temperature_rate, time)
        for block in self.blocks:
            key = torch.tensor(self.noise_key(block), device=self.device)
            index = torch.arange(len(self.candidates(block)), device=self.device)
            noise = counter_gumbel(key, self.step, index)
            for quantizer in self.mixed(block):
                quantizer.noise.copy_(noise)
                quantizer.temperature.fill_(temperature)

    # -- training ---------------------------------------------------------------------------------------------------

    def expected_bits(self) -> Tensor:
        """Bits of the searched weights under the masks of the step, scalar, differentiable in the logits."""
        total = torch.zeros((), device=self.device)
        for block in self.blocks:
            quantizer = self.mixed(block)[0]
            total = total + sum(self.num_weights(block)) * (quantizer.mask() * quantizer.bit_widths).sum()
        return total

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = self.task.loss(self(images), labels)
        self.log("train/task_loss", loss)
        if self.searching():
            factor = cost_factor(self.expected_bits(), self.beta, self.gamma)
            self.log("train/cost_factor", factor)
            return loss * factor
        # Zero times the logits: distributed training expects a gradient for every parameter it started with.
        return loss + 0.0 * torch.stack([theta.sum() for theta in self.theta]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.theta_turn:
            self.theta_optimizer.step()
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # an optimizer passes over what has no gradient
        self.theta_optimizer.zero_grad()

    def parameter_groups(self) -> list[dict[str, Any]]:
        logits = {id(theta) for theta in self.theta}
        groups = [
            group | {"params": [p for p in group["params"] if id(p) not in logits]}
            for group in super().parameter_groups()
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> dict[str, Any]:
        configured = super().configure_optimizers()
        steps, scale = self.theta_steps(), 1.0
        if self.published_theta_steps is not None:
            scale = max(1.0, self.published_theta_steps / max(1, steps))
        # Beside the trainer's, whose steps are counted; Adam whatever trains the weights.
        self.theta_optimizer = torch.optim.Adam(
            self.theta, lr=self.theta_learning_rate * scale, weight_decay=self.theta_weight_decay
        )
        if self._theta_state is not None:
            self.theta_optimizer.load_state_dict(self._theta_state)
        return configured

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["search"] = {"chosen": self.chosen, "theta_optimizer": self.theta_optimizer.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        search = checkpoint.get("search", {})
        if search.get("chosen") and search["chosen"].keys() == self.blocks.keys():
            self._fix(search["chosen"])
        super().on_load_checkpoint(checkpoint)
        self._theta_state = search.get("theta_optimizer")

    def schedule_state(self) -> dict[str, float]:
        """Numbers of the present step for the logs."""
        if self.chosen is not None:
            return {}
        with torch.no_grad():
            bits, weights = float(self.expected_bits()), sum(sum(self.num_weights(block)) for block in self.blocks)
        temperature = float(self.mixed(next(iter(self.blocks)))[0].temperature)
        return {"expected_bit_width": bits / weights, "temperature": temperature}
