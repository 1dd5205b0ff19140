"""Two relatives of ResNet-50: with full pre-activation, and without max-pool.

Sources: K. He, X. Zhang, S. Ren, J. Sun, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), figure 4e;
SAT (Q. Jin, L. Yang, Z. Liao, arXiv 1912.10207) quantizes a full pre-activation ResNet-50, AdaBits (same authors, arXiv
1912.09666) one whose printed BitOPs only fit a network without max-pool.
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # (channels of the 3x3 convolutions, blocks)


class PreActBottleneck(nn.Module):
    """conv3(relu3(bn3(conv2(relu2(bn2(conv1(y))))))) + shortcut, with y = relu1(bn1(x)); the stride is in the 3x3.

    The shortcut is x itself; or, where `shortcut` is a module, shortcut(y).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, 4 * channels, kernel_size=1, bias=False)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(self.relu2(self.bn2(self.conv1(y))))
        return self.conv3(self.relu3(self.bn3(y))) + shortcut


class PreActResNet50(nn.Module):
    """A 7x7 stride-2 stem and max-pool, 16 pre-activation bottlenecks, batch norm and ReLU, a linear classifier.

    Args:
        num_classes: outputs of the classifier.
        max_pool: False leaves the max-pool out; the first block has the stride of 2 instead, in its 3x3 convolution and
            its shortcut.
        shortcut_batch_norm: batch norm after the four 1x1 convolutions in shortcuts; the paper has none there. With it
            and without max-pool the counts are those of AdaBits' ResNet-50: 26,560 channels, 4,127,719,424 MACs.
    """

    def __init__(self, num_classes: int = 1000, max_pool: bool = True, shortcut_batch_norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        # an empty nn.Sequential leaves no node in a traced graph
        self.max_pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if max_pool else nn.Sequential()
        in_channels = 64
        stages = []
        for index, (channels, num_blocks) in enumerate(_STAGES):
            stride = 1 if index == 0 and max_pool else 2
            shortcut: list[nn.Module] = [nn.Conv2d(in_channels, 4 * channels, kernel_size=1, stride=stride, bias=False)]
            if shortcut_batch_norm:
                shortcut.append(nn.BatchNorm2d(4 * channels))
            blocks = [PreActBottleneck(in_channels, channels, stride, nn.Sequential(*shortcut))]
            in_channels = 4 * channels
            blocks += [PreActBottleneck(in_channels, channels, 1, None) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) of any size (224 is usual) -> logits (N, num_classes)"""
        x = self.max_pool(self.conv1(images))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.pool(self.relu(self.bn(x))).flatten(1))


def preact_resnet50(
    num_classes: int = 1000, max_pool: bool = True, shortcut_batch_norm: bool = False
) -> PreActResNet50:
    """25,549,352 parameters (25,502,912 weights, 22,720 batch norm channels); 4,089,184,256 MACs at 224x224."""
    return PreActResNet50(num_classes, max_pool, shortcut_batch_norm)


def resnet50_no_max_pool(num_classes: int = 1000) -> ResNet:
    """torchvision's ResNet-50, stride 2 in the first 3x3 convolution and the first shortcut in place of the max-pool.

    25,557,032 parameters (25,502,912 weights, 26,560 batch norm channels), under torchvision's names; 4,127,719,424
    MACs at 224x224.
    """
    model = torchvision.models.resnet50(num_classes=num_classes)
    model.maxpool = nn.Sequential()
    first = model.layer1[0]
    first.stride, first.conv2.stride, first.downsample[0].stride = 2, (2, 2), (2, 2)
    return model
