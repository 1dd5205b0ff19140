"""What quantization-aware methods share: one quantizer per weight and per layer input, straight-through training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.calibration import observe_activations, quantizers_off
from common.callbacks import PolicyLogger, SavePacked
from common.compression import FLOAT_BITS, activation_compression_rate, packed_bytes
from common.errors import UserError
from common.graph import Layer, Site
from common.quantizers.lsq import LSQ
from common.training.optimizers import learning_rate_factor, with_factors
from common.training.quantized_module import QuantizedModule

CALIBRATION_VALUES = 2**18  # kept of each tensor and batch where several batches are seen


class QuantizationAware(QuantizedModule):
    """Trains the float weights behind quantizers; a paper folder says which ones.

    Subclasses define `weight_quantizer` and `input_quantizer`. A quantizer may have `calibrate(x)`, called once with
    weights or activations, `draw(key, step)`, called before every step (random numbers), and `after_step()`, called
    after every optimizer step (clamp, re-cluster).

    Args:
        weight_bit_width, activation_bit_width: of all layers but the first and the last; 32 is float.
        first_last: weights and inputs of the first and the last layer: "float", "8bit" or "same" as the others. The
            image itself is never quantized: it has 8 bits to begin with. A method without 8 bits of its own takes LSQ's
            there.
        batch_norm: "train", or "freeze" the running statistics.
        batch_norm_freeze_at: with "freeze": from this fraction of the training on; 0 is from the start.
        optimizer: "sgd" (Nesterov momentum where `nesterov`), "adam" or "radam" (decoupled weight decay).
        learning_rate, momentum, weight_decay: of the network's parameters.
        decay_norms: whether batch norm and biases decay too.
        quantizer_learning_rate: learned parameters of quantizers, in multiples of `learning_rate`.
        quantizer_weight_decay: theirs.
        learning_rate_schedule: "constant", or "cosine" or "linear" down to 0.
        learning_rate_drops: fractions of the training from which on the rate is a tenth of what it was.
        log_every_n_steps: of bit-widths and compression.

    Other arguments: see QuantizedModule; one batch calibrates.

    Raises:
        UserError: an unknown word; widths that the method's quantizers do not have.
    """

    def __init__(
        self,
        weight_bit_width: int = 4,
        activation_bit_width: int = 4,
        first_last: Literal["float", "8bit", "same"] = "8bit",
        batch_norm: Literal["train", "freeze"] = "train",
        batch_norm_freeze_at: float = 0.0,
        optimizer: Literal["sgd", "adam", "radam"] = "sgd",
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        decay_norms: bool = True,
        quantizer_learning_rate: float = 1.0,
        quantizer_weight_decay: float = 0.0,
        learning_rate_schedule: str = "cosine",
        learning_rate_drops: list[float] | None = None,
        log_every_n_steps: int = 50,
        calibration_batches: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(calibration_batches=calibration_batches, **kwargs)
        for name, value, words in (
            ("first_last", first_last, ("float", "8bit", "same")),
            ("batch_norm", batch_norm, ("train", "freeze")),
            ("optimizer", optimizer, ("sgd", "adam", "radam")),
        ):
            if value not in words:
                raise UserError(f"{name} must be one of {', '.join(words)}, got {value!r}")
        if not 0 <= batch_norm_freeze_at <= 1:
            raise UserError(f"batch_norm_freeze_at must be a fraction of the training, got {batch_norm_freeze_at}")
        learning_rate_factor(learning_rate_schedule, 1, learning_rate_drops or ())  # refuse what is unknown now
        self.first_last, self.optimizer_name = first_last, optimizer
        self.batch_norm, self.batch_norm_freeze_at = batch_norm, batch_norm_freeze_at
        self.weight_bit_width, self.activation_bit_width = weight_bit_width, activation_bit_width
        self.learning_rate, self.momentum, self.nesterov = learning_rate, momentum, nesterov
        self.weight_decay, self.decay_norms = weight_decay, decay_norms
        self.quantizer_learning_rate = quantizer_learning_rate
        self.quantizer_weight_decay = quantizer_weight_decay
        self.learning_rate_schedule, self.learning_rate_drops = learning_rate_schedule, learning_rate_drops or []
        self.log_every_n_steps = log_every_n_steps
        self.insert(self._choose())

    own_eight_bits: ClassVar[bool] = True  # whether the quantizers below also serve "8bit" first and last layers

    # -- what a method says -----------------------------------------------------------------------------------------

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        """The quantizer of a layer's weights."""
        raise NotImplementedError

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        """The quantizer of a layer's input, which is `site.non_negative` behind a ReLU."""
        raise NotImplementedError

    # -- sites ------------------------------------------------------------------------------------------------------

    def widths_of(self, layer: Layer) -> tuple[int, int]:
        """(weight, input) widths of a layer by the first/last rule; 32 is float."""
        widths = self.weight_bit_width, self.activation_bit_width
        if self.is_outer(layer):
            # What is float stays so: a weights-only run has no 8-bit inputs either.
            special = {"float": FLOAT_BITS, "8bit": 8}
            if self.first_last in special:
                widths = tuple(FLOAT_BITS if w == FLOAT_BITS else special[self.first_last] for w in widths)
        return widths

    def is_outer(self, layer: Layer) -> bool:
        """Whether it is the first or the last layer."""
        return layer.name in (self.layers[0].name, self.layers[-1].name)

    def _choose(self) -> dict[str, nn.Module]:
        chosen: dict[str, nn.Module] = {}
        for layer in self.layers:
            weight_bits, input_bits = self.widths_of(layer)
            lent = self.is_outer(layer) and self.first_last == "8bit" and not self.own_eight_bits
            site = self.sites[f"{layer.name}.input"]
            try:
                if input_bits < FLOAT_BITS and not any(read.is_image for read in layer.reads):
                    if lent:
                        chosen[site.name] = LSQ(input_bits, signed=not site.non_negative, batched=True)
                    else:
                        chosen[site.name] = self.input_quantizer(site, input_bits)
                if weight_bits < FLOAT_BITS:
                    weight = LSQ(weight_bits, signed=True) if lent else self.weight_quantizer(layer, weight_bits)
                    chosen[f"{layer.name}.weight"] = weight
            except ValueError as error:
                raise UserError(f"{type(self).__name__}, layer {layer.name}: {error}") from None
        return chosen

    def num_float_weights(self) -> int:
        """Weights of layers that stay in float32: they count in `wcr`."""
        return sum(layer.num_weights for layer in self.layers if f"{layer.name}.weight" not in self.quantizers)

    def wcr(self) -> float:
        """4 bytes per weight of all layers, quantized or not, over the bytes that they take."""
        widths, sizes = self.policy().sites, self.num_elements("weight")
        float_bytes = 4 * self.num_float_weights()
        codes = sum(packed_bytes(n, int(widths[site])) for site, n in sizes.items())
        return (4 * sum(sizes.values()) + float_bytes) / (codes + float_bytes)

    def acr(self) -> float:
        """Of the quantized layer inputs; 1 where there is none."""
        elements = self.num_elements("edge")
        return activation_compression_rate(elements, self.policy().sites) if elements else 1.0

    # -- calibration ------------------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        state = self.network.state_dict()
        for name, quantizer in self.quantizers_of("weight").items():
            if hasattr(quantizer, "calibrate"):
                quantizer.calibrate(state[name])
        inputs = {name: q for name, q in self.quantizers_of("edge").items() if hasattr(q, "calibrate")}
        values: dict[str, list[Tensor]] = {name: [] for name in inputs}
        generator = torch.Generator().manual_seed(self.seed)

        def record(site: str, x: Tensor) -> None:
            if self.calibration_batches != 1 and x.numel() > CALIBRATION_VALUES:
                x = x.flatten()[torch.randint(x.numel(), (CALIBRATION_VALUES,), generator=generator).to(x.device)]
            values[site].append(x.flatten())

        if inputs:
            with quantizers_off(self.network):
                observe_activations(self.network, batches, [self.sites[name] for name in inputs], record)
        for name, quantizer in inputs.items():
            quantizer.calibrate(torch.cat(values.pop(name)))

    # -- training ---------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        return [PolicyLogger(self.log_every_n_steps), SavePacked()]

    def latent_weights(self) -> dict[str, nn.Parameter]:
        """Weight site -> the float weights behind its quantizer."""
        return {site: self.network.get_parameter(site) for site in self.quantizers_of("weight")}

    def progress(self) -> float:
        """Fraction of the training that is over, by batches begun."""
        return self.step / max(1, self.total_steps)

    def on_train_epoch_start(self) -> None:
        self._freeze_batch_norm()  # Lightning has put the network into train mode

    def _freeze_batch_norm(self) -> None:
        if self.batch_norm == "freeze" and self.progress() >= self.batch_norm_freeze_at:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm) and module.training:
                    module.eval()

    def before_step(self, images: Tensor) -> None:
        self._freeze_batch_norm()
        for site, quantizer in self.quantizers.items():
            if hasattr(quantizer, "draw"):
                quantizer.draw(self.noise_key(site), self.step)

    def after_optimizer_step(self) -> None:
        for quantizer in self.quantizers.values():
            if hasattr(quantizer, "after_step"):
                quantizer.after_step()

    def parameter_groups(self) -> list[dict[str, Any]]:
        learned = {id(p) for quantizer in self.quantizers.values() for p in quantizer.parameters()}
        network = [p for p in self.network.parameters() if id(p) not in learned]
        groups = [
            {"params": [p for p in network if p.ndim > 1 or self.decay_norms], "weight_decay": self.weight_decay},
            {"params": [p for p in network if p.ndim <= 1 and not self.decay_norms], "weight_decay": 0.0},
            {
                "params": [p for p in self.network.parameters() if id(p) in learned],
                "lr": self.learning_rate * self.quantizer_learning_rate,
                "weight_decay": self.quantizer_weight_decay,
            },
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> dict[str, Any]:
        self.prepare_schedule()
        groups, rate = self.parameter_groups(), self.learning_rate
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(groups, lr=rate, momentum=self.momentum, nesterov=self.nesterov)
        elif self.optimizer_name == "adam":
            optimizer = torch.optim.Adam(groups, lr=rate)
        else:
            optimizer = torch.optim.RAdam(groups, lr=rate, decoupled_weight_decay=True)
        factor = learning_rate_factor(self.learning_rate_schedule, self.total_steps, self.learning_rate_drops)
        return with_factors(optimizer, [factor] * len(groups), self.trainer.accumulate_grad_batches)
