"""Plain uniform quantization: one width for all weights, fixed scales, straight-through fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from common.calibration import observe_activations, quantizers_off
from common.callbacks import PolicyLogger, SavePacked
from common.compression import activation_bit_widths
from common.graph import activation_outputs
from common.quantizers import PowerOfTwoQuantizer, SymmetricQuantizer
from common.training import QuantizedModule
from common.training.optimizers import decay, with_factors

SAMPLE_PER_BATCH = 4096  # values kept of each activation tensor and batch; the scale search needs no more


class Uniform(QuantizedModule):
    """Fixed widths, scales fixed by calibration, weights fine-tuned through the straight-through estimator.

    Sites are HMQ's: every weight, first and last layer included, and the activation outputs.

    Args:
        weight_bit_width: of every weight tensor.
        first_last_weight_bit_width: of the first and the last layer; None is `weight_bit_width`.
        target_acr: bound on the largest activation tensor, from which the widths follow as in HMQ, eq. 10 and 11.
        power_of_two: restrict thresholds to powers of two, as HMQ does.
        learning_rate, weight_decay: of RAdam, decoupled.
        learning_rate_schedule: "constant" or "cosine" down to 0.
        log_every_n_steps: of the policy.

    Other arguments: see QuantizedModule.

    Raises:
        UserError: the memory bound leaves an activation less than one bit.
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
        weight_bit_width: int = 4,
        first_last_weight_bit_width: int | None = None,
        target_acr: float = 4.0,
        power_of_two: bool = False,
        learning_rate: float = 1e-5,
        weight_decay: float = 1e-4,
        learning_rate_schedule: str = "constant",
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
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.learning_rate_schedule = learning_rate_schedule
        decay(learning_rate_schedule, 1)  # refuse an unknown name now
        self.log_every_n_steps = log_every_n_steps
        kind = PowerOfTwoQuantizer if power_of_two else SymmetricQuantizer
        ends = {self.layers[0].name, self.layers[-1].name} if first_last_weight_bit_width else set()
        chosen: dict[str, SymmetricQuantizer] = {}
        for layer in self.layers:
            width = first_last_weight_bit_width if layer.name in ends else weight_bit_width
            chosen[f"{layer.name}.weight"] = kind(width, signed=True)
        activations = {s.name: s for s in activation_outputs(tuple(self.sites.values()), self.network)}
        widths = activation_bit_widths({name: s.num_elements for name, s in activations.items()}, target_acr)
        for name, site in activations.items():
            chosen[name] = kind(widths[name], signed=not site.non_negative)
        self.insert(chosen)

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        state = self.network.state_dict()
        for name, quantizer in self.quantizers_of("weight").items():
            quantizer.calibrate(state[name], float(state[name].abs().max()))
        activations = self.quantizers_of("tensor")
        largest = dict.fromkeys(activations, 0.0)
        # One store that doubles: thousands of small tensors between large ones leave the heap in pieces (13 GB for
        # CIFAR-10's training set).
        store = torch.empty(len(activations), 64 * SAMPLE_PER_BATCH)
        rows = {name: row for row, name in enumerate(activations)}
        filled = [0] * len(activations)
        generator = torch.Generator().manual_seed(self.seed)

        def record(site: str, x: Tensor) -> None:
            largest[site] = max(largest[site], float(x.abs().max()))
            chosen = torch.randint(x.numel(), (SAMPLE_PER_BATCH,), generator=generator).to(x.device)
            nonlocal store
            row, start = rows[site], filled[rows[site]]
            filled[row] = start + SAMPLE_PER_BATCH
            if filled[row] > store.shape[1]:
                store = torch.cat([store, torch.empty_like(store)], 1)
            store[row, start : filled[row]] = x.flatten()[chosen]

        with quantizers_off(self.network):
            observe_activations(self.network, batches, [self.sites[name] for name in activations], record)
        for name, quantizer in activations.items():
            quantizer.calibrate(store[rows[name], : filled[rows[name]]].to(self.device), largest[name])

    def configure_callbacks(self) -> list[Callback]:
        return [PolicyLogger(self.log_every_n_steps), SavePacked()]

    def configure_optimizers(self) -> dict[str, Any]:
        self.prepare_schedule()
        optimizer = torch.optim.RAdam(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, decoupled_weight_decay=True
        )
        factor = decay(self.learning_rate_schedule, self.total_steps)
        return with_factors(optimizer, [factor], self.trainer.accumulate_grad_batches)
