"""Bit-widths per site: the exchange format between searchers, trainers, cost models and export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError

VERSION = 1
FLOAT = 32  # the width of what a policy does not name


@dataclass(frozen=True)
class GroupBits:
    """Bit-widths of groups of channels of one site.

    Attributes:
        axis: "out" or "in": the channels that are grouped.
        groups: channels per group.
        bits: bits per value of each group, 0 is pruned.
    """

    axis: str
    groups: tuple[int, ...]
    bits: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Average bits per channel."""
        return sum(g * b for g, b in zip(self.groups, self.bits, strict=True)) / sum(self.groups)


Bits = int | GroupBits


@dataclass(frozen=True)
class LayerBits:
    """The view of one layer that cost models need (32: float).

    Attributes:
        weight: bits per weight.
        activation: bits per value of what the layer reads; the widest, where it reads several tensors.
    """

    weight: Bits
    activation: Bits


@dataclass(frozen=True)
class BitPolicy:
    """Site name -> bit-width. Sites that it does not name stay in float32.

    Attributes:
        model: name of the network, as the model registry knows it.
        input_shape: (C, H, W) of one image.
        sites: bit-width per site.
    """

    model: str
    input_shape: tuple[int, ...]
    sites: Mapping[str, Bits]

    def bits(self, site: str) -> float:
        """Bits per value at a site, averaged over its groups; 32 where the policy does not name it."""
        width = self.sites.get(site, FLOAT)
        return width.mean if isinstance(width, GroupBits) else float(width)

    def layer_bits(self, layer: Any, image_bits: int = 8) -> LayerBits:
        """Widths of a layer of the layer table (`name`, `reads`).

        The input's width is that of the layer's own edge, else of the nearest tensor that the policy names, through
        pooling, padding and concatenation: they write the width that they read. Concatenated tensors of different
        width run at the widest. The network's input has `image_bits` unless the policy names it.
        """
        edge = f"{layer.name}.input"
        widths = [self.sites[edge]] if edge in self.sites else [self._read_bits(r, image_bits) for r in layer.reads]
        return LayerBits(
            weight=self.sites.get(f"{layer.name}.weight", FLOAT),
            activation=widths[0] if len(widths) == 1 else max(widths, key=_widest),
        )

    def _read_bits(self, read: Any, image_bits: int) -> Bits:
        named = [name for name in read.names if name in self.sites]
        if named:
            return self.sites[named[0]]
        return image_bits if read.is_image else FLOAT

    def validate(self, model: str, site_names: set[str]) -> None:
        """
        Raises:
            UserError: the policy is of another model or names a site that the model does not have.
        """
        if self.model != model:
            raise UserError(f"the policy is for model {self.model!r}, not for {model!r}")
        for site in self.sites:
            if site not in site_names:
                raise UserError(f"the policy names site {site!r}, which {model!r} does not have")

    def save(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def to_dict(self) -> dict[str, Any]:
        sites: dict[str, Any] = {
            name: {"axis": b.axis, "groups": list(b.groups), "bits": list(b.bits)} if isinstance(b, GroupBits) else b
            for name, b in self.sites.items()
        }
        return {"version": VERSION, "model": self.model, "input_shape": list(self.input_shape), "sites": sites}

    @classmethod
    def load(cls, path: str | Path) -> BitPolicy:
        """Read a policy file.

        Raises:
            UserError: no such file, not JSON, or not a policy.
        """
        try:
            content = json.loads(Path(path).read_text())
        except FileNotFoundError:
            raise UserError(f"no policy file {path}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{path} is not a policy file: {error}") from None
        return cls.from_dict(content, source=str(path))

    @classmethod
    def from_dict(cls, content: Any, source: str = "policy") -> BitPolicy:
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise UserError(f'{source}: expected an object with "version": {VERSION}')
        if not isinstance(content.get("model"), str) or not isinstance(content.get("sites"), dict):
            raise UserError(f'{source}: expected "model" (a name) and "sites" (an object)')
        shape = content.get("input_shape")
        if not (isinstance(shape, list) and all(isinstance(n, int) for n in shape)):
            raise UserError(f'{source}: expected "input_shape" as a list of integers')
        sites = {name: _parse_bits(name, bits, source) for name, bits in content["sites"].items()}
        return cls(content["model"], tuple(shape), sites)


def _widest(bits: Bits) -> int:
    return max(bits.bits) if isinstance(bits, GroupBits) else bits


def _parse_bits(name: str, bits: Any, source: str) -> Bits:
    def width(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 32

    if width(bits):
        return bits
    if isinstance(bits, dict) and bits.get("axis") in ("out", "in"):
        groups, widths = bits.get("groups"), bits.get("bits")
        if (
            isinstance(groups, list)
            and isinstance(widths, list)
            and len(groups) == len(widths) > 0
            and all(isinstance(g, int) and g > 0 for g in groups)
            and all(width(b) for b in widths)
        ):
            return GroupBits(bits["axis"], tuple(groups), tuple(widths))
    raise UserError(f"{source}: site {name!r} has no valid bit-width: {bits!r}")
