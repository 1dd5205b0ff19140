"""Tracing that does not change the network.

`torch.fx.symbolic_trace` runs a forward pass on stand-ins and writes down what happens. Whatever a module decides in
Python while that runs is decided for ever: `if self.training` in a module that is traced through freezes the mode of
that moment (timm's BatchNormAct2d then normalises with the running statistics in training, without a word). Here

- modules whose own forward reads `self.training` and that hold no other modules (dropout, stochastic depth, a hand-made
  batch norm) stay whole;
- a batch norm with an activation inside (timm) becomes a plain batch norm and the activation, two nodes;
- the network is traced twice, once in each mode. The two graphs must be equal; a dropout function that differs only
  in its `training` argument becomes a dropout module, any other difference is an error;
- in-place operations are made out of place (common/graph/inplace.py);
- the result is run once beside the original.
"""

import copy
import inspect
from types import CodeType
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UserError
from common.graph.inplace import make_out_of_place
from common.graph.sharing import share_state

_REGISTRIES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")  # of every nn.Module

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_DROPOUT_MODULES: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def trace(network: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """The network as a graph: same outputs, running statistics and gradients, in train and in eval mode.

    Args:
        network: any module that torch.fx can follow. It is not modified; the graph shares its parameters, buffers and
            leaf modules (so `.train()` on one is seen by the other: use one of the two).
        example_input: one input batch (N, ...) or a tuple of inputs, on the network's device. It is run once through
            network and graph in eval mode to compare the two; running statistics and random state stay untouched.
    Returns:
        a GraphModule with the state_dict keys of the network, in the same order and mode.
    Raises:
        UserError: where the forward pass cannot be written down as one graph that serves both modes.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    _refuse_unknown_batch_norms(network)
    graph, constants = _trace_in_mode(network, inputs, training=True)
    eval_graph, eval_constants = _trace_in_mode(network, inputs, training=False)
    follows_mode = _mode_dependent_dropouts(graph, eval_graph)
    if differing := [name for name in constants if not torch.equal(constants[name], eval_constants[name])]:
        raise UserError(
            f"cannot trace {type(network).__name__}: constant {differing[0]} differs between train and eval"
        )

    root = _mirror(network, {})
    for name, value in constants.items():
        root.register_buffer(name, value, persistent=False)
    for node in follows_mode:
        _dropout_function_to_module(node, root)
    graph_module = TracedNetwork(root, graph, class_name=type(network).__name__)
    # GraphModule keeps only what the graph calls, in the order of calls; state_dict has all, in the network's order.
    for registry in _REGISTRIES:
        graph_module.__dict__[registry] = root.__dict__[registry]
    make_out_of_place(graph_module)
    _compare_in_eval_mode(network, graph_module, inputs)
    return graph_module


class TracedNetwork(torch.fx.GraphModule):
    """A GraphModule whose deep copies keep every name: modules that are not called, second names of one module."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "TracedNetwork":
        duplicate = super().__deepcopy__(memo)
        for registry in _REGISTRIES:
            duplicate.__dict__[registry] = copy.deepcopy(self.__dict__[registry], memo)
        return duplicate


class _Tracer(torch.fx.Tracer):
    """Records where it was when something failed; splits fused batch norms; keeps mode-dependent modules whole."""

    # Arithmetic on a buffer belongs into the graph; evaluated while tracing it would be frozen, or change the buffer.
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            if _is_fused_batch_norm(m):
                path = self.path_of_module(m)
                proxy = self.create_proxy("call_module", path, args, kwargs)
                for name in _fused_children(m):
                    proxy = self.create_proxy("call_module", f"{path}.{name}", (proxy,), {})
                return proxy
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = self._describe(m)
            raise

    def _describe(self, m: nn.Module) -> str:
        try:
            return f"{self.path_of_module(m)} ({type(m).__name__})"
        except NameError:
            return type(m).__name__


def is_leaf(module: nn.Module) -> bool:
    """Whether tracing keeps the module whole, as one node.

    Leaves are: modules whose running forward is torch.nn's own (user subclasses included), convolutions and linear
    layers even with a forward of their own, and modules without children whose forward reads `self.training`.
    """
    if isinstance(module, _CONTAINERS):
        return False
    if _is_fused_batch_norm(module):
        return True
    if type(module).forward.__module__.startswith("torch.nn"):
        return True
    if any(True for _ in module.children()):
        return False
    return isinstance(module, (nn.Conv2d, nn.Linear)) or _reads_training(module)


def _reads_training(module: nn.Module) -> bool:
    """Whether the code of the module's forward names an attribute `training`, nested functions included."""

    def names(code: CodeType) -> set[str]:
        found = set(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                found |= names(constant)
        return found

    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in names(code)


def _torch_base(module: nn.Module) -> type[nn.Module]:
    return next(cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn"))


def _is_fused_batch_norm(module: nn.Module) -> bool:
    """A subclass of a torch.nn batch norm that applies children called `drop` and `act` after normalising (timm)."""
    return (
        isinstance(module, _BatchNorm)
        and not type(module).forward.__module__.startswith("torch.nn")
        and {"act"} <= set(module._modules) <= {"drop", "act"}
    )


def _fused_children(module: nn.Module) -> list[str]:
    return [name for name in ("drop", "act") if not isinstance(module._modules.get(name), (nn.Identity, type(None)))]


def _refuse_unknown_batch_norms(network: nn.Module) -> None:
    """Every subclass of a batch norm that has children must do exactly what its split form does."""
    for path, module in network.named_modules():
        if _is_fused_batch_norm(module) and not isinstance(module, nn.SyncBatchNorm):
            if not _split_is_equal(module):
                raise UserError(
                    f"cannot trace {path} ({type(module).__name__}): it does something else than batch norm, drop and "
                    f"act in a row; write it with a plain {_torch_base(module).__name__}"
                )
        elif (
            isinstance(module, _BatchNorm)
            and not type(module).forward.__module__.startswith("torch.nn")
            and any(True for _ in module.children())
        ):
            raise UserError(
                f"cannot trace {path} ({type(module).__name__}): a batch norm with modules inside; "
                f"write it with a plain {_torch_base(module).__name__} followed by these modules"
            )


def _split_is_equal(module: nn.Module) -> bool:
    """Run a copy of the fused module and its split form on noise, in both modes: outputs and statistics are equal."""
    reference = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.empty(0))
    spatial = {nn.BatchNorm1d: (4,), nn.BatchNorm2d: (4, 4), nn.BatchNorm3d: (2, 2, 2)}.get(_torch_base(module), (4, 4))
    with torch.random.fork_rng(_cuda_devices(reference)), torch.no_grad():
        for training in (True, False):
            fused, split = copy.deepcopy(module), _split(copy.deepcopy(module))
            torch.manual_seed(0)
            x = torch.randn(2, module.num_features, *spatial, device=reference.device, dtype=reference.dtype)
            outputs = []
            for candidate in (fused, split):
                candidate.train(training)
                torch.manual_seed(1)
                y = candidate(x.clone())
                if candidate is split:
                    for name in _fused_children(module):
                        y = split._modules[name](y)
                outputs.append(y)
            if not torch.equal(*outputs):
                return False
            if not all(torch.equal(a, b) for a, b in zip(fused.buffers(), split.buffers(), strict=True)):
                return False
    return True


def _split(module: nn.Module) -> nn.Module:
    """The batch norm alone; drop and act stay its children (their state_dict keys), called by nodes of their own."""
    return share_state(module, _torch_base(module))


def _cuda_devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.device.type == "cuda" else []


def _trace_in_mode(
    network: nn.Module, inputs: tuple[Tensor, ...], training: bool
) -> tuple[torch.fx.Graph, dict[str, Tensor]]:
    """The graph, and the constant tensors that the forward makes out of Python numbers (name -> value)."""
    modes = [(module, module.training) for module in network.modules()]
    attributes = set(network.__dict__)
    random_state = torch.get_rng_state()
    tracer = _Tracer()
    try:
        for module, _ in modes:
            module.training = training
        graph = tracer.trace(network, concrete_args=_unused_defaults(network, len(inputs)))
    except UserError:
        raise
    except Exception as error:
        where = tracer.failed_in or type(network).__name__
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot trace {where}: {reason}; rewrite this forward without Python decisions on tensor values, "
            "or put the part into a torch.nn module"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
        drew_random_numbers = not torch.equal(random_state, torch.get_rng_state())
        torch.set_rng_state(random_state)
        # The tracer leaves constants behind as attributes of the network: not ours to keep there.
        constants = {name: network.__dict__.pop(name) for name in set(network.__dict__) - attributes}
    if drew_random_numbers:
        raise UserError(
            f"cannot trace {type(network).__name__}: its forward draws random numbers that the graph would freeze; "
            "draw them in a module of its own that reads self.training"
        )
    return graph, constants


def _unused_defaults(network: nn.Module, num_inputs: int) -> dict[str, Any] | None:
    """Arguments of forward that the example does not give: fixed at their defaults."""
    parameters = inspect.signature(network.forward).parameters.values()
    positional = [p for p in parameters if p.kind is not p.VAR_POSITIONAL and p.kind is not p.VAR_KEYWORD]
    unused = {p.name: p.default for p in positional[num_inputs:]}
    if missing := [name for name, default in unused.items() if default is inspect.Parameter.empty]:
        raise UserError(f"the example input gives no value for {', '.join(missing)} of {type(network).__name__}")
    return unused or None


def _mode_dependent_dropouts(graph: torch.fx.Graph, eval_graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """Nodes of the first graph whose `training` argument follows the mode; UserError where more than that differs."""

    def plain(value: Any) -> Any:
        return torch.fx.node.map_arg(value, lambda node: f"%{node.name}")

    nodes, eval_nodes = list(graph.nodes), list(eval_graph.nodes)
    dropouts = []
    for node, other in zip(nodes, eval_nodes, strict=False):
        same = (node.op, node.target, node.name) == (other.op, other.target, other.name)
        if same and plain(node.args) == plain(other.args) and plain(node.kwargs) == plain(other.kwargs):
            continue
        mode = node.kwargs.get("training"), other.kwargs.get("training")
        if same and node.target in _DROPOUT_MODULES and mode == (True, False):
            dropouts.append(node)
            continue
        raise UserError(
            f"cannot trace node {node.name}: it differs between train and eval mode ({_where(node)}); "
            "put the part that reads self.training into a module of its own (nn.BatchNorm2d, nn.Dropout, ...)"
        )
    if len(nodes) != len(eval_nodes):
        node = max(nodes, eval_nodes, key=len)[min(len(nodes), len(eval_nodes))]
        raise UserError(f"cannot trace node {node.name}: it runs in one mode only ({_where(node)})")
    return dropouts


def _where(node: torch.fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return f"{target} in {stack[-1][0]}" if stack else str(target)


def _dropout_function_to_module(node: torch.fx.Node, root: nn.Module) -> None:
    settings = {key: node.kwargs[key] for key in ("p", "inplace") if key in node.kwargs}
    name = node.name
    while hasattr(root, name):
        name += "_"
    module = _DROPOUT_MODULES[node.target](**settings)
    module.training = root.training
    root.add_module(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}


def _mirror(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    """Containers as empty shells with the same names, leaves as they are, fused batch norms split."""
    if module in seen:
        return seen[module]
    if _is_fused_batch_norm(module):
        mirrored = _split(module)
    elif seen and is_leaf(module):
        mirrored = module
    else:
        mirrored = seen[module] = nn.Module()
        mirrored.training = module.training
        mirrored._parameters = module._parameters.copy()
        mirrored._buffers = module._buffers.copy()
        mirrored._non_persistent_buffers_set = module._non_persistent_buffers_set.copy()
        for name, child in module._modules.items():
            mirrored._modules[name] = None if child is None else _mirror(child, seen)
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor):  # a plain tensor attribute; as a buffer it follows .to(device)
                mirrored.register_buffer(name, value, persistent=False)
    seen[module] = mirrored
    return mirrored


def _compare_in_eval_mode(network: nn.Module, graph_module: torch.fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """One run each on the example; UserError if the graph's outputs are not the network's. Meta tensors have none."""
    if any(tensor.is_meta for tensor in (*inputs, *network.parameters(), *network.buffers())):
        return
    modes = [(module, module.training) for module in (*network.modules(), *graph_module.modules())]
    outputs = []
    try:
        for candidate in (network, graph_module):
            candidate.eval()
            with torch.no_grad(), torch.random.fork_rng(_cuda_devices(inputs[0])):
                torch.manual_seed(0)
                outputs.append(candidate(*(x.clone() for x in inputs)))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{type(network).__name__} does not run on the example input: {reason}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    flat, graph_flat = (torch.utils._pytree.tree_leaves(output) for output in outputs)
    for a, b in zip(flat, graph_flat, strict=True):
        if isinstance(a, Tensor) and not torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise UserError(
                f"cannot trace {type(network).__name__}: the traced graph gives other outputs than the network; "
                "its forward depends on something that is not in its inputs, parameters or buffers, or an in-place "
                "operation (x += y) changes a tensor that is read later under another name"
            )
