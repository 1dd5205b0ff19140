"""MobileNetV2 as the MXNet Gluon model zoo built it: torchvision's names, but not torchvision's network.

Source: M. Sandler et al., "MobileNetV2" (arXiv 1801.04381), table 2, and the variant in the ONNX model zoo
(mobilenetv2-1.0, from Gluon). It differs from torchvision's in two ways: plain ReLU instead of ReLU6, and the first
block has an expansion convolution although its expansion factor is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

# (expansion factor, output channels, blocks, stride of the first block): table 2 of the paper
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 1),
    (6, 96, 3, 2),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut where stride and channels allow it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            _conv_bn_relu(in_channels, hidden, 1),
            _conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.use_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


class MobileNetV2ReLU(nn.Module):
    """19 `features` entries (stem, 17 inverted residuals, 1x1 head), global average pool, linear classifier."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_bn_relu(3, 32, 3, stride=2)]
        in_channels = 32
        for expansion, out_channels, num_blocks, first_stride in _STAGES:
            for index in range(num_blocks):
                stride = first_stride if index == 0 else 1
                features.append(InvertedResidual(in_channels, out_channels, stride, expansion))
                in_channels = out_channels
        features.append(_conv_bn_relu(in_channels, 1280, 1))
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), H and W at least 32 (224 is usual) -> logits (N, num_classes)"""
        return self.classifier(self.pool(self.features(images)).flatten(1))

    def adapt_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A head `classifier10.*` becomes `classifier.*`; its list of class indices, `classifier10.classes`, goes."""
        return {
            name.replace("classifier10.", "classifier."): value
            for name, value in state.items()
            if name != "classifier10.classes"
        }


def mobilenet_v2_relu(num_classes: int = 1000) -> MobileNetV2ReLU:
    """MobileNetV2 1.0 with plain ReLU; 300 million MACs at 224x224."""
    return MobileNetV2ReLU(num_classes)
