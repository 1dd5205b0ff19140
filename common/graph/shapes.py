"""The shapes of all tensors of a graph from one propagation that touches nothing."""

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from common.graph.operators import is_quantizer_target
from common.graph.surgery import QuantizedConv2d, QuantizedLinear


def propagate(graph_module: torch.fx.GraphModule, example_input: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Node name -> a meta tensor (shape and dtype, no values), for nodes that give one tensor.

    Runs in eval mode on meta tensors: no data, no random numbers, no change of statistics; where a module cannot run
    on meta tensors, on the real ones. Quantizers are passed over.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    modes = [(module, module.training) for module in graph_module.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            try:
                return _run_on_meta(graph_module, inputs)
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                devices = [inputs[0].device] if inputs[0].device.type == "cuda" else []
                with torch.random.fork_rng(devices):
                    return _ShapeInterpreter(graph_module).shapes_of(inputs)
    finally:
        for module, mode in modes:
            module.training = mode


class _Propagation(nn.Module):
    """The interpreter as a module, which is what `functional_call` swaps parameters in."""

    def __init__(self, network: torch.fx.GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        return _ShapeInterpreter(self.network).shapes_of(inputs)


def _run_on_meta(graph_module: torch.fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    propagation = _Propagation(graph_module)
    state = [*propagation.named_parameters(), *propagation.named_buffers()]
    meta = {name: tensor.detach().to("meta") for name, tensor in state}
    return torch.func.functional_call(propagation, meta, tuple(x.to("meta") for x in inputs))


class _ShapeInterpreter(torch.fx.Interpreter):
    def shapes_of(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        self.shapes: dict[str, Tensor] = {}
        self.run(*inputs)
        return self.shapes

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n.name] = result.to("meta")
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_quantizer_target(target):
            return args[0]
        module = self.fetch_attr(target)
        if isinstance(module, QuantizedConv2d):
            return nn.Conv2d.forward(module, *args, **kwargs)
        if isinstance(module, QuantizedLinear):
            return nn.Linear.forward(module, *args, **kwargs)
        return super().call_module(target, args, kwargs)
