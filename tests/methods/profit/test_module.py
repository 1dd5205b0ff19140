"""PROFIT's own: widths that fall, weights that stay, the running instability, teacher and averaged parameters."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

from common.errors import UserError
from common.packing import load_packed
from methods.profit import PROFIT

QUICK = {
    "learning_rate": 0.05,
    "weight_decay": 0.1,
    "quantizer_learning_rate": 1.0,
    "progressive_bit_widths": [8],
    "epochs": {"full_precision": 2, "norms": 1, "width": 2, "instability": 2, "phase": 2},
}
# 18 steps: float 0-1, activations at 8 bits 2-5 and at 4 6-9, weights at 8 bits 10-13 and at 4 from 14 on;
# there batch norm 14, instability 15-16, phases 17-18, 19-20, 21-22, batch norm 23.
STEPS = 24
NORMS = {2, 5, 6, 9, 10, 13, 14, 23}
WEIGHTS = ["conv1", "block.conv1", "block.conv2", "conv2", "conv3", "linear"]


class Watch(Callback):
    """Parameters and widths around every optimizer step."""

    def __init__(self):
        self.before, self.after, self.widths = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append(state(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(state(pl_module))
        quantizers = pl_module.quantizers
        self.widths.append((int(quantizers["conv2.weight"].bit_width), int(quantizers["conv2.input"].bit_width)))

    def moved(self, step):
        """Parameters that a step changed."""
        before, after = self.before[step], self.after[step]
        return {name for name in before if not torch.equal(before[name], after[name])}


def state(module):
    return {name: p.detach().clone() for name, p in module.network.named_parameters()}


@pytest.fixture
def watched(fit):
    watch, module = Watch(), PROFIT(**QUICK)
    fit(module, steps=STEPS, callbacks=[watch])
    return watch, module


def test_widths_fall_first_of_activations_then_of_weights(watched):
    watch, module = watched
    assert watch.widths == [(32, 32)] * 2 + [(32, 8)] * 4 + [(32, 4)] * 4 + [(8, 4)] * 4 + [(4, 4)] * 10
    widths = module.policy().sites
    assert widths["conv1.weight"] == widths["linear.weight"] == widths["linear.input"] == 8


def test_batch_norm_alone_moves_in_its_stages(watched):
    watch, _ = watched
    norms = {
        f"{name}.{kind}" for name in ("bn1", "block.bn1", "block.bn2", "bn2", "bn3") for kind in ("weight", "bias")
    }
    for step in range(STEPS):
        assert watch.moved(step) == norms if step in NORMS else watch.moved(step) > norms


@pytest.mark.parametrize("optimizer", ["sgd", "radam"])
def test_frozen_weights_never_move(fit, optimizer):
    watch, module = Watch(), PROFIT(**QUICK, optimizer=optimizer)
    fit(module, steps=STEPS, callbacks=[watch])
    order = module.frozen_sites(1.0)
    for steps, count in (((17, 18), 0), ((19, 20), 2), ((21, 22), 4)):
        still = {part for site in order[:count] for part in (site, *own_parameters(site))}
        for step in steps:
            moved = watch.moved(step)
            assert not moved & still
            assert moved >= set(order[count:]) and "bn1.weight" in moved


def own_parameters(site):
    return f"{site}_quantizer.transform.raw_clip", f"{site}_quantizer.grid.raw_scale"


def test_the_most_unstable_layers_freeze_first():
    module = PROFIT()
    module.instability.copy_(torch.tensor([0.1, 0.5, 0.2, 0.9, 0.0, 0.3]))
    assert module.frozen_sites(1 / 3) == ["conv2.weight", "block.conv1.weight"]
    assert module.frozen_sites(2 / 3) == ["conv2.weight", "block.conv1.weight", "linear.weight", "block.conv2.weight"]
    assert module.frozen_sites(0.0) == []


def test_running_instability_ignores_what_is_above_1(fit, monkeypatch):
    samples = iter([torch.tensor([0.5, 1.5, 1.0, 0.0, 0.2, 0.0]), torch.tensor([0.25, 0.5, 2.0, 0.0, 0.2, 0.0])])
    monkeypatch.setattr("methods.profit.module.weight_divergences", lambda *arguments: next(samples))
    module = PROFIT(**QUICK)
    fit(module, steps=STEPS)
    expected = [0.001 * 0.999 * 0.5 + 0.001 * 0.25, 0.001 * 0.5, 0.001, 0.0, 0.001 * 0.999 * 0.2 + 0.001 * 0.2, 0.0]
    assert module.instability.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_instability_is_measured_in_training(watched):
    _, module = watched
    assert (module.instability > 0).any() and (module.instability < 0.001 * 2).all()


def test_quantizers_start_when_they_are_switched_on():
    module = PROFIT()
    images = torch.randn(16, 1, 8, 8)
    module.set_bit_widths(32, 32, images)
    assert {int(q.bit_width) for q in module.quantizers.values()} == {32}
    with torch.no_grad():
        module.network.conv2.weight.fill_(0.5)
    module.set_bit_widths(32, 5, images)
    module.set_bit_widths(8, 5, images)
    clip = module.quantizers["conv2.weight"].grid.output_scale()
    assert clip.item() == pytest.approx(0.45)  # 0.9 max |w|
    with torch.no_grad():
        module.network.conv2.weight.fill_(1.0)
    module.set_bit_widths(4, 4, images)
    assert torch.equal(module.quantizers["conv2.weight"].grid.output_scale(), clip)  # a change of width keeps it


def test_a_quantizer_that_is_off_hands_on_value_and_gradient():
    from methods.profit.quantizer import GradualDuQ

    quantizer = GradualDuQ(4)
    quantizer.set_bit_width(32)
    x = torch.randn(50, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert torch.equal(y, x) and torch.equal(x.grad, torch.ones(50))
    assert all(not p.grad.any() for p in quantizer.parameters())


def test_the_teacher_is_the_float_network_and_stays(fit):
    module = PROFIT(**QUICK, teacher="self")
    assert not any("quantizer" in name for name, _ in module.teacher.named_modules())
    before = {name: p.clone() for name, p in module.teacher.named_parameters()}
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    module.log = lambda *arguments: None
    module.eval()
    with torch.no_grad():
        logits, taught = module(images), module.teacher(images).softmax(1)
        soft = -(taught * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(module.training_loss(images, labels), module.task.loss(logits, labels) + soft)
    del module.log
    fit(module, steps=3)
    assert all(torch.equal(p, before[name]) for name, p in module.teacher.named_parameters())
    assert not any("teacher" in name for name in module.state_dict())


def test_the_run_ends_with_averaged_parameters(fit, tmp_path):
    watch, module = Watch(), PROFIT(**QUICK, ema_decay=0.9)
    fit(module, steps=STEPS, callbacks=[watch])
    for name, parameter in module.network.named_parameters():
        average = watch.after[0][name]
        for after in watch.after[1:]:
            average = 0.9 * average + 0.1 * after[name]
        torch.testing.assert_close(parameter.detach(), average, rtol=1e-4, atol=1e-5)
    assert module.policy().sites["conv2.weight"] == 4
    loaded, _ = load_packed(tmp_path / "packed.safetensors")
    x = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), module.eval()(x))


def test_resumed_with_averaging(fit, tmp_path):
    class Save(Checkpoint):  # Lightning puts those behind the averaging
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if pl_module.step == 11:
                trainer.save_checkpoint(tmp_path / "11.ckpt")

    whole, resumed = (PROFIT(**QUICK, ema_decay=0.9) for _ in range(2))
    fit(whole, max_epochs=3, callbacks=[Save()], folder=tmp_path / "whole", enable_checkpointing=True)
    fit(resumed, max_epochs=3, resume=tmp_path / "11.ckpt", folder=tmp_path / "resumed")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"start_range": "large"}, "start_range must be paper or fitted"),
        ({"teacher": "resnet101"}, "teacher must be none or self"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"instability_every_n_steps": 0}, "instability_every_n_steps must be at least 1"),
        ({"epochs": {"warm_up": 3}}, "epochs: .*warm_up"),
        ({"epochs": {"phase": 0}}, "epochs: epochs must not be negative"),
        ({"progressive_bit_widths": [9]}, r"progressive_bit_widths must be in \[2, 8\], got 9"),
        ({"weight_bit_width": 1}, "PROFIT, layer block.conv1: bit_width of DuQGrid"),
    ],
)
def test_settings_that_do_not_exist_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        PROFIT(**settings)
    assert "\n" not in str(caught.value)
