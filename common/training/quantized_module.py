"""The thin LightningModule under every trainer: network, sites, evaluation, bit policy, optimizer groups, hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from common.bit_policy import BitPolicy
from common.compression import activation_compression_rate, weight_compression_rate
from common.errors import UserError
from common.graph import find_sites, insert_quantizers, layer_table, quantizers, trace
from common.models import build_model, load_weights, model_info, state_hash
from common.random import stream_key
from common.training.tasks import Classification


class QuantizedModule(pl.LightningModule):
    """A traced network whose sites a subclass gives quantizers.

    A subclass builds its quantizers in `__init__` (`insert`), fills them in `calibrate`, and writes `training_loss` and
    `parameter_groups`. Schedules read `step`, the number of training batches begun, and `total_steps`.

    Args:
        model: name in the model registry (own, torchvision, timm) or a class path.
        weights: file with the start weights (safetensors, npz, pth); None keeps the initial ones.
        num_classes: outputs of the network; None is the model's own number.
        input_shape: (C, H, W) of one image; None is the model's own.
        model_args: further keyword arguments of the model, such as {"pretrained": true}.
        seed: of everything random in quantizers and in the initial weights.
        compile_network: `torch.compile` the network.
        channels_last: keep images and weights in channels_last memory format.
        calibration_batches: training batches that `calibrate` sees; -1 is the whole training set.

    Raises:
        UserError: unknown model, weights that do not fit.
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
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # of the subclass, whose __init__ calls this one
        self.model_name, self.model_args = model, dict(model_args or {})
        info = model_info(model)
        self.num_classes = num_classes or info.num_classes
        self.input_shape = tuple(input_shape or info.input_shape or ())
        if not (self.num_classes and self.input_shape):
            raise UserError(f"{model} does not say its num_classes and input_shape: set both")
        self.seed, self.compile_network, self.channels_last = seed, compile_network, channels_last
        self.calibration_batches = calibration_batches
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_model(model, num_classes=self.num_classes, **self.model_args)
        if weights is not None:
            load_weights(network, weights)
        self.start_weights = state_hash(network)
        example = torch.zeros(2, *self.input_shape)
        self.network = trace(network, example)
        self.layers = layer_table(self.network, example)
        self.sites = {site.name: site for site in find_sites(self.network, example)}
        self.task = Classification(self.num_classes)
        self.step = 0
        self.total_steps = 0
        self.register_buffer("calibrated", torch.tensor(False))
        self._teacher: list[nn.Module] = []  # in a list: outside the module's parameters and checkpoints

    # -- quantizers and policy --------------------------------------------------------------------------------------

    def insert(self, chosen: Mapping[str, nn.Module]) -> None:
        """Put quantizers at sites, by name."""
        insert_quantizers(self.network, dict(chosen))

    @property
    def quantizers(self) -> dict[str, nn.Module]:
        """Site name -> quantizer, in execution order."""
        return quantizers(self.network)

    def quantizers_of(self, kind: str) -> dict[str, nn.Module]:
        """The quantizers at sites of one kind ("weight", "tensor", ...)."""
        return {name: q for name, q in self.quantizers.items() if self.sites[name].kind == kind}

    def num_elements(self, kind: str) -> dict[str, int]:
        """Values per quantized site of one kind: weights, or elements of one sample's activation."""
        return {name: self.sites[name].num_elements for name in self.quantizers_of(kind)}

    def policy(self) -> BitPolicy:
        """The widths that the network has in eval mode now."""
        sites = {name: int(q.bit_width) for name, q in self.quantizers.items()}
        return BitPolicy(self.model_name, self.input_shape, sites)

    def wcr(self) -> float:
        """Weight compression rate of the present policy over the quantized weights."""
        return weight_compression_rate(self.num_elements("weight"), self.policy().sites)

    def acr(self) -> float:
        """Activation compression rate of the present policy over the quantized activations."""
        return activation_compression_rate(self.num_elements("tensor"), self.policy().sites)

    # -- hooks for methods ------------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Fill the quantizers from training images (N, C, H, W); runs once, before the first step."""

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of one batch, logged by the method."""
        loss = self.task.loss(self(images), labels)
        self.log("train/task_loss", loss)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups."""
        return [{"params": list(self.parameters())}]

    def before_step(self, images: Tensor) -> None:
        """Before the forward pass of every training batch; `step` is its index."""

    def after_optimizer_step(self) -> None:
        """After every optimizer step: clip, clamp, re-cluster."""

    def on_phase(self, phase: int) -> None:
        """A phase of the schedule begins (see the PhaseSwitch callback)."""

    def set_teacher(self, teacher: nn.Module) -> None:
        """Hold a network that guides training; it is not trained and not saved."""
        self._teacher[:] = [teacher.eval().requires_grad_(False)]

    @property
    def teacher(self) -> nn.Module | None:
        return self._teacher[0] if self._teacher else None

    # -- Lightning --------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.before_step(images)
        loss = self.training_loss(images, labels)
        self.step += 1
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.task.update(self(images), labels)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.task.compute().items()}, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.task.compute().items()})

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if not self.calibrated:  # a restored checkpoint brings the calibration with it
            self._calibrate_from(self.trainer.datamodule)
        if self.compile_network:
            # Lightning's checkpoints and hooks see the same module: compile() keeps names and parameters.
            self.network.compile(fullgraph=True)

    def _calibrate_from(self, datamodule: pl.LightningDataModule) -> None:
        if not hasattr(datamodule, "calibration_batches"):
            raise UserError("calibration needs a data module with calibration_batches(n)")
        batches = datamodule.calibration_batches(self.calibration_batches)
        self.calibrate(images.to(self.device) for images, _ in batches)
        self.calibrated.fill_(True)
        self.broadcast(self.quantizers.values())

    def broadcast(self, modules: Iterable[nn.Module]) -> None:
        """Give all ranks the parameters and buffers of rank 0: decisions taken from data are taken once."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for module in modules:
                for tensor in [*module.parameters(), *module.buffers()]:
                    torch.distributed.broadcast(tensor.data, src=0)

    def prepare_schedule(self) -> None:
        """Set `total_steps`, in training batches of this rank, from the trainer.

        Raises:
            UserError: the trainer has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("the schedule needs an end: set --trainer.max_epochs or --trainer.max_steps")
        self.total_steps = int(steps) * self.trainer.accumulate_grad_batches
        # The question made Lightning load the training data, before it knows the loader state of a checkpoint; left
        # so, a resumed epoch would begin again with its first batch.
        self.trainer.fit_loop._combined_loader = None

    def noise_key(self, site: str) -> int:
        """Key of the random stream of one site on this rank."""
        return stream_key(self.seed, self.global_rank, site)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["quantization"] = {"step": self.step, "start_weights": self.start_weights}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the checkpoint is of another network, method or setting.
        """
        own, saved = self.state_dict(), checkpoint["state_dict"]
        differing = [n for n in own.keys() | saved.keys() if n not in own or n not in saved]
        differing = sorted(differing) or [n for n in own if own[n].shape != saved[n].shape]
        if differing or "quantization" not in checkpoint:
            where = f": {differing[0]} differs" if differing else ""
            raise UserError(f"the checkpoint does not fit {type(self).__name__} on {self.model_name}{where}")
        self.step = checkpoint["quantization"]["step"]
        self.start_weights = checkpoint["quantization"]["start_weights"]
