"""The base of every trainer: network, policy, calibration, hooks, checkpoints."""

import pytest
import torch
from torch import nn

from common.bit_policy import BitPolicy
from common.errors import UserError
from common.models import build_model
from common.quantizers import SymmetricQuantizer
from common.training import QuantizedModule


class Small(QuantizedModule):
    """digits_net with 4 bits at its second layer, 3 bits at its last and 2 bits at the first activation."""

    def __init__(self, seed=0, weights=None, compile_network=False, calibration_batches=2):
        super().__init__(
            seed=seed, weights=weights, compile_network=compile_network, calibration_batches=calibration_batches
        )
        self.calls = []
        self.insert(
            {
                "block.conv1.weight": SymmetricQuantizer(4),
                "linear.weight": SymmetricQuantizer(3),
                "relu1.output": SymmetricQuantizer(2, signed=False),
            }
        )

    def calibrate(self, batches):
        self.calls.append(("calibrate", [tuple(images.shape) for images in batches]))
        for quantizer in self.quantizers.values():
            quantizer.calibrate(torch.rand(50), 1.0)

    def before_step(self, images):
        self.calls.append(("before", self.step))

    def after_optimizer_step(self):
        self.calls.append(("after", self.step))

    def configure_optimizers(self):
        self.prepare_schedule()
        return torch.optim.SGD(self.parameter_groups(), lr=0.01)


def test_quantizers_are_listed_in_execution_order_and_by_kind():
    module = Small()
    assert list(module.quantizers) == ["relu1.output", "block.conv1.weight", "linear.weight"]
    assert list(module.quantizers_of("weight")) == ["block.conv1.weight", "linear.weight"]
    assert module.num_elements("weight") == {"block.conv1.weight": 2304, "linear.weight": 320}
    assert module.num_elements("tensor") == {"relu1.output": 1024}


def test_policy_and_rates_are_those_of_the_quantizers():
    module = Small()
    sites = {"relu1.output": 2, "block.conv1.weight": 4, "linear.weight": 3}
    assert module.policy() == BitPolicy("digits_net", (1, 8, 8), sites)
    assert module.wcr() == 4 * (2304 + 320) / (1152 + 120)
    assert module.acr() == 16.0


def test_the_seed_decides_the_initial_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = Small(seed=1), Small(seed=1), Small(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert a.start_weights == b.start_weights != c.start_weights
    assert torch.equal(a.network.linear.weight, b.network.linear.weight)


def test_start_weights_come_from_the_file(tmp_path):
    source = build_model("digits_net")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    module = Small(weights=str(tmp_path / "weights.pth"))
    assert torch.equal(module.network.conv1.weight, source.conv1.weight)


def test_hooks_run_once_a_step_in_order(fit):
    module = Small()
    fit(module, steps=3)
    assert module.calls[0] == ("calibrate", [(16, 1, 8, 8)] * 2)
    assert module.calls[1:] == [("before", 0), ("after", 1), ("before", 1), ("after", 2), ("before", 2), ("after", 3)]
    assert module.step == module.total_steps == 3


def test_minus_one_calibrates_on_every_training_image(fit):
    module = Small(calibration_batches=-1)
    fit(module, steps=1)
    assert sum(shape[0] for shape in module.calls[0][1]) == 128


def test_accumulated_gradients_count_every_batch(fit):
    module = Small()
    fit(module, steps=2, accumulate_grad_batches=3)
    assert module.step == module.total_steps == 6
    assert [call for call in module.calls if call[0] == "after"] == [("after", 3), ("after", 6)]


def test_a_run_without_an_end_is_refused(fit):
    with pytest.raises(UserError, match="the schedule needs an end"):
        fit(Small(), max_epochs=-1)


def test_data_that_cannot_calibrate_are_refused(fit, monkeypatch):
    from data import DigitsData

    monkeypatch.delattr("data.tensor_data.TensorDataModule.calibration_batches")
    assert not hasattr(DigitsData, "calibration_batches")
    with pytest.raises(UserError, match="calibration needs a data module"):
        fit(Small(), steps=1)


def test_a_resumed_run_neither_calibrates_again_nor_counts_from_zero(fit, tmp_path):
    module = Small()
    fit(module, steps=3).save_checkpoint(tmp_path / "three.ckpt")
    resumed = Small(seed=9)
    fit(resumed, steps=5, resume=tmp_path / "three.ckpt")
    assert [call for call in resumed.calls if call[0] == "before"] == [("before", 3), ("before", 4)]
    assert not [call for call in resumed.calls if call[0] == "calibrate"]
    assert resumed.start_weights == module.start_weights


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "origin"])
def test_a_checkpoint_that_does_not_fit_is_one_line(fit, tmp_path, change):
    path = tmp_path / "three.ckpt"
    fit(Small(), steps=1).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    if change == "missing":
        del checkpoint["state_dict"]["network.conv1.weight"]
    elif change == "unknown":
        checkpoint["state_dict"]["network.conv9.weight"] = torch.zeros(1)
    elif change == "shape":
        checkpoint["state_dict"]["network.conv1.weight"] = torch.zeros(3)
    else:
        del checkpoint["quantization"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="the checkpoint does not fit Small on digits_net") as caught:
        fit(Small(), steps=2, resume=path)
    assert "\n" not in str(caught.value)


def test_a_teacher_is_neither_trained_nor_saved(fit):
    module = Small()
    teacher = build_model("digits_net").train()
    names = set(module.state_dict())
    module.set_teacher(teacher)
    assert module.teacher is teacher and not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert set(module.state_dict()) == names
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in module.parameters()}


def test_validation_logs_the_top1_of_the_test_images(fit):
    module = Small()
    trainer = fit(module, max_epochs=1, limit_val_batches=1.0)
    metrics = trainer.validate(module, datamodule=trainer.datamodule, verbose=False)[0]
    images, labels = next(iter(trainer.datamodule.test_dataloader()))
    with torch.no_grad():
        correct = (module.eval()(images).argmax(1) == labels).sum().item()
    assert len(images) == 360
    assert metrics["val/top1"] == pytest.approx(100 * correct / 360, abs=1e-3)


def test_channels_last_changes_the_layout_only(fit):
    logits = []
    for channels_last in (False, True):
        module = QuantizedModule(channels_last=channels_last, calibration_batches=1)
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), lr=0.01)
        fit(module, steps=2)
        logits.append(module.eval()(torch.ones(2, 1, 8, 8)))
        expected = torch.channels_last if channels_last else torch.contiguous_format
        assert module.network.conv3.weight.is_contiguous(memory_format=expected)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_noise_keys_differ_between_sites_seeds_and_modules():
    module = Small(seed=3)
    assert module.noise_key("a") == Small(seed=3).noise_key("a")
    assert len({module.noise_key("a"), module.noise_key("b"), Small(seed=4).noise_key("a")}) == 3


def test_an_unknown_site_is_refused():
    module = QuantizedModule()
    with pytest.raises(UserError, match=r"unknown site conv9\.weight"):
        module.insert({"conv9.weight": nn.Identity()})


@pytest.mark.parametrize("given", [{}, {"num_classes": 10}, {"input_shape": (1, 8, 8)}])
def test_a_class_path_needs_the_number_of_classes_and_the_shape_of_its_images(given):
    with pytest.raises(UserError, match="DigitsNet does not say its num_classes and input_shape: set both"):
        QuantizedModule(model="common.models.digits_net.DigitsNet", **given)


def test_a_class_path_trains_like_the_name():
    module = QuantizedModule(
        model="common.models.digits_net.DigitsNet", num_classes=10, input_shape=(1, 8, 8), seed=4
    )
    assert module.start_weights == QuantizedModule(seed=4).start_weights
