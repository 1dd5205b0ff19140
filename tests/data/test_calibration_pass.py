"""calibration_batches(-1) is one pass over the training set."""

import torch

from data import DigitsData


def test_minus_one_gives_every_training_image_once():
    data = DigitsData(batch_size=100)
    batches = [images for images, _ in data.calibration_batches(-1)]
    assert [len(images) for images in batches] == [100] * 14 + [37]
    images = torch.cat(batches)
    assert images.flatten(1).unique(dim=0).shape[0] == 1437  # all digits differ
