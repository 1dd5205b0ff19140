"""HMQ's two-phase training (Habi et al. 2020, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from common.calibration import observe_activations, quantizers_off
from common.callbacks import PhaseSwitch, PolicyLogger, SavePacked, TargetCompressionSchedule, TemperatureAnnealing
from common.compression import FLOAT_BITS, activation_bit_widths, weight_compression_rate
from common.errors import UserError
from common.graph import activation_outputs
from common.search.repair import Change, code_bytes, repair_to_budget
from common.training import QuantizedModule
from common.training.optimizers import decay, with_factors
from common.training.schedule import CyclicSchedule
from methods.hmq.quantizer import ClipRule, GumbelNoise, HMQBlock

PUBLISHED_EPOCHS, PUBLISHED_SEARCH_EPOCHS = 50, 30  # section 5
DEFAULT_WCR = 8.0


@dataclass(frozen=True)
class Choices:
    """Where paper and public code disagree. The defaults follow neither as a whole; README.md gives the reasons.

    Attributes:
        num_thresholds: |T|: 9 in the paper (eq. 1), 8 in the code.
        weight_exponent_margin: M of weights above the smallest 2^M >= max |w|: 0 paper, 1 code.
        activation_maximum: "running" maximum over all calibration batches (paper) or "leaky", base += 0.9 (max - base)
            (code).
        maximum_at: "output" of the ReLU (paper) or its "input" (code: of the absolute pre-activation).
        calibrate_quantized: record activations with all quantizers on (code) or off (paper).
        upper_at_threshold: unsigned range up to t (code) or t - D (paper).
        ends_are_clipped: no gradient to x for values that round to an end of the range (code).
        temperature_rate: r of eq. 12: e^-2 as printed, 0.01 in the code.
        activation_logit_learning_rate: of activation logits; None is the weight logits' (paper), 1e-2 in the code.
        initial_logits: "paper" (0.9 on one pair, the rest even) or "code" (random, 0.95).
        noise: "sample" draws noise per image and per input channel (code), "tensor" once per tensor.
        expected_bits: E[b] from the "softmax" of the logits (code) or from the noisy "sample" (paper).
        selection: final pair by "marginal" (code) or "joint" probability (paper).
        min_activation_bit_width: 1 (paper) or 4 (code).
        skip_classifier: leave the last layer alone (code, ResNet-50).
    """

    num_thresholds: int = 9
    weight_exponent_margin: int = 0
    activation_maximum: Literal["running", "leaky"] = "running"
    maximum_at: Literal["output", "input"] = "output"
    calibrate_quantized: bool = False
    upper_at_threshold: bool = False
    ends_are_clipped: bool = False
    temperature_rate: float = 0.01
    activation_logit_learning_rate: float | None = None
    initial_logits: Literal["paper", "code"] = "paper"
    noise: Literal["sample", "tensor"] = "sample"
    expected_bits: Literal["softmax", "sample"] = "softmax"
    selection: Literal["marginal", "joint"] = "marginal"
    min_activation_bit_width: int = 1
    skip_classifier: bool = False

    @classmethod
    def of(cls, preset: str, overrides: dict[str, Any] | None = None) -> Choices:
        """The choices of a preset ("follow", "paper", "code") with single ones replaced.

        Raises:
            UserError: unknown preset or choice.
        """
        if preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        overrides = overrides or {}
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in overrides if name not in known]:
            raise UserError(f"unknown choice {unknown[0]!r}: choose from {', '.join(known)}")
        for name, kind in get_type_hints(cls).items():
            words = [word for word in get_args(kind) if isinstance(word, str)]  # of a Literal
            if name in overrides and words and overrides[name] not in words:
                raise UserError(f"choice {name} must be {' or '.join(words)}, got {overrides[name]!r}")
        return replace(PRESETS[preset], **overrides)


PRESETS = {
    "follow": Choices(),
    "paper": Choices(
        temperature_rate=0.1353352832366127,  # e^-2
        noise="tensor",
        expected_bits="sample",
        selection="joint",
    ),
    "code": Choices(
        num_thresholds=8,
        weight_exponent_margin=1,
        activation_maximum="leaky",
        maximum_at="input",
        calibrate_quantized=True,
        upper_at_threshold=True,
        ends_are_clipped=True,
        activation_logit_learning_rate=1e-2,
        initial_logits="code",
        min_activation_bit_width=4,
    ),
}


def expected_compression_rate(expected_bit_widths: Tensor, sizes: Tensor) -> Tensor:
    """R~ = 32 sum |theta_i| / sum E[b_i] |theta_i| (eq. 7), scalar; both arguments (number of weight tensors,)."""
    return FLOAT_BITS * sizes.sum() / (expected_bit_widths * sizes).sum()


def compression_loss(rate: Tensor, target: Tensor | float) -> Tensor:
    """J_w = max(0, R_w - R~) / R_w (eq. 9), scalar."""
    return F.relu(target - rate) / target


class HMQ(QuantizedModule):
    """Search of thresholds and bit-widths in cycles, then fine-tuning of the weights alone.

    Args:
        target_wcr, target_acr: R_w and R_a; the widths of B bound R_w, and every activation needs at least one bit.
            R_w is 8 where neither it nor a constraint is given.
        constraint: an upper bound for another cost, such as "latency@bismo-edge<=50ms" (hardware.parse_constraint), in
            R_w's place: the rate of eq. 7 is then the cost at 8 bits everywhere over the expected cost.
        weight_bit_widths: B of weights: 1..8 on CIFAR, 2..8 on ImageNet (section 5).
        rate_weight: lambda of eq. 8; 32 on CIFAR (section 5.1).
        learning_rate: of the network's parameters (section 5).
        logit_learning_rate_multiplier: logits learn this many times faster (section 5.2).
        scale_logit_learning_rate: in a run that is shorter than the published one, multiply the logits' rate by
            published over actual steps of the search, so that an adaptive optimizer moves them as far.
        published_steps_per_epoch: steps that the published schedule has in an epoch; needed for that scaling.
        weight_decay: decoupled, on the network's parameters only (public code).
        search_fraction: share of the search in the whole run; 30 of 50 epochs (section 5).
        cycles, ramp_cycles: cycles of the search, cycles in which the targets rise, at most all (section 5).
        updates_per_cycle: temperature updates in a cycle: 5 epochs of 25 updates (section 5).
        min_temperature: eq. 12.
        learning_rate_schedule: of the network's parameters: "constant" (public code) or "cosine" down to 0.
        budget_repair: at the end of the search move the policy onto the target; off for published rows, on where a
            constraint is given.
        preset, choices: see `Choices`.
        log_every_n_steps: of bit-widths and compression.

    Other arguments: see QuantizedModule.

    Raises:
        UserError: a target that B or the memory bound cannot meet.
    """

    def __init__(
        self,
        model: str = "digits_net",
        weights: str | None = None,
        num_classes: int | None = None,
        input_shape: tuple[int, int, int] | None = None,
        model_args: dict[str, Any] | None = None,
        seed: int = 0,
        compile_network: bool = False,
        channels_last: bool = False,
        calibration_batches: int = -1,
        target_wcr: float | None = None,
        target_acr: float = 4.0,
        constraint: str | None = None,
        weight_bit_widths: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
        rate_weight: float = 32.0,
        learning_rate: float = 1e-5,
        logit_learning_rate_multiplier: float = 1e3,
        scale_logit_learning_rate: bool = False,
        published_steps_per_epoch: int | None = None,
        weight_decay: float = 1e-4,
        search_fraction: float = PUBLISHED_SEARCH_EPOCHS / PUBLISHED_EPOCHS,
        cycles: int = 6,
        ramp_cycles: int = 4,
        updates_per_cycle: int = 125,
        min_temperature: float = 0.5,
        learning_rate_schedule: str = "constant",
        budget_repair: bool | None = None,
        preset: str = "follow",
        choices: dict[str, Any] | None = None,
        log_every_n_steps: int = 50,
    ) -> None:
        super().__init__(
            model=model,
            weights=weights,
            num_classes=num_classes,
            input_shape=input_shape,
            model_args=model_args,
            seed=seed,
            compile_network=compile_network,
            channels_last=channels_last,
            calibration_batches=calibration_batches,
        )
        self.choices = Choices.of(preset, choices)
        self.weight_bit_widths = tuple(sorted(weight_bit_widths))
        if constraint is not None and target_wcr is not None:
            raise UserError("target_wcr and constraint exclude each other: give one of them")
        self.target_wcr = DEFAULT_WCR if target_wcr is None else target_wcr
        self.target_acr = target_acr
        self.rate_weight, self.learning_rate, self.weight_decay = rate_weight, learning_rate, weight_decay
        self.logit_learning_rate_multiplier = logit_learning_rate_multiplier
        self.published_steps_per_epoch = published_steps_per_epoch if scale_logit_learning_rate else None
        if scale_logit_learning_rate and not published_steps_per_epoch:
            raise UserError("scale_logit_learning_rate needs published_steps_per_epoch")
        self.search_fraction, self.cycles, self.ramp_cycles = search_fraction, cycles, ramp_cycles
        self.updates_per_cycle, self.min_temperature = updates_per_cycle, min_temperature
        self.learning_rate_schedule = learning_rate_schedule
        decay(learning_rate_schedule, 1)  # refuse an unknown name now
        self.budget_repair = constraint is not None if budget_repair is None else budget_repair
        self.log_every_n_steps = log_every_n_steps
        self.repair_log: list[Change] = []
        self.insert(self._weight_blocks() | self._activation_blocks())
        self.weight_blocks = self.quantizers_of("weight")
        self.activation_blocks = self.quantizers_of("tensor")
        self.blocks = self.quantizers
        self.register_buffer("weight_sizes", torch.tensor([float(n) for n in self.num_elements("weight").values()]))
        self.constraint = None
        if constraint is not None:
            self._constrain(constraint)
        self.register_buffer("current_target", torch.tensor(float(self.target_rate)))
        self._check_targets()
        if not 0 <= search_fraction <= 1:
            raise UserError(f"search_fraction must lie in 0..1, got {search_fraction:g}")
        if cycles < 1:
            raise UserError(f"cycles must be at least 1, got {cycles}")
        self.configure_callbacks()  # they reject bad settings: now rather than after the data have been read

    # -- the network ------------------------------------------------------------------------------------------------

    def _weight_blocks(self) -> dict[str, HMQBlock]:
        last = self.layers[-1].name
        blocks = {}
        for layer in self.layers:
            if self.choices.skip_classifier and layer.name == last:
                continue
            in_channels = self.sites[f"{layer.name}.weight"].shape[1]  # per group: 1 for a depthwise kernel
            blocks[f"{layer.name}.weight"] = self._block(
                self.weight_bit_widths,
                ClipRule(signed=True, ends_are_clipped=self.choices.ends_are_clipped),
                noise="channel" if self.choices.noise == "sample" else "tensor",
                noise_channels=in_channels,
                exponent_margin=self.choices.weight_exponent_margin,
            )
        return blocks

    def _activation_blocks(self) -> dict[str, HMQBlock]:
        blocks = {}
        for site in activation_outputs(tuple(self.sites.values()), self.network):
            rule = ClipRule(
                signed=not site.non_negative,
                upper_at_threshold=self.choices.upper_at_threshold,
                ends_are_clipped=self.choices.ends_are_clipped,
            )
            blocks[site.name] = self._block((8,), rule, noise="batch" if self.choices.noise == "sample" else "tensor")
        return blocks

    def _block(self, bit_widths: Sequence[int], rule: ClipRule, **settings: Any) -> HMQBlock:
        block = HMQBlock(
            bit_widths,
            rule,
            num_thresholds=self.choices.num_thresholds,
            selection=self.choices.selection,
            **settings,
        )
        if self.choices.initial_logits == "code":
            block.reset_logits_like_public_code(torch.Generator().manual_seed(self.seed))
        return block

    def _constrain(self, text: str) -> None:
        """Set up cost table, limit and reference cost."""
        from hardware import cost_table, parse_constraint  # what has no constraint does not rest on cost models

        self.constraint = parse_constraint(text)
        table = cost_table(self.constraint.model, self.layers)
        columns = [width - 1 for width in self.weight_bit_widths]
        self.register_buffer("cost_table", table.tensor()[:, columns], persistent=False)  # (layers, |B|, 8)
        self.register_buffer("costs", torch.zeros(len(self.weight_blocks), len(columns)), persistent=False)
        self.reference_cost = table.cost([8] * len(self.layers), [8] * len(self.layers))

    def _set_costs(self) -> None:
        """Costs of every weight at every width of B, at the present widths of the tensors that the layers read."""
        policy = self.policy()
        self.constraint.model.policy_cost(self.layers, policy)  # refuses by name layers that read float tensors
        for index, layer in enumerate(self.layers):
            site = f"{layer.name}.weight"
            if site in self.weight_blocks:
                activation = int(policy.layer_bits(layer).activation)
                self.costs[list(self.weight_blocks).index(site)] = self.cost_table[index, :, activation - 1]
        if not self.costs.isfinite().all():
            site = list(self.weight_blocks)[int(self.costs.isfinite().all(1).int().argmin())]
            raise UserError(f"{self.constraint.model.name} lacks costs of {site} at some of its widths")

    def _check_constraint(self) -> None:
        self.set_targets(self.target_rate, self.target_acr)
        least = float(self.costs.min(1).values.sum())
        if least > self.constraint.limit:
            lowest, unit = self.weight_bit_widths[0], self.constraint.model.unit
            raise UserError(
                f"constraint {self.constraint.text}: {lowest}-bit weights at activation "
                f"compression {self.target_acr:g} take {least:.4g} {unit}; raise target_acr or the limit"
            )

    @property
    def target_rate(self) -> float:
        """R_w, or the cost at 8 bits everywhere over the constraint's limit."""
        return self.target_wcr if self.constraint is None else self.reference_cost / self.constraint.limit

    def _check_targets(self) -> None:
        activation_bit_widths(self.num_elements("tensor"), self.target_acr)
        if self.constraint is not None:
            self._check_constraint()
            return
        smallest = self.weight_bit_widths[0]
        highest = weight_compression_rate(
            self.num_elements("weight"), dict.fromkeys(self.num_elements("weight"), smallest)
        )
        if not self.target_wcr > 0:
            raise UserError(f"target_wcr must be a positive rate, got {self.target_wcr:g}")
        if self.target_wcr > highest:
            raise UserError(
                f"target_wcr {self.target_wcr:g} is above what {smallest} bits everywhere give ({highest:.2f})"
            )

    # -- calibration: M of every block ------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        state = self.network.state_dict()
        for name, block in self.weight_blocks.items():
            block.set_max_abs(float(state[name].abs().max()))
        largest: dict[str, float] = {}

        def record(site: str, x: Tensor) -> None:
            maximum = float(x.abs().max())
            if self.choices.activation_maximum == "leaky":
                base = largest.get(site, 0.0)
                largest[site] = base + 0.9 * (maximum - base)
            else:
                largest[site] = max(largest.get(site, 0.0), maximum)

        sites = [self.sites[name] for name in self.activation_blocks]
        at_input = [s for s in sites if self.choices.maximum_at == "input" and s.operator in ("relu", "relu6")]
        at_output = [s for s in sites if s not in at_input]
        for images in batches:
            for group, pre in ((at_output, False), (at_input, True)):
                if group and self.choices.calibrate_quantized:
                    observe_activations(self.network, [images], group, record, at_input=pre)
                elif group:
                    with quantizers_off(self.network):
                        observe_activations(self.network, [images], group, record, at_input=pre)
        for name, block in self.activation_blocks.items():
            block.set_max_abs(largest[name])

    # -- schedule ---------------------------------------------------------------------------------------------------

    @property
    def schedule(self) -> CyclicSchedule:
        return CyclicSchedule(self.total_steps, round(self.total_steps * self.search_fraction), self.cycles)

    def configure_callbacks(self) -> list[Callback]:
        return [
            PhaseSwitch(),
            TargetCompressionSchedule(
                self.target_rate,
                self.target_acr,
                min(self.ramp_cycles, self.cycles),
                start_wcr=4.0 if self.constraint is None else 1.0,
            ),
            TemperatureAnnealing(self.choices.temperature_rate, self.min_temperature, self.updates_per_cycle),
            PolicyLogger(self.log_every_n_steps),
            SavePacked(),
        ]

    def set_temperature(self, temperature: float) -> None:
        """tau of all blocks."""
        for block in self.blocks.values():
            block.temperature.fill_(temperature)

    def set_targets(self, target_rate: float, target_acr: float) -> None:
        """R_w of the loss, and activation widths from R_a (eq. 10, 11)."""
        self.current_target.fill_(target_rate)
        widths = activation_bit_widths(self.num_elements("tensor"), target_acr)
        for name, block in self.activation_blocks.items():
            block.set_bit_widths([max(widths[name], self.choices.min_activation_bit_width)])
        if self.constraint is not None:
            self._set_costs()

    def on_train_start(self) -> None:
        self.noise = GumbelNoise(self.blocks, self.noise_key)  # here, where the rank is known

    def before_step(self, images: Tensor) -> None:
        if self.schedule.phase(self.step) == 1:
            self.noise.draw(self.step, images.shape[0])

    def on_phase(self, phase: int) -> None:
        if phase == 2:
            self.freeze()

    def freeze(self) -> None:
        """Fix every pair; with `budget_repair`, after moving the weights' widths onto the target."""
        widths = {name: int(block.bit_width) for name, block in self.weight_blocks.items()}
        repaired = self._repair() if self.budget_repair else widths
        for name, block in self.weight_blocks.items():
            changed = repaired[name] != widths[name]
            block.freeze(block.best_pair(repaired[name]) if changed else None)
        for block in self.activation_blocks.values():
            block.freeze()
        self.broadcast(self.blocks.values())

    def _repair(self) -> dict[str, int]:
        """The most probable policy, by the search's own marginals, among those that fill the budget."""
        marginals = {
            name: dict(zip(block.bit_widths.int().tolist(), block.probabilities().sum(0).log().tolist(), strict=True))
            for name, block in self.weight_blocks.items()
        }
        if self.constraint is None:
            sizes = self.num_elements("weight")
            costs, budget, unit = code_bytes(marginals, sizes), int(4 * sum(sizes.values()) / self.target_wcr), "bytes"
        else:
            costs, budget, unit = self._site_costs(), self.constraint.limit, self.constraint.model.unit
        repaired, self.repair_log = repair_to_budget(marginals, costs, budget, unit=unit)
        return repaired

    def _site_costs(self) -> dict[str, dict[int, float]]:
        rows = zip(self.weight_blocks, self.costs.tolist(), strict=True)
        return {site: dict(zip(self.weight_bit_widths, row, strict=True)) for site, row in rows}

    def constraint_cost(self) -> dict[str, float]:
        """What the constraint's cost model says of the present policy: {"latency_ms": ...}; empty without one."""
        if self.constraint is None:
            return {}
        model = self.constraint.model
        name = f"{model.quantity}_{model.unit}".rstrip("_")
        return {name: model.policy_cost(self.layers, self.policy()).total}

    # -- training ---------------------------------------------------------------------------------------------------

    def expected_wcr(self) -> Tensor:
        """R~ of eq. 7, scalar, differentiable in the logits. There is no sample in the second phase."""
        sampled = self.choices.expected_bits == "sample" and self.schedule.phase(self.step) == 1
        bits = torch.stack([block.expected_bit_width(sampled) for block in self.weight_blocks.values()])
        return expected_compression_rate(bits, self.weight_sizes)

    def expected_rate(self) -> Tensor:
        """What the target bounds: `expected_wcr`, or reference over expected cost under the constraint's model."""
        if self.constraint is None:
            return self.expected_wcr()
        return self.reference_cost / self._expected_cost()

    def _expected_cost(self) -> Tensor:
        """Scalar, exact under independent widths, differentiable in the logits."""
        sampled = self.choices.expected_bits == "sample" and self.schedule.phase(self.step) == 1
        probabilities = torch.stack([block.width_probabilities(sampled) for block in self.weight_blocks.values()])
        return (probabilities * self.costs).sum()

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        task_loss = self.task.loss(self(images), labels)
        self.log("train/task_loss", task_loss)
        if self.schedule.phase(self.step) == 2:
            # Zero times the logits: distributed training expects a gradient for every parameter it started with.
            return task_loss + 0.0 * torch.stack([block.logits.sum() for block in self.blocks.values()]).sum()
        rate_loss = compression_loss(self.expected_rate(), self.current_target)
        self.log("train/rate_loss", rate_loss)
        return task_loss + self.rate_weight * rate_loss**2  # eq. 8

    def schedule_state(self) -> dict[str, float]:
        """Numbers of the present step for the logs (figure 2)."""
        with torch.no_grad():
            state = {"expected_wcr": float(self.expected_wcr())}
            if self.constraint is None:
                state["target_wcr"] = float(self.current_target)
            else:
                state["expected_cost"] = float(self._expected_cost())
                state["target_cost"] = self.reference_cost / float(self.current_target)
        return state | {"temperature": float(next(iter(self.blocks.values())).temperature)}

    def logit_learning_rates(self) -> tuple[float, float]:
        """(weight logits, activation logits)."""
        rate = self.learning_rate * self.logit_learning_rate_multiplier
        scale = 1.0
        if self.published_steps_per_epoch:
            published = PUBLISHED_SEARCH_EPOCHS * self.published_steps_per_epoch
            scale = max(1.0, published / max(1, self.schedule.search_steps))
        activation = self.choices.activation_logit_learning_rate
        return rate * scale, (rate if activation is None else activation) * scale

    def parameter_groups(self) -> list[dict[str, Any]]:
        logits = {id(block.logits) for block in self.blocks.values()}
        weight_rate, activation_rate = self.logit_learning_rates()
        return [
            {
                "name": "network",
                "params": [p for p in self.network.parameters() if id(p) not in logits],
                "lr": self.learning_rate,
                "weight_decay": self.weight_decay,
            },
            {"name": "weight_logits", "params": [b.logits for b in self.weight_blocks.values()], "lr": weight_rate},
            {
                "name": "activation_logits",
                "params": [b.logits for b in self.activation_blocks.values()],
                "lr": activation_rate,
            },
        ]

    def configure_optimizers(self) -> dict[str, Any]:
        self.prepare_schedule()
        optimizer = torch.optim.RAdam(
            self.parameter_groups(), lr=self.learning_rate, betas=(0.9, 0.999), decoupled_weight_decay=True
        )
        # In the second phase momentum left from the search must not move the logits.
        search_steps = self.schedule.search_steps
        factors = {"network": decay(self.learning_rate_schedule, self.total_steps)}
        return with_factors(
            optimizer,
            [factors.get(group["name"], lambda step: float(step < search_steps)) for group in optimizer.param_groups],
            self.trainer.accumulate_grad_batches,
        )

    def settings(self) -> dict[str, Any]:
        """What the run was made with, for its record."""
        return {"choices": asdict(self.choices), "logit_learning_rates": self.logit_learning_rates()}
