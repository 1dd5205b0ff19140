"""What a graph node does, in a dozen words: the one place that knows modules, functions and methods by name."""

import operator
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

QUANTIZERS = "activation_quantizers"  # the module that holds the quantizers of node outputs

# The word for a node whose output holds values of its input unchanged (or dropped): it carries its input's site.
CARRIES = "carries"
# No tensor, or none that depends on the network's input.
CONSTANT = "constant"

ACTIVATIONS = frozenset(
    {
        "relu", "relu6", "silu", "hardswish", "gelu", "sigmoid", "hardsigmoid", "tanh", "leaky_relu", "elu", "mish",
        "hardtanh", "clamp", "softplus", "prelu",
    }
)  # fmt: skip
LINEAR = frozenset({"conv", "linear"})

# Subclasses before their bases (ReLU6 is a Hardtanh).
_MODULES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv"),
    ((nn.Linear,), "linear"),
    ((nn.modules.batchnorm._BatchNorm,), "batch_norm"),
    ((nn.ReLU6,), "relu6"),
    ((nn.ReLU,), "relu"),
    ((nn.SiLU,), "silu"),
    ((nn.Hardswish,), "hardswish"),
    ((nn.GELU,), "gelu"),
    ((nn.Sigmoid,), "sigmoid"),
    ((nn.Hardsigmoid,), "hardsigmoid"),
    ((nn.Tanh,), "tanh"),
    ((nn.LeakyReLU, nn.RReLU), "leaky_relu"),
    ((nn.ELU, nn.CELU, nn.SELU), "elu"),
    ((nn.Mish,), "mish"),
    ((nn.Hardtanh,), "hardtanh"),
    ((nn.Softplus,), "softplus"),
    ((nn.PReLU,), "prelu"),
    ((nn.Softmax,), "softmax"),
    (
        (
            nn.modules.pooling._MaxPoolNd,
            nn.modules.pooling._AvgPoolNd,
            nn.modules.pooling._AdaptiveAvgPoolNd,
            nn.modules.pooling._AdaptiveMaxPoolNd,
        ),
        "pool",
    ),
    ((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), "pad"),
    ((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d), "pad"),
    ((nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), CARRIES),
    ((nn.modules.dropout._DropoutNd,), CARRIES),
)

# Functions by their object; methods and the remaining functions by their name (a trailing underscore is dropped).
_FUNCTIONS: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    operator.mul: "mul",
    operator.imul: "mul",
    operator.matmul: "matmul",
    operator.getitem: CARRIES,
    getattr: CARRIES,
    F.max_pool2d: "pool",
    F.adaptive_max_pool2d: "pool",
    torch._assert: CONSTANT,
}
_NAMES: dict[str, str] = {
    **{name: name for name in ACTIVATIONS},
    **{name: name for name in ("add", "mul", "matmul", "batch_norm", "linear", "softmax", "pad")},
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose2d"), "conv"),
    **dict.fromkeys(("clamp_min", "clip"), "clamp"),
    **dict.fromkeys(("celu", "selu"), "elu"),
    **dict.fromkeys(("swish",), "silu"),
    **dict.fromkeys(("multiply",), "mul"),
    **dict.fromkeys(("bmm",), "matmul"),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), "concat"),
    **dict.fromkeys(
        ("mean", "amax", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "boolean_dispatch"),
        "pool",
    ),
    **dict.fromkeys(
        (
            "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "expand",
            "chunk", "split", "unbind", "narrow", "roll", "to", "type", "float", "half", "bfloat16", "clone", "detach",
            "pixel_shuffle", "channel_shuffle", "dropout", "dropout2d", "identity", "t", "flip", "unflatten", "type_as",
        ),
        CARRIES,
    ),
    **dict.fromkeys(("size", "dim", "numel", "_assert", "_assert_is_none"), CONSTANT),
}  # fmt: skip


def operator_of(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> str:
    """One of ACTIVATIONS, "conv", "linear", "batch_norm", "add", "mul", "matmul", "pool", "pad", "concat", "softmax",
    "input", "other"; CARRIES for nodes that pass their input's values on; CONSTANT for what is no activation tensor.
    """
    if node.op == "placeholder":
        return "input"
    if node.op in ("get_attr", "output"):
        return CONSTANT
    if node.op == "call_module":
        return _operator_of_module(node, graph_module)
    word = _FUNCTIONS.get(node.target)
    if word is None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        word = _NAMES.get(name.rstrip("_") if not name.startswith("_") else name, "other")
    if word in ("add", "mul") and sum(isinstance(a, torch.fx.Node) for a in node.args) < 2:
        return "other"  # arithmetic with a number, not a residual addition or a gate
    if word == CARRIES and node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"):
        return CONSTANT
    return word


def _operator_of_module(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> str:
    if is_quantizer_target(node.target):
        return CARRIES
    module = graph_module.get_submodule(str(node.target))
    for classes, word in _MODULES:
        if isinstance(module, classes):
            return word
    # A whole module without state that depends on the mode alone: stochastic depth and its kin.
    if not type(module).forward.__module__.startswith("torch.nn") and not module.state_dict():
        return CARRIES
    return "other"


def is_quantizer_target(target: Any) -> bool:
    """Whether a call_module target is a quantizer that `insert_quantizers` put behind a node."""
    return isinstance(target, str) and target.startswith(f"{QUANTIZERS}.")
