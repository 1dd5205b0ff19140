"""`python -m hardware`: what a network costs on a target, per layer and in total."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from common.bit_policy import BitPolicy, Bits, GroupBits, LayerBits
from common.command_line import Parser
from common.errors import UserError
from common.graph import Layer
from hardware.cost_model import CostModel, NetworkCost, uniform_widths
from hardware.network import Network, network
from hardware.targets import cost_model, target_names

_EXAMPLE = "python -m hardware --model mobilenet_v2 --bits 4/4 --target bismo-edge"


def main(arguments: Sequence[str]) -> int:
    """Print a network's cost; the exit status.

    Raises:
        UserError: unknown model or target, a policy that does not fit, a layer that has no cost model.
    """
    options = _parser().parse_args(list(arguments))
    if options.list:
        _print_targets(options.target)
        return 0
    if options.target is None:
        raise UserError(f"name a target (--list shows them), as in {_EXAMPLE}")
    if (options.policy is None) == (options.bits is None):
        raise UserError("give either --bits W/A or --policy FILE")
    model = cost_model(options.target)
    policy = BitPolicy.load(options.policy) if options.policy else None
    measured_network = _network(options, policy)
    widths = _widths(options, policy, measured_network)
    cost = model.network_cost(measured_network.layers, widths)
    if options.plot:
        from hardware.plot import plot_cost

        plot_cost(options.plot, measured_network, model, widths, cost)
    if options.json:
        print(json.dumps(_content(measured_network, model, widths, cost), indent=1))
        return 0
    shape = "x".join(map(str, measured_network.input_shape))
    bits = options.bits or Path(options.policy).name
    print(f"{measured_network.model} at {shape}, {bits}: {model.quantity} {_amount(cost.total, model.unit)}")
    print(f"{model.name}: {model.description}")
    if options.layers:
        print()
        _print_layers(measured_network.layers, model, widths, cost)
    if options.plot:
        print(f"wrote {options.plot}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m hardware", description=f"What a network costs on a target: {_EXAMPLE}")
    parser.add_argument("--model", help="ours, torchvision's or timm's name, or a class path; a policy names its own")
    parser.add_argument("--target", help="a name of --list, or table:FILE, a table of measurements")
    parser.add_argument("--bits", metavar="W/A", help="the same widths everywhere: weights / inputs of layers")
    parser.add_argument("--first-last-bits", type=int, metavar="B", help="with --bits: of the first and the last layer")
    parser.add_argument("--policy", metavar="FILE", help="a bit policy (JSON) instead of --bits")
    parser.add_argument("--input-shape", metavar="C,H,W", help="default: the size that the network was published at")
    parser.add_argument("--num-classes", type=int, help="default: the network's own")
    parser.add_argument("--layers", action="store_true", help="a line per layer")
    parser.add_argument("--json", action="store_true", help="the same as data")
    parser.add_argument("--plot", metavar="FILE.png", help="costs per layer, and a roofline where the target has one")
    parser.add_argument("--list", action="store_true", help="the targets; with --target, the constants behind one")
    return parser


def _network(options, policy: BitPolicy | None) -> Network:
    name = options.model or (policy.model if policy else None)
    if name is None:
        raise UserError(f"name a network with --model, as in {_EXAMPLE}")
    if policy and policy.model != name:
        raise UserError(f"{options.policy} is for model {policy.model!r}, not for {name!r}")
    shape = policy.input_shape if policy else None
    if options.input_shape:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*){2}", options.input_shape):
            raise UserError(f"--input-shape must be C,H,W, such as 3,224,224, got {options.input_shape!r}")
        shape = tuple(int(n) for n in options.input_shape.split(","))
    if policy and shape != policy.input_shape:
        raise UserError(f"{options.policy} is for inputs of {policy.input_shape}, not {shape}")
    if options.num_classes is not None and options.num_classes < 1:
        raise UserError(f"--num-classes must be at least 1, got {options.num_classes}")
    arguments = {} if options.num_classes is None else {"num_classes": options.num_classes}
    found = network(name, shape, **arguments)
    if policy:
        policy.validate(name, found.site_names)
    return found


def _widths(options, policy: BitPolicy | None, found: Network) -> list[LayerBits]:
    if policy is not None:
        if options.first_last_bits is not None:
            raise UserError("--first-last-bits goes with --bits; a policy says it itself")
        return [policy.layer_bits(layer) for layer in found.layers]
    match = re.fullmatch(r"(\d+)/(\d+)", options.bits)
    if match is None:
        raise UserError(f"--bits must be W/A, such as 4/8, got {options.bits!r}")
    return uniform_widths(found.layers, int(match[1]), int(match[2]), options.first_last_bits)


def _content(found: Network, model: CostModel, widths: Sequence[LayerBits], cost: NetworkCost) -> dict:
    return {
        "model": found.model,
        "input_shape": list(found.input_shape),
        "target": model.name,
        "quantity": model.quantity,
        "unit": model.unit,
        "total": cost.total,
        "layers": [
            {
                "name": layer.name,
                "cost": layer_cost,
                "counted": counted,
                "weight_bits": _plain(bits.weight),
                "activation_bits": _plain(bits.activation),
                "macs": layer.num_macs,
                "weights": layer.num_weights,
            }
            for layer, bits, layer_cost, counted in zip(found.layers, widths, cost.costs, cost.counted, strict=True)
        ],
    }


def _plain(bits: Bits) -> int | dict:
    if isinstance(bits, GroupBits):
        return {"axis": bits.axis, "groups": list(bits.groups), "bits": list(bits.bits)}
    return bits


def _print_layers(layers: Sequence[Layer], model: CostModel, widths: Sequence[LayerBits], cost: NetworkCost) -> None:
    lines = [("layer", "kind", "kernel", "in -> out", "MACs", "W", "A", model.unit or "cost", "share")]
    for layer, bits, layer_cost, counted in zip(layers, widths, cost.costs, cost.counted, strict=True):
        kernel = "x".join(map(str, layer.kernel_size))
        share = f"{layer_cost / cost.total:.1%}" if cost.total else "-"
        lines.append(
            (
                layer.name,
                layer.kind,
                "-" if layer.kind == "linear" else kernel,
                f"{layer.in_channels} -> {layer.out_channels}",
                f"{layer.num_macs:,}",
                _shown(bits.weight),
                _shown(bits.activation),
                f"{layer_cost:.6g}" if counted else "not counted",
                share if counted else "",
            )
        )
    columns = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, columns, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _shown(bits: Bits) -> str:
    return f"~{bits.mean:.2f}" if isinstance(bits, GroupBits) else str(bits)


def _amount(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value:,.0f} B ({value / 2**20:.4g} MiB)"
    return f"{value:.6g} {unit}".strip()


def _print_targets(name: str | None) -> None:
    if name is None:
        width = max(len(target) for target in target_names())
        for target in target_names():
            model = cost_model(target)
            print(f"{target:<{width}}  {f'{model.quantity} [{model.unit or 1}]':<14}  {model.description}")
        print(f"{'table:FILE':<{width}}  {'as it says':<14}  your own measurements (hardware/measured.py)")
        return
    model = cost_model(name)
    print(f"{model.name}: {model.quantity} [{model.unit or 1}], {model.description}")
    lines = [("constant", "value", "unit", "status", "source"), *(tuple(map(str, row)) for row in model.constants)]
    if not model.constants:
        print("counts only: no constant")
        return
    columns = [max(len(line[i]) for line in lines) for i in range(4)]
    for line in lines:
        fixed = [text.ljust(width) for text, width in zip(line, columns, strict=False)]
        print("  ".join(["", *fixed, line[4]]).rstrip())
