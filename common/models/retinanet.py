"""RetinaNet with a ResNet-50 feature pyramid, from images to head outputs.

Source: T.-Y. Lin et al., "Focal Loss for Dense Object Detection" (arXiv 1708.02002), section 4; P6 is computed from C5
as there. Built from torchvision's parts, whose own RetinaNet computes P6 from P5 and has 91 classes.
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

_NUM_ANCHORS = 9  # a position: three aspect ratios, three scales
_PYRAMID_CHANNELS = 256


class RetinaNetR50FPN(nn.Module):
    """Backbone with pyramid levels P3 to P7 (strides 8 to 128) and one head, which runs on every level.

    No anchors, losses or box decoding. These are `torchvision.models.detection.RetinaNet`'s, which takes `backbone` and
    `head` as they are; the levels' outputs concatenated along the axis of anchors are its `head_outputs`.

    Batch norms are nn.BatchNorm2d with trainable affine parameters (53,120 of all parameters), so that they can be
    folded or frozen like those of a classifier.

    Args:
        num_classes: K, number of classes; there is no background class.
    """

    def __init__(self, num_classes: int = 80) -> None:
        super().__init__()
        self.backbone = BackboneWithFPN(
            torchvision.models.resnet50(),
            return_layers={"layer2": "p3", "layer3": "p4", "layer4": "p5"},
            in_channels_list=[512, 1024, 2048],
            out_channels=_PYRAMID_CHANNELS,
            extra_blocks=LastLevelP6P7(2048, _PYRAMID_CHANNELS),
        )
        self.head = RetinaNetHead(_PYRAMID_CHANNELS, _NUM_ANCHORS, num_classes)

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """(N, 3, H, W), H and W multiples of 32, -> per level, P3 first, with A = 9 * height * width anchors:

        "cls_logits": (N, A, K); "bbox_regression": (N, A, 4), offsets as torchvision's BoxCoder reads them.
        """
        levels = list(self.backbone(images).values())
        classify, regress = self.head.classification_head, self.head.regression_head
        logits = [classify.cls_logits(classify.conv(level)) for level in levels]
        boxes = [regress.bbox_reg(regress.conv(level)) for level in levels]
        return {
            "cls_logits": [_by_anchor(maps, classify.num_classes) for maps in logits],
            "bbox_regression": [_by_anchor(maps, 4) for maps in boxes],
        }


def _by_anchor(maps: Tensor, num_values: int) -> Tensor:
    """(N, 9 * num_values, H, W) -> (N, H * W * 9, num_values), the order of torchvision's anchors."""
    return maps.unflatten(1, (_NUM_ANCHORS, num_values)).permute(0, 3, 4, 1, 2).flatten(1, 3)


def retinanet_r50_fpn(num_classes: int = 80) -> RetinaNetR50FPN:
    """37,968,692 parameters (37,910,720 weights) with 80 classes; 238,536,058,880 MACs at 800x1280, all levels."""
    return RetinaNetR50FPN(num_classes)
