import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data import DataError, ImageNetData
from data.imagenet import class_indices

TENCH, SPRINGER, PARACHUTE = "n01440764", "n02102040", "n03888257"  # indices 0, 217, 701


def write_images(root, counts, seed=0):
    """counts: {"train": {wnid: number of JPEGs}, "val": ...}; every image is a smooth random one of its own size."""
    rng = np.random.default_rng(seed)
    for split, classes in counts.items():
        for wnid, count in classes.items():
            (root / split / wnid).mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                size = (int(rng.integers(40, 60)), int(rng.integers(40, 60)))
                small.resize(size, Image.Resampling.BICUBIC).save(root / split / wnid / f"{wnid}_{i}.JPEG")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "imagenet"
    counts = {"train": {TENCH: 7, SPRINGER: 7, PARACHUTE: 6}, "val": {TENCH: 2, PARACHUTE: 3}}
    write_images(folder, counts)
    return folder


def make(root, **settings):
    return ImageNetData(str(root), **{"batch_size": 4, "crop": 32, "resize": 36, "num_workers": 0} | settings)


def test_indices_are_the_1000_way_ones():
    assert len(class_indices()) == 1000
    assert [class_indices()[wnid] for wnid in (TENCH, SPRINGER, PARACHUTE, "n15075141")] == [0, 217, 701, 999]


def test_a_subset_of_the_classes_keeps_its_indices(root):
    data = make(root)
    assert (data.train_size, data.test_size, data.num_classes, data.input_shape) == (20, 5, 1000, (3, 32, 32))
    assert torch.cat([labels for _, labels in data.test_dataloader()]).tolist() == [0, 0, 701, 701, 701]
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert labels.bincount()[[0, 217, 701]].tolist() == [7, 7, 6]


def test_class_subset_head_numbers_the_classes_present(root):
    data = make(root, class_subset_head=True)
    assert data.num_classes == 3
    assert data.wnids == (TENCH, SPRINGER, PARACHUTE)
    assert torch.cat([labels for _, labels in data.val_dataloader()]).tolist() == [0, 0, 2, 2, 2]


def test_evaluation_equals_torchvision_transforms_one_by_one(root):
    images = torch.cat([images for images, _ in make(root, interpolation="bicubic").val_dataloader()])
    reference = transforms.Compose(
        [
            transforms.Resize(36, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    files = sorted((root / "val").rglob("*.JPEG"))
    assert torch.equal(images, torch.stack([reference(Image.open(file).convert("RGB")) for file in files]))


def batches(loader):
    return [(images, labels) for images, labels in loader]


def assert_same(first, second):
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_workers_make_the_same_batches_as_the_main_process(root):
    alone, two_workers = make(root).train_dataloader(), make(root, num_workers=2).train_dataloader()
    first = batches(alone)
    assert len(first) == 5
    assert_same(first, batches(two_workers))
    second = batches(alone)
    assert_same(second, batches(two_workers))
    assert not torch.equal(first[0][0], second[0][0])


def test_batches_are_a_function_of_the_seed(root):
    first = batches(make(root, seed=1).train_dataloader())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert_same(first, batches(make(root, seed=1).train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0][0], next(iter(make(root, seed=2).train_dataloader()))[0])


def test_an_image_has_another_augmentation_in_every_epoch(root):
    files = make(root).train_dataloader().files
    assert torch.equal(files[0, 3][0], files[0, 3][0])
    assert not torch.equal(files[0, 3][0], files[1, 3][0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_in_mid_epoch_equals_an_uninterrupted_run(train, root, num_workers):
    whole = train(make(root), max_epochs=3, checkpoint={"every_n_train_steps": 1})
    assert len(whole.batches) == 15
    for step in (7, 10):
        path = whole.checkpoints / f"step={step}.ckpt"
        resumed = train(make(root, num_workers=num_workers), max_epochs=3, ckpt_path=path)
        assert [batch[2] for batch in resumed.batches] == [batch[2] for batch in whole.batches[step:]]
        assert torch.equal(resumed.weights["linear.weight"], whole.weights["linear.weight"])


def test_a_run_stopped_inside_a_step_repeats_that_step(train, root):
    whole = train(make(root), max_epochs=2)
    checkpoint = {"save_on_exception": True, "every_n_epochs": 2}
    stopped = train(make(root), max_epochs=2, interrupt_at=(1, 2), checkpoint=checkpoint)
    resumed = train(make(root), max_epochs=2, ckpt_path=stopped.checkpoints / "step=7.ckpt")
    assert stopped.batches + resumed.batches == whole.batches


def test_workers_end_with_the_pass_that_started_them(root):
    batches = iter(make(root, num_workers=2).train_dataloader())
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_pass_given_up_in_the_middle_leaves_nothing_for_the_next_one(root):
    loader = make(root, num_workers=2).train_dataloader()
    next(iter(loader))
    second = batches(loader)
    whole = make(root).train_dataloader()
    batches(whole)
    assert_same(second, batches(whole))


def test_ranks_share_the_images(root, monkeypatch):
    whole = make(root, batch_size=20).train_dataloader()
    labels = next(iter(whole))[1].tolist()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        assert next(iter(make(root, batch_size=10).train_dataloader()))[1].tolist() == labels[rank::2]


def test_calibration_batches_are_training_images_in_a_fixed_order(root):
    first = list(make(root).calibration_batches(7))
    assert len(first) == 7  # more than the 5 there are: they start over
    assert_same(first, list(make(root).calibration_batches(7)))
    assert [len(labels) for _, labels in first] == [4] * 7
    evaluated = torch.cat([images for images, _ in ImageNetData.val_dataloader(make(train_as_val(root)))])
    assert all(any(torch.equal(image, other) for other in evaluated) for image in first[0][0])


def train_as_val(root):
    """A data set whose val/ holds root's training images."""
    folder = root.parent / "swapped"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to(root / "train", target_is_directory=True)
    return folder


def test_channels_last_and_mean_and_std_are_settings(root):
    images, _ = next(iter(make(root, mean=(0, 0, 0), std=(1, 1, 1), channels_last=True).val_dataloader()))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= images.min() < images.max() <= 1


def test_fingerprint_depends_on_names_and_sizes(root):
    first = make(root).fingerprint
    assert len(first) == 16
    assert make(root, batch_size=2).fingerprint == first
    file = root / "val" / TENCH / f"{TENCH}_0.JPEG"
    file.rename(file.with_name("other.JPEG"))
    renamed = make(root).fingerprint
    assert renamed != first
    file.with_name("other.JPEG").write_bytes(b"short")
    assert make(root).fingerprint not in (first, renamed)


def error_of(call):
    """The message of the DataError that call ends with; it has one line."""
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("keep", [0, 300])
def test_a_damaged_image_is_named(root, num_workers, keep):
    file = root / "val" / PARACHUTE / f"{PARACHUTE}_1.JPEG"
    file.write_bytes(file.read_bytes()[:keep])
    message = error_of(lambda: list(make(root, num_workers=num_workers).val_dataloader()))
    assert message.startswith(f"{file} is no readable image (")
    assert message.endswith("): get the file again or remove it")


def test_unknown_wordnet_id(root):
    (root / "train" / "n00000001").mkdir()
    message = error_of(lambda: make(root).setup())
    assert message == (
        f"{root / 'train' / 'n00000001'} is not named after one of ImageNet's 1,000 classes: rename or remove it"
    )


def test_missing_root(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    assert error_of(lambda: ImageNetData().setup()).startswith("ImageNet needs a place to be read from: set IMAGENET_")
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path / "nonexistent"))
    message = error_of(lambda: ImageNetData().setup())
    assert message.startswith(f"ImageNet not found: {tmp_path / 'nonexistent' / 'train'} does not exist; set IMAGENET_")


def test_empty_folders(root):
    (root / "train" / "n03888605").mkdir()
    assert "n03888605 holds no images (.jpeg, .jpg, .png, .webp): fill or remove it" in error_of(make(root).setup)


def test_split_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    assert error_of(make(tmp_path).setup).startswith(f"{tmp_path / 'train'} holds no classes: expected a folder with")


def test_class_subset_head_needs_every_validation_class_in_train(root):
    (root / "val" / "n03417042").mkdir()
    (root / "val" / PARACHUTE / f"{PARACHUTE}_0.JPEG").rename(root / "val" / "n03417042" / "a.JPEG")
    message = error_of(make(root, class_subset_head=True).setup)
    assert message.endswith("class_subset_head numbers the classes of train/, which lacks n03417042")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic': choose one of nearest, "),
        ({"crop": 64, "resize": 32}, "crop must be in 1..resize, got crop 64 and resize 32"),
        ({"std": (1, 0, 1)}, "mean and std need 3 values each, std positive"),
        ({"min_scale": 0.0}, r"min_scale must be in \(0, 1\], got 0.0"),
        ({"num_workers": -1}, "num_workers must not be negative, got -1"),
    ],
)
def test_unsuitable_settings(settings, message):
    with pytest.raises(DataError, match=message):
        ImageNetData(**settings)
