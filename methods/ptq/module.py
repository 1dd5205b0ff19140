"""Post-training quantization: fold, equalize, choose ranges, round, correct biases; no training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from common.calibration import quantizers_off
from common.calibration.aciq import ACIQObserver
from common.calibration.adaround import adaround
from common.calibration.batch_norm import batch_norm_observers, expected_inputs
from common.calibration.kl import KLObserver
from common.calibration.moments import match_moments
from common.calibration.observers import (
    MeanExtremesObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    Observer,
    PercentileObserver,
    observe_sites,
    set_affine_range,
    set_symmetric_range,
)
from common.calibration.weights import fit_weight_grid
from common.compression import FLOAT_BITS, packed_bytes
from common.errors import UserError
from common.graph import Layer, activation_outputs, find_sites, layer_table, remove_quantizers
from common.graph.bias_correction import correct_biases, correct_biases_from_data
from common.graph.equalization import absorb_high_biases, equalize
from common.graph.folding import fold_batch_norms, own_parameters
from common.quantizers import AffineQuantizer, Quantizer
from common.quantizers.kmeans import KMeansQuantizer
from common.training import QuantizedModule

FirstLast = Literal["float", "8bit", "same"]
Granularity = Literal["per_tensor", "per_channel"]
Grid = Literal["symmetric", "affine"]
WeightRange = Literal["minmax", "mse", "percentile"]
ActivationObserver = Literal[
    "minmax", "moving_average", "mean_extremes", "percentile", "mse", "aciq_laplace", "aciq_gauss", "kl", "batch_norm"
]
BiasCorrection = Literal["none", "analytic", "empirical", "moments"]
Rounding = Literal["nearest", "adaround"]
Clusters = Literal["uniform", "kmeans"]
_WORDS = {
    "first_last": FirstLast,
    "weight_granularity": Granularity,
    "weight_grid": Grid,
    "weight_range": WeightRange,
    "activation_grid": Grid,
    "activation_observer": ActivationObserver,
    "bias_correction": BiasCorrection,
    "rounding": Rounding,
    "weight_levels": Clusters,
}


class PTQ(QuantizedModule):
    """Quantizes a trained network from a few images, or from none.

    Weights have a grid per tensor or per output channel. Activations have one grid per tensor that a fused layer writes
    (`common.graph.activation_outputs`), unsigned behind a ReLU; the image itself is never quantized: it has 8 bits to
    begin with. Biases stay float. The steps, in this order: fold batch norms, equalize, absorb high biases (in
    `__init__`); choose weight grids, choose activation grids from the float network, round, correct biases
    (`calibrate`).

    Args:
        weight_bit_width, activation_bit_width: 2..16 and 1..16; 32 is float.
        first_last: weights of the first and the last layer and what the last one reads: "float", "8bit" or "same" as
            the others.
        weight_levels: "uniform", or "kmeans": 2^b shared values per tensor (at most 8 bits).
        weight_granularity: "per_tensor" or "per_channel".
        weight_grid, activation_grid: "symmetric" (zero point 0; weights without the lowest integer) or "affine".
        weight_range: see `fit_weight_grid`.
        activation_observer: how the range of an activation is chosen; "batch_norm" needs no images.
        percentile: % of the values that the range of "percentile" holds, of weights and activations.
        moving_average_momentum: share of the newest batch in "moving_average".
        fold_batch_norm: into the layers before.
        equalization: of weight ranges across layers.
        absorption: of high biases into the next layer, after equalization.
        bias_correction: "none"; "analytic", from batch norm; "empirical", from the calibration images; "moments", from
            them too, together with a factor of each output channel's scale (per channel only).
        rounding: "nearest", or "adaround" layer by layer, with adaround_steps of Adam on adaround_batch_size images.
        calibration_images: taken from the training set.
        calibration_batch_size: images at a time; it matters to "moving_average" only.

    Other arguments: see QuantizedModule.

    Raises:
        UserError: an unknown word, or settings that exclude each other.
    """

    def __init__(
        self,
        model: str = "digits_net",
        weights: str | None = None,
        num_classes: int | None = None,
        input_shape: tuple[int, int, int] | None = None,
        model_args: dict[str, Any] | None = None,
        seed: int = 0,
        weight_bit_width: int = 8,
        activation_bit_width: int = 8,
        first_last: FirstLast = "same",
        weight_levels: Clusters = "uniform",
        weight_granularity: Granularity = "per_channel",
        weight_grid: Grid = "symmetric",
        weight_range: WeightRange = "minmax",
        activation_grid: Grid = "affine",
        activation_observer: ActivationObserver = "mse",
        percentile: float = 99.99,
        moving_average_momentum: float = 0.1,
        fold_batch_norm: bool = True,
        equalization: bool = False,
        absorption: bool = False,
        bias_correction: BiasCorrection = "none",
        rounding: Rounding = "nearest",
        adaround_steps: int = 10_000,
        adaround_batch_size: int = 32,
        adaround_learning_rate: float = 1e-2,
        adaround_regularization: float = 0.01,
        calibration_images: int = 64,
        calibration_batch_size: int = 16,
    ) -> None:
        for name, words in _WORDS.items():
            if (value := locals()[name]) not in get_args(words):
                raise UserError(f"{name} must be one of {', '.join(get_args(words))}, got {value!r}")
        if calibration_images < 1 or calibration_batch_size < 1:
            raise UserError(
                "calibration_images and calibration_batch_size must be at least 1, got "
                f"{calibration_images} and {calibration_batch_size}"
            )
        if equalization and not fold_batch_norm:
            raise UserError("equalization needs folded batch norms: leave fold_batch_norm true")
        if absorption and not equalization:
            raise UserError("absorption follows equalization: set equalization too")
        if weight_levels == "kmeans" and (weight_granularity == "per_channel" or rounding == "adaround"):
            raise UserError("kmeans shares values per tensor, rounded to nearest: set weight_granularity per_tensor")
        if bias_correction == "moments" and weight_granularity != "per_channel":
            raise UserError("bias_correction moments rescales output channels: set weight_granularity per_channel")
        super().__init__(
            model=model,
            weights=weights,
            num_classes=num_classes,
            input_shape=input_shape,
            model_args=model_args,
            seed=seed,
            calibration_batches=0,
        )
        self.weight_bit_width, self.activation_bit_width = weight_bit_width, activation_bit_width
        self.first_last, self.weight_levels = first_last, weight_levels
        self.weight_granularity, self.weight_grid, self.weight_range = weight_granularity, weight_grid, weight_range
        self.activation_grid, self.activation_observer = activation_grid, activation_observer
        self.percentile, self.moving_average_momentum = percentile, moving_average_momentum
        self.bias_correction, self.rounding = bias_correction, rounding
        self.adaround_settings = {
            "steps": adaround_steps,
            "batch_size": adaround_batch_size,
            "learning_rate": adaround_learning_rate,
            "regularization": adaround_regularization,
        }
        self.calibration_images, self.calibration_batch_size = calibration_images, calibration_batch_size
        self.rewrite(fold_batch_norm, equalization, absorption)
        self.insert(self._choose())

    # -- before quantization ----------------------------------------------------------------------------------------

    def rewrite(self, fold: bool, equalization: bool, absorption: bool) -> None:
        """Change the float network: batch norms, ranges, biases; and look up its layers and sites anew."""
        self.network.eval()
        self.statistics = fold_batch_norms(self.network) if fold else {}
        if equalization:
            equalize(self.network, self.statistics, symmetric=self.weight_grid == "symmetric")
        if absorption:
            absorb_high_biases(self.network, self.statistics)
        if self.bias_correction != "none":
            for layer in self.layers:
                own_parameters(self.network, layer.name, bias=True)
        example = torch.zeros(2, *self.input_shape)
        self.layers = layer_table(self.network, example)
        self.sites = {site.name: site for site in find_sites(self.network, example)}

    def _width(self, bit_width: int, outer: bool) -> int:
        if not outer or self.first_last == "same" or bit_width == FLOAT_BITS:
            return bit_width  # what is float stays so: a weights-only run has no 8-bit activations either
        return 8 if self.first_last == "8bit" else FLOAT_BITS

    def _choose(self) -> dict[str, Quantizer]:
        chosen: dict[str, Quantizer] = {}
        first, last = self.layers[0], self.layers[-1]
        last_reads = {name for read in last.reads for name in read.names}
        try:
            for layer in self.layers:
                bits = self._width(self.weight_bit_width, outer=layer in (first, last))
                if bits < FLOAT_BITS:
                    chosen[f"{layer.name}.weight"] = self._weight_quantizer(layer, bits)
            for site in activation_outputs(self.sites.values(), self.network):
                bits = self._width(self.activation_bit_width, outer=site.name in last_reads)
                if bits < FLOAT_BITS:
                    chosen[site.name] = AffineQuantizer(bits, signed=not site.non_negative)
        except ValueError as error:
            raise UserError(str(error)) from None
        return chosen

    def _weight_quantizer(self, layer: Layer, bits: int) -> Quantizer:
        if bits < 2:
            raise UserError(f"weight_bit_width must be at least 2, got {bits}: a symmetric grid of 1 bit holds only 0")
        if self.weight_levels == "kmeans":
            return KMeansQuantizer(bits)
        return AffineQuantizer(bits, channels=layer.out_channels if self.weight_granularity == "per_channel" else None)

    # -- calibration ------------------------------------------------------------------------------------------------

    @property
    def needs_images(self) -> bool:
        """Whether `calibrate` looks at images."""
        observed = self.activation_observer != "batch_norm" and bool(self.quantizers_of("tensor"))
        return observed or self.bias_correction in ("empirical", "moments") or self.rounding == "adaround"

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], progress: Callable[[str], None] | None = None) -> None:
        """All that follows the changes to the float network.

        Args:
            batches: images, (N, C, H, W) each; not read if there is no need for them.
            progress: called with a line about each finished step.

        Raises:
            UserError: a data-free setting about a network whose batch norms do not tell enough.
        """
        tell = progress or (lambda line: None)
        self.network.eval()
        images = list(batches) if self.needs_images else []
        reference = copy.deepcopy(self.network)
        remove_quantizers(reference)
        for name, quantizer in self.quantizers_of("weight").items():
            weight = self.network.get_parameter(name)
            if isinstance(quantizer, KMeansQuantizer):
                quantizer.calibrate(weight)
            else:
                symmetric = self.weight_grid == "symmetric"
                fit_weight_grid(quantizer, weight, self.weight_range, symmetric, self.percentile)
        self._fit_activations(images)
        tell("ranges are chosen")
        if self.rounding == "adaround":
            reports = adaround(
                self.network,
                reference,
                images,
                **self.adaround_settings,
                seed=self.seed,
                progress=lambda name, report: tell(f"{name} rounded: {report.nearest_loss:.4g} -> {report.loss:.4g}"),
            )
            self.rounding_reports = reports
        if self.bias_correction == "analytic":
            known = expected_inputs(reference, self.statistics)
            if not known:
                raise UserError(f"bias_correction analytic: no batch norm of {self.model_name} tells of layers' inputs")
            floats = {name: reference.get_submodule(name).weight for name in known}
            correct_biases(self.network, known, floats)
        elif self.bias_correction == "empirical":
            correct_biases_from_data(self.network, reference, images)
        elif self.bias_correction == "moments":
            match_moments(self.network, reference, images)
        self.calibrated.fill_(True)

    def _fit_activations(self, images: list[Tensor]) -> None:
        """Ranges of the float network's activations."""
        sites = [self.sites[name] for name in self.quantizers_of("tensor")]
        if not sites:
            return
        if self.activation_observer == "batch_norm":
            observers = batch_norm_observers(self.network, self.statistics, sites)
            if unknown := [site.name for site in sites if site.name not in observers]:
                raise UserError(f"activation_observer batch_norm: no batch norm tells of {unknown[0]}; take another")
        else:
            with quantizers_off(self.network):
                observers = observe_sites(self.network, images, sites, lambda site: self._observer())
        for site in sites:
            quantizer = self.quantizers[site.name]
            low, high = observers[site.name].range(int(quantizer.bit_width), signed=not site.non_negative)
            if self.activation_grid == "symmetric":
                set_symmetric_range(quantizer, torch.maximum(-low, high))
            else:
                set_affine_range(quantizer, low, high)

    def _observer(self) -> Observer:
        symmetric = self.activation_grid == "symmetric"
        makers: dict[str, Callable[[], Observer]] = {
            "minmax": MinMaxObserver,
            "moving_average": lambda: MovingAverageObserver(self.moving_average_momentum),
            "mean_extremes": MeanExtremesObserver,
            "percentile": lambda: PercentileObserver(self.percentile, symmetric),
            "mse": lambda: MSEObserver(symmetric),
            "aciq_laplace": lambda: ACIQObserver("laplace"),
            "aciq_gauss": lambda: ACIQObserver("gauss"),
            "kl": KLObserver,
        }
        return makers[self.activation_observer]()

    # -- size -------------------------------------------------------------------------------------------------------

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
        """Of the quantized activations; 1 where there is none."""
        return super().acr() if self.num_elements("tensor") else 1.0
