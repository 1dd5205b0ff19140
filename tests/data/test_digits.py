import pytest
import torch

from data import DataError, DigitsData, make_data


def test_sizes_shape_and_split():
    data = DigitsData()
    assert (data.name, data.num_classes, data.input_shape) == ("digits", 10, (1, 8, 8))
    assert (data.train_size, data.test_size) == (1437, 360)
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]  # stratified


def test_the_split_does_not_depend_on_the_seed():
    assert DigitsData(seed=0).fingerprint == DigitsData(seed=1).fingerprint == "7200127207a2b267"
    assert DigitsData(split_seed=1).fingerprint != "7200127207a2b267"


def test_pixels_are_scaled_to_the_full_range():
    data = DigitsData(mean=(0.0,), std=(1 / 255,))
    values = torch.cat([images for images, _ in data.calibration_batches(22)]).round().unique()
    expected = torch.tensor([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255.0])
    assert torch.equal(values, expected)


def test_training_images_are_normalised():
    images = torch.cat([images for images, _ in DigitsData(padding=0, drop_last=False).train_dataloader()])
    assert len(images) == 1437
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


def test_digits_are_shifted_by_up_to_one_pixel_and_not_mirrored():
    plain = DigitsData(padding=0, drop_last=False, batch_size=1437).train_dataloader()
    shifted = DigitsData(drop_last=False, batch_size=1437).train_dataloader()
    (before, _), (after, _) = next(iter(plain)), next(iter(shifted))
    padded = torch.nn.functional.pad(before, (1, 1, 1, 1), value=float(before.min()))
    windows = torch.stack([padded[..., y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    matches = (windows == after).all(dim=(2, 3, 4))  # (9, 1437)
    assert matches.any(0).all()
    assert matches.sum(1).min() > 100  # each of the 9 shifts: 160 on average


def test_make_data_by_name():
    data = make_data("digits", batch_size=32)
    assert isinstance(data, DigitsData)
    assert data.batch_size == 32


def test_unknown_name():
    with pytest.raises(DataError, match="unknown data set 'mnist': choose one of digits, cifar10, imagenet"):
        make_data("mnist")
