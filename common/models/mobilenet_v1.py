"""MobileNetV1 with a width multiplier.

Source: A. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications"
(arXiv 1704.04861), table 1. At width 1 and 224x224: 4,209,088 convolution and linear weights, 568,740,352 MACs.
"""

from __future__ import annotations

from torch import Tensor, nn

# (output channels at width 1, stride) of the 13 depthwise separable blocks
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)
_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6}


class MobileNetV1(nn.Module):
    """A 3x3 stride-2 stem and 13 depthwise separable blocks (27 convolutions with batch norm and ReLU), classifier.

    Parameter names (`model.<block>.<index>`, `fc`) are those of the widespread PyTorch version, on which HMQ's public
    code builds too.

    Args:
        num_classes: outputs of the classifier.
        width_mult: factor on all channel counts, > 0; counts are rounded down, at least 8 (as in the TensorFlow code).
        activation: "relu" or "relu6". The paper says ReLU, TensorFlow's released networks use ReLU6.
        dropout: probability before the classifier; 0 trains without.
    """

    def __init__(
        self, num_classes: int = 1000, width_mult: float = 1.0, activation: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")
        if width_mult <= 0:
            raise ValueError(f"width_mult must be above 0, got {width_mult}")
        make_activation = _ACTIVATIONS[activation]

        def conv_bn_relu(cin: int, cout: int, kernel_size: int, stride: int, groups: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(cin, cout, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(cout), make_activation()]

        channels = max(int(32 * width_mult), 8)
        blocks = [nn.Sequential(*conv_bn_relu(3, channels, 3, stride=2))]
        for base_channels, stride in _BLOCKS:
            out_channels = max(int(base_channels * width_mult), 8)
            depthwise = conv_bn_relu(channels, channels, 3, stride, groups=channels)
            pointwise = conv_bn_relu(channels, out_channels, 1, stride=1)
            blocks.append(nn.Sequential(*depthwise, *pointwise))
            channels = out_channels
        self.model = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) of any size (224 is usual) -> logits (N, num_classes)"""
        return self.fc(self.dropout(self.pool(self.model(images)).flatten(1)))


def mobilenet_v1(
    num_classes: int = 1000, width_mult: float = 1.0, activation: str = "relu", dropout: float = 0.0
) -> MobileNetV1:
    """4.23 M parameters at width 1."""
    return MobileNetV1(num_classes, width_mult, activation, dropout)
