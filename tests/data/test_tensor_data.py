"""Batched augmentation against torchvision's per-sample transforms, and what the in-memory data modules share."""

import hashlib
import math
import time
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as TF

from data import DataError
from data.loaders import derived_generator
from data.tensor_data import TensorDataModule, TensorLoader, crop_and_flip, draw_augmentation, normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_images(count, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_labels(count):
    return torch.arange(count) % 10


def make_loader(images, batch_size=128, seed=0, **settings):
    settings = {"mean": MEAN, "std": STD, "shuffle": True, "padding": 4, "flip": True} | settings
    return TensorLoader(images, random_labels(len(images)), batch_size, seed, **settings)


def test_given_the_draws_a_batch_equals_torchvision_one_by_one():
    images = random_images(300)
    top, left, flipped = draw_augmentation(300, 4, True, torch.Generator().manual_seed(1))
    expected = []
    for image, y, x, flip in zip(images, top.tolist(), left.tolist(), flipped.tolist(), strict=True):
        cropped = TF.crop(TF.pad(image, 4), y, x, 32, 32)
        expected.append(TF.hflip(cropped) if flip else cropped)
    assert torch.equal(crop_and_flip(images, 4, top, left, flipped), torch.stack(expected))


def test_crop_works_on_channels_last_images_and_any_shape():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).view(2, 3, 4, 5)
    draws = torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([False, True])
    expected = torch.stack(
        [TF.crop(TF.pad(images[0], 1), 0, 1, 4, 5), TF.hflip(TF.crop(TF.pad(images[1], 1), 2, 0, 4, 5))]
    )
    assert torch.equal(crop_and_flip(images, 1, *draws), expected)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop_and_flip(channels_last, 1, *draws), expected)


def test_normalise_is_bit_identical_to_torchvision():
    images = random_images(20)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([reference(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    assert torch.equal(normalise(images, mean, std), expected)


def chi_square(values, categories):
    """Pearson's statistic of (N,) integers against the uniform distribution over 0..categories-1."""
    observed = values.bincount(minlength=categories).double()
    assert len(observed) == categories
    expected = len(values) / categories
    return float(((observed - expected) ** 2 / expected).sum())


def test_offsets_are_uniform_and_independent_and_half_is_flipped():
    top, left, flipped = draw_augmentation(81_000, 4, True, torch.Generator().manual_seed(0))
    # 99.9% quantiles of chi-square with 8, 80 and 161 degrees of freedom
    assert chi_square(top, 9) < 26.1
    assert chi_square(left, 9) < 26.1
    assert chi_square(9 * top + left, 81) < 124.8
    assert chi_square(2 * (9 * top + left) + flipped, 162) < 221.0
    assert abs(flipped.double().mean() - 0.5) < 3 * 0.5 / math.sqrt(81_000)


def test_without_flip_nothing_is_flipped_and_without_padding_nothing_moves():
    top, left, flipped = draw_augmentation(1000, 0, False, torch.Generator().manual_seed(0))
    assert not top.any() and not left.any() and not flipped.any()


def test_statistics_equal_torchvision_random_transforms():
    """Per-pixel mean and variance over many draws: ours and torchvision's, against all 162 outcomes enumerated."""
    image = random_images(1, seed=5)[0]
    padded = TF.pad(image, 4)
    crops = [TF.crop(padded, y, x, 32, 32) for y in range(9) for x in range(9)]
    outcomes = torch.stack(crops + [TF.hflip(crop) for crop in crops]).double()
    mean, variance = outcomes.mean(0), outcomes.var(0, correction=0)
    fourth = ((outcomes - mean) ** 4).mean(0)

    draws = 4000
    torch.manual_seed(0)
    random_transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])
    theirs = torch.stack([random_transform(image) for _ in range(draws)]).double()
    identity = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    ours = torch.cat([images for images, _ in make_loader(image.expand(draws, -1, -1, -1), **identity)]).double() * 255
    for sample in (theirs, ours):
        # 3072 pixels: the largest of so many standard normal deviations is about 3.6
        assert ((sample.mean(0) - mean).abs() / (variance / draws).sqrt()).max() < 5
        spread = sample.var(0) - variance
        assert (spread.abs() / ((fourth - variance**2) / draws).sqrt()).max() < 5


def test_every_sample_has_its_own_crop_and_flip():
    image = random_images(1)
    images, _ = next(iter(make_loader(image.expand(512, -1, -1, -1), batch_size=512)))
    distinct = len(torch.unique(images.flatten(1), dim=0))
    assert distinct > 145  # of 162; 512 uniform draws reach 162 * (1 - (161/162)^512) = 155 on average


def test_a_batch_depends_on_seed_epoch_rank_and_index_only(monkeypatch):
    images = random_images(256)

    def batches(seed=0, epoch=0):
        loader = make_loader(images, batch_size=64, seed=seed)
        loader.set_epoch(epoch)
        return [images for images, _ in loader]

    first = batches()
    torch.manual_seed(123)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(), strict=True))
    for other in (batches(seed=1), batches(epoch=1)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))

    same = make_loader(images[:1].expand(256, -1, -1, -1), batch_size=64)
    given = [images for images, _ in same]
    assert not torch.equal(given[0], given[1])  # another batch, other draws
    assert not torch.equal(given[0], next(iter(same))[0])  # another epoch
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        parts.append(next(iter(make_loader(images[:1].expand(256, -1, -1, -1), batch_size=64)))[0])
    assert not torch.equal(*parts)


def test_images_keep_their_labels():
    images = torch.zeros(500, 1, 8, 8, dtype=torch.uint8) + (torch.arange(500) % 10).view(-1, 1, 1, 1).to(torch.uint8)
    loader = TensorLoader(
        images, random_labels(500), 64, 0, mean=(0,), std=(1 / 255,), shuffle=True, padding=2, flip=True
    )
    seen = 0
    for batch, labels in loader:
        assert torch.equal(batch.amax((1, 2, 3)).round().long(), labels)
        seen += len(labels)
    assert seen == 500


def test_drop_last_and_lengths():
    images = random_images(300)
    assert [len(labels) for _, labels in make_loader(images, drop_last=True)] == [128, 128]
    assert [len(labels) for _, labels in make_loader(images, drop_last=False)] == [128, 128, 44]
    assert (len(make_loader(images, drop_last=True)), len(make_loader(images))) == (2, 3)


def test_channels_last_changes_the_memory_format_only():
    images = random_images(128)
    plain = next(iter(make_loader(images)))[0]
    channels_last = next(iter(make_loader(images, channels_last=True)))[0]
    assert plain.is_contiguous() and channels_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, channels_last)
    assert plain.dtype == torch.float32


class PerSample(Dataset):
    """The usual way: one PIL image at a time through random transforms."""

    def __init__(self, images, labels):
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def seconds(loader: Iterable) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def test_an_epoch_is_five_times_faster_than_per_sample_transforms(one_thread):
    # On one core: with more threads than idle cores the batched way waits for its slowest thread.
    images = random_images(10_000)
    ours = make_loader(images)
    theirs = DataLoader(PerSample(images, random_labels(10_000)), batch_size=128, shuffle=True)
    batched = min(seconds(ours) for _ in range(3))
    per_sample = seconds(theirs)
    print(f"{per_sample:.3f} s per sample, {batched:.3f} s batched: {per_sample / batched:.1f} times faster")
    assert per_sample / batched >= 5


class Generated(TensorDataModule):
    """400 training and 100 test images."""

    name = "generated"
    num_classes = 10
    input_shape = (3, 32, 32)

    def __init__(self, parts=None, **settings):
        defaults = {
            "batch_size": 32,
            "eval_batch_size": 64,
            "seed": 0,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "padding": 4,
            "flip": True,
            "drop_last": True,
            "val_fraction": 0.0,
            "subset": None,
            "channels_last": False,
            "device": None,
        }
        super().__init__(**defaults | settings)
        self.parts = parts or (random_images(400), random_labels(400), random_images(100, seed=1), random_labels(100))

    def _read(self):
        return self.parts


def images_of(loader):
    return torch.cat([(images * 255).round().to(torch.uint8) for images, _ in loader])


def rows(images):
    return {image.numpy().tobytes() for image in images}


def test_evaluation_is_the_test_split_in_stored_order():
    data = Generated()
    assert (data.train_size, data.test_size) == (400, 100)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert [len(labels) for _, labels in loader] == [64, 36]
        assert torch.equal(images_of(loader), data.parts[2])
        assert torch.equal(images_of(loader), data.parts[2])  # in every epoch


def test_val_fraction_holds_out_training_images():
    data = Generated(val_fraction=0.1, padding=0, flip=False, drop_last=False)
    assert (data.train_size, data.test_size) == (360, 100)
    kept, held = rows(images_of(data.train_dataloader())), rows(images_of(data.val_dataloader()))
    assert (len(kept), len(held)) == (360, 40)
    assert kept | held == rows(data.parts[0])
    assert torch.equal(images_of(data.test_dataloader()), data.parts[2])
    assert rows(images_of(Generated(val_fraction=0.1).val_dataloader())) == held
    assert rows(images_of(Generated(val_fraction=0.1, seed=1).val_dataloader())) != held


def test_subset_takes_the_first_training_images():
    data = Generated(subset=64, padding=0, flip=False)
    assert (data.train_size, data.test_size) == (64, 100)
    assert rows(images_of(data.train_dataloader())) == rows(data.parts[0][:64])
    assert data.fingerprint == Generated().fingerprint


def test_calibration_batches_are_plain_training_images_in_a_seeded_order(monkeypatch):
    data = Generated()
    first = list(data.calibration_batches(13))
    assert [len(labels) for _, labels in first] == [32] * 13  # 12 batches, then the images start over
    assert rows(images_of(first)) <= rows(data.parts[0])
    assert len(rows(images_of(first[:12]))) == 384
    again = list(Generated().calibration_batches(13))
    assert torch.equal(images_of(first), images_of(again))
    assert not torch.equal(images_of(first), images_of(Generated(seed=1).calibration_batches(13)))
    assert not torch.equal(images_of(first[:12]), images_of(Generated(padding=0, flip=False).train_dataloader()))
    assert [len(labels) for _, labels in data.calibration_batches(2, batch_size=1000)] == [400, 400]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert torch.equal(images_of(first), images_of(data.calibration_batches(13)))  # every rank calibrates alike


def test_fingerprint_is_the_hash_of_all_images_and_labels():
    data = Generated()
    content = b"".join(data.parts[part].numpy().tobytes() for part in (2, 3, 0, 1))
    assert data.fingerprint == hashlib.sha256(content).hexdigest()[:16]
    for part in range(4):
        parts = [tensor.clone() for tensor in data.parts]
        parts[part].view(-1)[0] += 1
        assert Generated(parts=parts).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mean": (0.5,)}, r"mean and std of generated need 3 value\(s\) each, got 1 and 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"padding": -1}, "padding must not be negative, got -1"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"subset": 0}, "subset must be at least 1 image, got 0"),
        ({"subset": 401}, "subset 401 is more than the 400 training images"),
        ({"val_fraction": 0.001}, "val_fraction 0.001 of 400 training images leaves an empty split"),
    ],
)
def test_unsuitable_settings(settings, message):
    with pytest.raises(DataError, match=message):
        Generated(**settings).setup()


@pytest.mark.parametrize(
    "part, replacement, message",
    [
        (0, random_images(400)[:, :1], r"training set: expected images of shape \(N, 3, 32, 32\) and dtype uint8, got"),
        (2, random_images(100).float(), r"generated test set: .* got \(100, 3, 32, 32\) float32"),
        (0, random_images(0), r"got \(0, 3, 32, 32\) uint8"),
        (1, random_labels(399), r"expected one int64 label for each of 400 images, got \(399,\) int64"),
        (3, random_labels(100).int(), r"got \(100,\) int32"),
        (1, random_labels(400) + 1, r"generated training set: labels must be 0..9, found 1..10"),
    ],
)
def test_unsuitable_data(part, replacement, message):
    parts = [random_images(400), random_labels(400), random_images(100), random_labels(100)]
    parts[part] = replacement
    with pytest.raises(DataError, match=message):
        Generated(parts=parts).setup()


def test_generators_are_derived_from_every_key():
    draws = [
        torch.rand(1, generator=derived_generator(*keys)).item() for keys in [("a", 0, 1), ("a", 1, 0), ("b", 0, 1)]
    ]
    assert len(set(draws)) == 3
    assert np.isclose(draws[0], torch.rand(1, generator=derived_generator("a", 0, 1)).item(), atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_batches():
    ours = [images for images, _ in Generated().train_dataloader()]
    theirs = [images for images, _ in Generated(device="cuda").train_dataloader()]
    assert all(images.is_cuda for images in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=0, atol=1e-6)
