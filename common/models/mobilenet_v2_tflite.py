"""MobileNetV2 as its 8-bit TensorFlow Lite file has it: batch norms folded, "SAME" padding, 1000 classes.

Source: M. Sandler et al., "MobileNetV2" (arXiv 1801.04381), table 2; the layout of the file is that of
`adapt_state_dict`. TensorFlow pads strided convolutions at the right and bottom, PyTorch at the left and top. The
network therefore works on mirrored images with mirrored kernels, where both are the same for even sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# (expansion factor, output channels, blocks, stride of the first block): table 2 of the paper
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_relu6(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups)
    return nn.Sequential(conv, nn.ReLU6())


class FoldedInvertedResidual(nn.Module):
    """1x1 expansion (unless its factor is 1), 3x3 depthwise, linear 1x1 projection; batch norms folded."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [_conv_relu6(in_channels, hidden, 1)] if expansion > 1 else []
        depthwise = _conv_relu6(hidden, hidden, 3, stride, groups=hidden)
        self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(hidden, out_channels, 1))
        self.use_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


class MobileNetV2TFLite(nn.Module):
    """Stem, 17 inverted residuals, 1x1 head, global average pool, linear classifier."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_relu6(3, 32, 3, stride=2)]
        in_channels = 32
        for expansion, out_channels, num_blocks, first_stride in _STAGES:
            for index in range(num_blocks):
                stride = first_stride if index == 0 else 1
                features.append(FoldedInvertedResidual(in_channels, out_channels, stride, expansion))
                in_channels = out_channels
        features.append(_conv_relu6(in_channels, 1280, 1))
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), H and W multiples of 32 -> logits (N, num_classes)"""
        return self.classifier(self.pool(self.features(images.flip(2, 3))).flatten(1))

    def adapt_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Integer layers `L00.w`, `.scale`, `.zp`, `.bias`, ... become real ones; another state stays as it is.

        w is (out, in / groups, k, k), its real values (w - zp) scale with one scale per output channel.
        """
        if "L00.w" not in state:
            return dict(state)
        names = [name for name, module in self.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        found: dict[str, Tensor] = {}
        for index, name in enumerate(names):
            prefix = f"L{index:02d}"
            if any(f"{prefix}.{part}" not in state for part in ("w", "scale", "zp", "bias")):
                continue  # named as missing by the loader
            scale, zero_point = (state[f"{prefix}.{part}"].float().reshape(-1, 1, 1, 1) for part in ("scale", "zp"))
            weight = ((state[f"{prefix}.w"].float() - zero_point) * scale).flip(2, 3)
            found[f"{name}.weight"] = weight.flatten(1) if name == "classifier" else weight
            found[f"{name}.bias"] = torch.as_tensor(state[f"{prefix}.bias"]).float()
        return found


def mobilenet_v2_tflite(num_classes: int = 1000) -> MobileNetV2TFLite:
    """MobileNetV2 1.0 without batch norms; 300 million MACs at 224x224."""
    return MobileNetV2TFLite(num_classes)
