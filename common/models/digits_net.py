"""A small network for the embedded 8x8 digits: what quick starts, rehearsals and tests train."""

from __future__ import annotations

from torch import Tensor, nn

from common.models.cifar_resnet import CifarBlock


class DigitsNet(nn.Module):
    """Stem, one residual block (16 channels), a stride-2 convolution and a further one (32 channels), classifier.

    18,896 convolution and linear weights. It has what quantization methods must cope with: batch norm, a residual
    addition, a stride, a first and a last layer.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.block = CifarBlock(16, 16, stride=1, shortcut=nn.Sequential())
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(32, 32, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.relu3 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> logits (N, num_classes)"""
        x = self.block(self.relu1(self.bn1(self.conv1(images))))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        return self.linear(self.pool(x).flatten(1))


def digits_net(num_classes: int = 10) -> DigitsNet:
    """18,896 weights; about 0.5 million MACs at 8x8."""
    return DigitsNet(num_classes)
