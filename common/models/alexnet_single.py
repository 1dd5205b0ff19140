"""AlexNet as one tower without groups, with batch norm: the AlexNet of quantization papers.

Source: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
section 3.5, the two towers merged and without groups. Batch norm takes the place of local response normalization, as in
S. Jung et al., "Learning to Quantize Deep Networks by Optimizing Quantization Intervals" (QIL, arXiv 1808.05779). It is
the AlexNet whose counts the KCNN paper (IJCAI 2019) prints; torchvision's has narrower convolutions.
"""

from __future__ import annotations

from torch import Tensor, nn

# (output channels, kernel size, stride, padding, followed by a max-pool)
_CONVOLUTIONS = (
    (96, 11, 4, 2, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


class AlexNetSingle(nn.Module):
    """Five convolutions and three linear layers, batch norm and ReLU after each but the last.

    Args:
        num_classes: outputs of the classifier.
        dropout: probability before the first two linear layers; 0 (QIL) trains without.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.0) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for out_channels, kernel_size, stride, padding, pooled in _CONVOLUTIONS:
            features += [
                nn.Conv2d(channels, out_channels, kernel_size, stride, padding, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            if pooled:
                features.append(nn.MaxPool2d(kernel_size=3, stride=2))
            channels = out_channels
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(6)  # the identity for 224x224 images
        classifier: list[nn.Module] = []
        for in_features in (channels * 6 * 6, 4096):
            classifier += [
                nn.Dropout(dropout),
                nn.Linear(in_features, 4096, bias=False),
                nn.BatchNorm1d(4096),
                nn.ReLU(),
            ]
        self.classifier = nn.Sequential(*classifier, nn.Linear(4096, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), H and W at least 63 (224 is usual) -> logits (N, num_classes)"""
        return self.classifier(self.pool(self.features(images)).flatten(1))


def alexnet_single(num_classes: int = 1000, dropout: float = 0.0) -> AlexNetSingle:
    """62,387,912 parameters, of which 3,745,824 weights in convolutions.

    1,135,256,096 MACs at 224x224, of which 1,076,634,144 in convolutions (650,080 outputs, 1,376 kernels).
    """
    return AlexNetSingle(num_classes, dropout)
