"""SqueezeNext-23, the first version, with a width multiplier.

Source: A. Gholami et al., "SqueezeNext: Hardware-Aware Neural Network Design" (arXiv 1803.10615), in the form of the
PyTorch zoo to which the authors point (github.com/osmr/imgclsmob, sqnxt23): at width 2 it has the 2,583,752 parameters
that the sizes in HAWQ's tables fit. The authors' own Caffe network, 2.0-SqNxt-23, has 2,361,728: its stem and its last
convolution are not widened, and it has no biases.
"""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((32, 6), (64, 6), (128, 8), (256, 1))  # (output channels at width 1, units)


class ConvBlock(nn.Sequential):
    """Convolution (with a bias, as the zoo has it), batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class SqueezeNextUnit(nn.Module):
    """relu(body(x) + shortcut(x)); body: two 1x1 squeezes, 1x3 and 3x1, 1x1 expansion, each with batch norm and ReLU.

    The shortcut is a 1x1 convolution where resolution or width changes; else an empty nn.Sequential, which leaves no
    node in a traced graph.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if stride == 2:
            width = in_channels
        elif in_channels > out_channels:
            width = in_channels // 4
        else:
            width = in_channels // 2
        self.body = nn.Sequential(
            ConvBlock(in_channels, width, stride=stride),
            ConvBlock(width, width // 2),
            ConvBlock(width // 2, width, kernel_size=(1, 3), padding=(0, 1)),
            ConvBlock(width, width, kernel_size=(3, 1), padding=(1, 0)),
            ConvBlock(width, out_channels),
        )
        changes = stride != 1 or in_channels > out_channels
        self.shortcut = ConvBlock(in_channels, out_channels, stride=stride) if changes else nn.Sequential()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class SqueezeNext23(nn.Module):
    """A 7x7 stride-2 stem with max-pool, 21 units in four stages, a 1x1 convolution, a linear classifier.

    Args:
        num_classes: outputs of the classifier.
        width_mult: factor on all channel counts, > 0; counts are rounded down.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0) -> None:
        super().__init__()
        if width_mult <= 0:
            raise ValueError(f"width_mult must be above 0, got {width_mult}")
        channels, last_channels = int(64 * width_mult), int(128 * width_mult)
        self.stem = ConvBlock(3, channels, kernel_size=7, stride=2, padding=1)
        self.max_pool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        stages = []
        for index, (base_channels, num_units) in enumerate(_STAGES):
            out_channels = int(base_channels * width_mult)
            units = [SqueezeNextUnit(channels, out_channels, stride=1 if index == 0 else 2)]
            units += [SqueezeNextUnit(out_channels, out_channels, stride=1) for _ in range(num_units - 1)]
            stages.append(nn.Sequential(*units))
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.last = ConvBlock(channels, last_channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), H and W at least 32 (224 is usual) -> logits (N, num_classes)"""
        x = self.stages(self.max_pool(self.stem(images)))
        return self.classifier(self.pool(self.last(x)).flatten(1))


def squeezenext23_2x(num_classes: int = 1000) -> SqueezeNext23:
    """2.0-SqNxt-23: 2,583,752 parameters, of which 2,548,096 weights; 875,752,960 MACs at 224x224."""
    return SqueezeNext23(num_classes, width_mult=2.0)
