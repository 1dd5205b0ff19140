"""VGG-small for CIFAR-10, the plain network of the LQ-Nets and binary-network literature.

Source: D. Zhang, J. Yang, D. Ye, G. Hua, "LQ-Nets" (arXiv 1807.10029), section 4.2: 2x(128-C3)-MP2-2x(256-C3)-MP2-
2x(512-C3)-MP2-10FC, batch norm and ReLU after every convolution.
"""

from __future__ import annotations

from torch import Tensor, nn


class VGGSmall(nn.Module):
    """Six 3x3 convolutions and one linear layer; 4,656,512 weights with 10 classes. Images must be 32x32."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for out_channels in (128, 256, 512):
            for _ in range(2):
                layers += [
                    nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                ]
                in_channels = out_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(512 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, num_classes)"""
        return self.linear(self.features(images).flatten(1))


def vgg_small(num_classes: int = 10) -> VGGSmall:
    """4.66 M weights."""
    return VGGSmall(num_classes)
