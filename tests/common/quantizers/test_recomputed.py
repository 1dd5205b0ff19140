"""Compiled quantizers: the same numbers as eager ones, and no mask kept for the backward pass."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from common.quantizers import clip, fake_quantize, round_ste


def by_the_book(x, scale):
    return scale * round_ste(clip(x / scale, -2.0, 1.0))


def quantize(x, scale):
    return fake_quantize(x, scale, torch.tensor(0.0), torch.tensor(-2.0), torch.tensor(1.0))


def operands():
    x = torch.linspace(-1.0, 1.0, 101).reshape(1, 101).repeat(8, 1).requires_grad_()
    return x, torch.tensor(0.3, requires_grad=True)


def saved_dtypes(function):
    """Data types of the tensors of more than one element that the compiled forward pass hands on."""
    found = []

    def forward(graph_module, inputs):
        (outputs,) = next(node for node in graph_module.graph.nodes if node.op == "output").args
        found.extend(node.meta["val"] for node in outputs if node is not None)
        return make_boxed_func(graph_module)

    backend = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph_module, inputs: make_boxed_func(graph_module),
        partition_fn=min_cut_rematerialization_partition,
    )
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    x, scale = operands()
    compiled(torch.relu(x), scale).sum().backward()
    return {v.dtype for v in found if isinstance(v, torch.Tensor) and v.numel() > 1}


def test_compiled_values_and_gradients_are_the_eager_ones():
    results = []
    for function in (by_the_book, quantize, torch.compile(quantize, backend="aot_eager", fullgraph=True)):
        x, scale = operands()
        y = function(x, scale)
        (y * torch.linspace(0.0, 1.0, y.numel()).reshape(y.shape)).sum().backward()
        results.append((y.detach(), x.grad, scale.grad))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert torch.equal(actual, expected)


def test_masks_are_computed_again_instead_of_kept():
    assert saved_dtypes(quantize) == {torch.float32}  # by_the_book keeps torch.bool as well


@pytest.mark.parametrize("training", [True, False])
def test_compiles_with_and_without_gradients(training):
    compiled = torch.compile(quantize, backend="aot_eager", fullgraph=True)
    x, scale = operands()
    with torch.set_grad_enabled(training):
        assert torch.equal(compiled(x, scale), quantize(x, scale))
