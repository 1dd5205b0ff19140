"""Residual networks for 32x32 images: the CIFAR family of He et al. 2016 and the four-stage ResNet-18.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class PaddedShortcut(nn.Module):
    """Option A of He et al.: drop every second row and column, add zero channels on both sides; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad_before = (out_channels - in_channels) // 2
        self.pad_after = out_channels - in_channels - self.pad_before

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))"""
        subsampled = x[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, self.pad_before, self.pad_after))


class CifarBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)); two ReLU modules, so that each has a name of its own.

    An empty nn.Sequential is the identity shortcut: unlike nn.Identity it leaves no node in a traced graph.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for CIFAR: a 3x3 stem, three stages of n blocks with 16, 32 and 64 channels, a linear classifier.

    Parameter names are those of github.com/akamaster/pytorch_resnet_cifar10, so that its checkpoints load.

    Args:
        depth: 6n + 2 with n >= 1: 20, 32, 44, 56, ...
        num_classes: outputs of the classifier.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n >= 1 (20, 32, 44, 56, ...), got {depth}")
        num_blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, num_blocks, stride=1)
        self.layer2 = self._stage(16, 32, num_blocks, stride=2)
        self.layer3 = self._stage(32, 64, num_blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():  # the initialization of akamaster's code, which the published accuracies rest on
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
        shortcut = nn.Sequential() if in_channels == out_channels else PaddedShortcut(in_channels, out_channels, stride)
        blocks = [CifarBlock(in_channels, out_channels, stride, shortcut)]
        blocks += [CifarBlock(out_channels, out_channels, 1, nn.Sequential()) for _ in range(num_blocks - 1)]
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, num_classes); other sizes work too."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


class CifarResNet18(nn.Module):
    """ResNet-18 with a 3x3 stride-1 stem and no max-pool: 64, 128, 256, 512 channels, 1x1 convolution shortcuts.

    Parameter names are those of github.com/kuangliu/pytorch-cifar.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(64, 64, stride=1)
        self.layer2 = self._stage(64, 128, stride=2)
        self.layer3 = self._stage(128, 256, stride=2)
        self.layer4 = self._stage(256, 512, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(512, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        if in_channels == out_channels:
            shortcut: nn.Module = nn.Sequential()
        else:
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        return nn.Sequential(
            CifarBlock(in_channels, out_channels, stride, shortcut),
            CifarBlock(out_channels, out_channels, 1, nn.Sequential()),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, num_classes); other sizes work too."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.pool(x).flatten(1))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """0.27 M parameters; He et al., table 6."""
    return CifarResNet(20, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """0.46 M parameters; He et al., table 6."""
    return CifarResNet(32, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """0.66 M parameters; He et al., table 6."""
    return CifarResNet(44, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """0.85 M parameters; He et al., table 6."""
    return CifarResNet(56, num_classes)


def resnet18_cifar(num_classes: int = 10) -> CifarResNet18:
    """11.17 M parameters."""
    return CifarResNet18(num_classes)
