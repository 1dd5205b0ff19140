"""What every paper folder has to pass. Folders are discovered; what does not apply to one is skipped with the reason.

A folder's `configs/digits.yaml` gives the settings, `LOWEST_WIDTH` (exported by the folder) those with the fewest bits.
"""

import copy
import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import methods
from common.bit_policy import BitPolicy
from common.compression import packed_bytes
from common.packing import load_packed, read_metadata, size_account
from common.quantizers import Quantizer
from common.training.calibration import calibrate
from data import DigitsData

METHODS = Path(methods.__path__[0])
SCRIPT = Path(__file__).with_name("train_digits.py")


def folders() -> list[str]:
    """Those with code; the others hold tables only (tests/test_layout.py)."""
    return sorted(path.parent.name for path in METHODS.glob("*/__init__.py"))


class Paper:
    """A paper folder under test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.package = importlib.import_module(f"methods.{name}")
        if not (hasattr(self.package, "KIND") and hasattr(self.package, "METHOD")):
            pytest.skip(f"methods/{name} exports no KIND and METHOD")
        config = yaml.safe_load((METHODS / name / "configs" / "digits.yaml").read_text())
        self.settings = config["model"]

    def trainer(self, **settings):
        """A new module; skips what is no trainer."""
        if self.package.KIND != "trainer":
            pytest.skip(f"{self.name} is a {self.package.KIND}: it has no training loop")
        return self.package.METHOD(**self.settings | settings)

    def calibrator(self, **settings):
        """A new module; skips what is no calibrator."""
        if self.package.KIND != "calibrator":
            pytest.skip(f"{self.name} is a {self.package.KIND}")
        return self.package.METHOD(**self.settings | settings)

    def quantizing_module(self, **settings):
        module = self.calibrator(**settings) if self.package.KIND == "calibrator" else self.trainer(**settings)
        if not module.quantizers:
            pytest.skip(f"{self.name} quantizes nothing")
        return module

    def finish(self, module, fit, folder, steps=10, **options):
        """Train a few steps, or calibrate; policy and packed file go to the folder."""
        if self.package.KIND == "calibrator":
            calibrate(module, DigitsData(batch_size=16, subset=128), folder)
        else:
            fit(module, steps=steps, folder=folder, **options)


@pytest.fixture(params=folders())
def paper(request) -> Paper:
    return Paper(request.param)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def images(count=32):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def result(module):
    """State, policy and logits of fixed images."""
    with torch.no_grad():
        return module.state_dict(), module.policy().to_dict(), module.eval()(images())


def assert_same(one, other):
    assert one[1] == other[1]
    assert torch.equal(one[2], other[2])
    assert list(one[0]) == list(other[0])
    differing = [name for name in one[0] if not torch.equal(one[0][name], other[0][name])]
    assert not differing


def is_finite(module):
    return all(p.isfinite().all() for p in module.parameters()) and module.eval()(images()).isfinite().all()


def test_every_folder_with_code_is_found():
    assert {"_template", "full_precision", "hmq", "uniform"} <= set(folders())


def test_kind_is_known(paper):
    assert paper.package.KIND in ("trainer", "calibrator", "searcher")


def test_it_trains_on_digits(paper, fit):
    losses, module = Losses(), paper.trainer()
    before = module.network.get_parameter("conv1.weight").detach().clone()
    fit(module, steps=10, callbacks=[losses])
    assert len(losses.values) == 10 and all(loss == loss and abs(loss) < 1e4 for loss in losses.values)
    assert not torch.equal(module.network.get_parameter("conv1.weight"), before)
    assert is_finite(module)


def test_it_calibrates_on_digits(paper, fit, tmp_path):
    module = paper.calibrator()
    before = {name: {k: v.clone() for k, v in q.state_dict().items()} for name, q in module.quantizers.items()}
    paper.finish(module, fit, tmp_path)
    assert bool(module.calibrated) and is_finite(module)
    for name, quantizer in module.quantizers.items():
        assert any(not torch.equal(v, before[name][k]) for k, v in quantizer.state_dict().items()), name


def test_same_seed_same_result_and_policy(paper, fit, tmp_path):
    results = []
    for run in ("first", "second"):
        torch.manual_seed(len(results))  # nothing may depend on the global state
        module = paper.quantizing_module(seed=3) if paper.package.KIND == "calibrator" else paper.trainer(seed=3)
        paper.finish(module, fit, tmp_path / run)
        results.append(result(module))
    assert_same(*results)


def test_another_seed_another_result(paper, fit, tmp_path):
    results = []
    for seed in (1, 2):
        module = paper.trainer(seed=seed)
        fit(module, steps=2, folder=tmp_path / str(seed))
        results.append(result(module))
    assert not torch.equal(results[0][2], results[1][2])


class Save(Callback):
    def __init__(self, path, steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.step in self.steps:
            trainer.save_checkpoint(self.path / f"{pl_module.step}.ckpt")


def test_a_resumed_run_equals_an_uninterrupted_one(paper, fit, tmp_path):
    # 8 steps an epoch: stopped in mid-epoch in the first phase of a 60% search, at an epoch's end, in the second phase.
    stops = (3, 8, 13)
    uninterrupted = paper.trainer(seed=5)
    fit(uninterrupted, max_epochs=2, callbacks=[Save(tmp_path, stops)], folder=tmp_path / "whole")
    expected = copy.deepcopy(result(uninterrupted))
    for stop in stops:
        resumed = paper.trainer(seed=5)
        fit(resumed, max_epochs=2, resume=tmp_path / f"{stop}.ckpt", folder=tmp_path / f"from{stop}")
        assert resumed.step == 16
        assert_same(result(resumed), expected)


def test_no_nan_at_the_lowest_width(paper, fit, tmp_path):
    module = paper.quantizing_module()
    if not hasattr(paper.package, "LOWEST_WIDTH"):
        pytest.skip(f"{paper.name} declares no LOWEST_WIDTH")
    losses = Losses()
    lowest = paper.package.LOWEST_WIDTH
    module = paper.quantizing_module(**lowest)
    paper.finish(module, fit, tmp_path, steps=8, callbacks=[losses])
    declared = [width for name, widths in lowest.items() if "bit_width" in name for width in np.ravel(widths)]
    assert min(module.policy().sites.values()) == min(declared)
    assert all(loss == loss for loss in losses.values) and is_finite(module)


def test_bfloat16_autocast(paper, fit):
    losses, module = Losses(), paper.trainer()
    fit(module, steps=4, precision="bf16-mixed", callbacks=[losses])
    assert all(loss == loss for loss in losses.values) and is_finite(module)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


class TinyNet(nn.Module):
    """What compiles quickly: 2 convolutions with batch norm and ReLU, a linear layer."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


class Backend(Callback):
    """Compiles with a counting backend instead of inductor, and counts what each batch compiled."""

    def __init__(self, backend="aot_eager"):
        self.counter, self.after_batch = CompileCounterWithBackend(backend), []

    def on_train_start(self, trainer, pl_module):
        torch._dynamo.reset()
        pl_module.network.compile(backend=self.counter, fullgraph=True)  # a graph break is an error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after_batch.append(self.counter.frame_count)


class ChangeWidths(Callback):
    """Other targets, hence other activation widths, before each batch of the search."""

    targets = (4, 5, 6, 8, 10, 12, 16, 20, 25, 32)

    def __init__(self):
        self.seen = set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.schedule.phase(pl_module.step) == 1:
            pl_module.set_targets(4.0, self.targets[pl_module.step % 10])
            self.seen.add(tuple(pl_module.policy().sites.values()))


def test_no_graph_breaks_and_no_recompilation_when_widths_change(paper, fit, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiny_net", types.ModuleType("tiny_net"))
    sys.modules["tiny_net"].TinyNet = TinyNet
    tiny = {"model": "tiny_net.TinyNet", "num_classes": 10, "input_shape": [1, 8, 8]}
    module = paper.trainer(**tiny)
    backend, callbacks = Backend(), []
    if hasattr(module, "set_targets"):
        callbacks.append(ChangeWidths())
    fit(module, steps=20, callbacks=[*callbacks, backend])
    assert backend.after_batch[0] == 1
    switched = 12 if hasattr(module, "schedule") else 20
    assert backend.after_batch[switched - 1] <= 2  # at most one recompilation
    assert backend.after_batch[-1] <= backend.after_batch[switched - 1] + 1  # and one for the second phase
    if callbacks:
        assert len(callbacks[0].seen) >= 5


def test_quantizers_policy_packed_file_and_report_agree(paper, fit, tmp_path):
    module = paper.quantizing_module()
    paper.finish(module, fit, tmp_path)
    policy = module.policy()
    policy.validate(module.model_name, set(module.sites))
    assert BitPolicy.load(tmp_path / "policy.json") == policy
    metadata = read_metadata(tmp_path / "packed.safetensors")
    assert metadata["policy"] == policy
    for site, quantizer in module.quantizers.items():
        assert int(quantizer.bit_width) == policy.sites[site]
        encoding = metadata["encodings"][site]
        if encoding["kind"] == "affine":
            assert set(encoding["bits"]) == {policy.sites[site]}  # one entry, or one per channel
    weights = module.num_elements("weight")
    account = size_account(tmp_path / "packed.safetensors")
    assert account["codes_bytes"] == sum(packed_bytes(n, policy.sites[site]) for site, n in weights.items())
    floats = module.num_float_weights() if hasattr(module, "num_float_weights") else 0
    assert module.wcr() == 4 * (sum(weights.values()) + floats) / (account["codes_bytes"] + 4 * floats)
    last = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])
    assert (last["bit_widths"], last["policy/wcr"], last["policy/acr"]) == (policy.sites, module.wcr(), module.acr())


def test_the_packed_file_gives_the_same_logits(paper, fit, tmp_path):
    module = paper.quantizing_module()
    paper.finish(module, fit, tmp_path)
    loaded, _ = load_packed(tmp_path / "packed.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(images(200)), module.eval()(images(200)))
    account = size_account(tmp_path / "packed.safetensors")
    parts = [account[f"{part}_bytes"] for part in ("codes", "tables", "floats", "header")]
    assert sum(parts) == account["file_bytes"] == (tmp_path / "packed.safetensors").stat().st_size


def test_trained_quantizers_keep_their_contract(paper, fit, tmp_path):
    module = paper.quantizing_module()
    paper.finish(module, fit, tmp_path)
    module.eval()
    state = module.network.state_dict()
    x = torch.linspace(-20, 20, 20_001)
    with torch.no_grad():
        for site, quantizer in module.quantizers.items():
            if not isinstance(quantizer, Quantizer):
                continue
            rows = x.repeat(getattr(quantizer, "channels", None) or 1, 1)  # one for each channel with a grid of its own
            y = quantizer(rows)
            assert torch.equal(quantizer(rows), y) and torch.equal(quantizer(y), y)
            assert max(row.unique().numel() for row in y + 0.0) <= 2 ** int(quantizer.bit_width)
            assert (y.diff() >= 0).all()
            if site in state:
                weight = state[site]
                assert torch.equal(quantizer.encode(weight).decode() + 0.0, quantizer(weight) + 0.0)


# -- in processes of their own, and compiled: slow -------------------------------------------------------------------


def launch(folder, paper, *options):
    command = [sys.executable, str(SCRIPT), str(folder), paper.name, json.dumps(paper.settings), *options]
    environment = os.environ | {"PYTHONPATH": str(METHODS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=METHODS.parent, timeout=600, env=environment)


@pytest.mark.slow
def test_two_ranks_agree(paper, tmp_path):
    paper.trainer()
    run = launch(tmp_path, paper, "--epochs", "2", "--devices", "2")
    assert run.returncode == 0, run.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"final-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["policy"] == second["policy"] and first["step"] == second["step"] == 8
    local = ("running_mean", "running_var")  # batch statistics are those of a rank's own images
    names = [name for name in first["state"] if not name.endswith(local)]
    assert not [name for name in names if not torch.equal(first["state"][name], second["state"][name])]


@pytest.mark.slow
def test_compiled_by_inductor_it_trains_and_packs(paper, fit, tmp_path):
    losses, module = Losses(), paper.trainer(compile_network=True)
    fit(module, steps=10, callbacks=[losses])
    eager = paper.trainer()
    reference = Losses()
    fit(eager, steps=10, callbacks=[reference], folder=tmp_path / "eager")
    assert losses.values[:3] == pytest.approx(reference.values[:3], rel=1e-2)
    if module.quantizers:
        loaded, _ = load_packed(tmp_path / "packed.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(loaded(images()), module.eval()(images()), atol=1e-3, rtol=1e-3)
