import hashlib
import os
import pickle

import numpy as np
import pytest
import torch

from data import CIFAR10Data, DataError

TRAIN, TEST = 50, 20


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (TRAIN, 32, 32, 3), dtype=np.uint8),
        "train_labels": np.arange(TRAIN) % 10,
        "test_images": rng.integers(0, 256, (TEST, 32, 32, 3), dtype=np.uint8),
        "test_labels": np.arange(TEST) % 10,
    }


def batches_of(arrays):
    """Name of a batch file -> ((N, 3072) uint8 in channel, row, column order; (N,) labels)."""
    flat = {split: arrays[f"{split}_images"].transpose(0, 3, 1, 2).reshape(-1, 3072) for split in ("train", "test")}
    parts = {f"data_batch_{i + 1}": slice(10 * i, 10 * i + 10) for i in range(5)}
    batches = {name: (flat["train"][part], arrays["train_labels"][part]) for name, part in parts.items()}
    return batches | {"test_batch": (flat["test"], arrays["test_labels"])}


def write_npz(folder, arrays):
    np.savez(folder / "cifar10.npz", **arrays)
    return folder / "cifar10.npz"


def write_binary(folder, arrays):
    target = folder / "cifar-10-batches-bin"
    target.mkdir()
    for name, (pixels, labels) in batches_of(arrays).items():
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (target / f"{name}.bin").write_bytes(records.tobytes())
    return target


def write_python(folder, arrays, protocol=4):
    target = folder / "cifar-10-batches-py"
    target.mkdir()
    for name, (pixels, labels) in batches_of(arrays).items():
        batch = {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": pixels, b"filenames": [b"a.png"]}
        (target / name).write_bytes(pickle.dumps(batch, protocol))
    return target


def make(root, **settings):
    return CIFAR10Data(str(root), **{"mean": (0, 0, 0), "std": (1, 1, 1), "padding": 0, "flip": False} | settings)


def split_of(loader):
    images = torch.cat([(images * 255).round().to(torch.uint8) for images, _ in loader])
    return images.permute(0, 2, 3, 1).numpy(), torch.cat([labels for _, labels in loader]).numpy()


@pytest.mark.parametrize("write", [write_npz, write_binary, write_python])
@pytest.mark.parametrize("inside", [False, True])
def test_every_layout_gives_the_same_data(tmp_path, arrays, write, inside):
    path = write(tmp_path, arrays)
    data = make(path if inside else tmp_path, batch_size=10)
    assert (data.name, data.num_classes, data.input_shape) == ("cifar10", 10, (3, 32, 32))
    assert (data.train_size, data.test_size) == (TRAIN, TEST)
    images, labels = split_of(data.test_dataloader())
    np.testing.assert_array_equal(images, arrays["test_images"])
    np.testing.assert_array_equal(labels, arrays["test_labels"])
    train = {image.tobytes() for image in split_of(data.train_dataloader())[0]}
    assert train == {image.tobytes() for image in arrays["train_images"]}
    content = b"".join(
        np.ascontiguousarray(arrays[f"{split}_images"].transpose(0, 3, 1, 2)).tobytes()
        + arrays[f"{split}_labels"].astype("<i8").tobytes()
        for split in ("test", "train")
    )
    assert data.fingerprint == hashlib.sha256(content).hexdigest()[:16]


@pytest.mark.parametrize("protocol", [3, 5])
def test_pickles_of_other_protocols(tmp_path, arrays, protocol):
    write_python(tmp_path, arrays, protocol)
    np.testing.assert_array_equal(split_of(make(tmp_path).test_dataloader())[0], arrays["test_images"])


def test_root_comes_from_the_environment(tmp_path, arrays, monkeypatch):
    write_npz(tmp_path, arrays)
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path))
    assert CIFAR10Data().train_size == TRAIN


def test_labels_of_any_integer_type_are_taken(tmp_path, arrays):
    write_npz(tmp_path, arrays | {"test_labels": arrays["test_labels"].astype(np.uint8)})
    assert split_of(make(tmp_path).test_dataloader())[1].tolist() == arrays["test_labels"].tolist()


def test_subset(tmp_path, arrays):
    write_npz(tmp_path, arrays)
    data = make(tmp_path, subset=7, batch_size=7)
    assert (data.train_size, data.test_size) == (7, TEST)


def error_of(root):
    """The message of the DataError that reading ends with; it has one line."""
    with pytest.raises(DataError) as caught:
        CIFAR10Data(root and str(root)).setup()
    assert "\n" not in str(caught.value)
    return str(caught.value)


EXPECTED = "a folder with cifar10.npz, cifar-10-batches-bin/ or cifar-10-batches-py/"


def test_no_root(monkeypatch):
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    assert error_of(None) == f"CIFAR-10 needs a place to be read from: set CIFAR10_DIR or root to {EXPECTED}"


def test_missing_root(tmp_path):
    path = tmp_path / "nonexistent"
    assert error_of(path) == f"CIFAR-10 not found: {path} does not exist; set CIFAR10_DIR or root to {EXPECTED}"


def test_empty_root(tmp_path):
    assert error_of(tmp_path) == f"CIFAR-10 not found in {tmp_path}: expected {EXPECTED}"


@pytest.mark.parametrize("keep", [0, 10, 5000, -30])
def test_truncated_npz(tmp_path, arrays, keep):
    path = write_npz(tmp_path, arrays)
    path.write_bytes(path.read_bytes()[:keep])
    message = error_of(path)
    assert message.startswith(f"{path} is damaged or no npz file (")
    assert message.endswith("): write or copy it again")


def test_npz_with_damaged_content(tmp_path, arrays):
    path = write_npz(tmp_path, arrays)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert "is damaged or no npz file (BadZipFile: Bad CRC-32" in error_of(path)


def test_an_array_in_place_of_the_npz(tmp_path):
    with (tmp_path / "cifar10.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "is damaged or no npz file (" in error_of(tmp_path)


def test_npz_with_objects_is_not_unpickled(tmp_path, arrays):
    write_npz(tmp_path, arrays | {"train_labels": np.array([print] * TRAIN, dtype=object)})
    assert "Object arrays cannot be loaded when allow_pickle=False" in error_of(tmp_path)


def test_npz_without_a_key(tmp_path, arrays):
    del arrays["test_labels"], arrays["train_images"]
    path = write_npz(tmp_path, arrays)
    assert error_of(tmp_path) == (
        f"{path} lacks train_images, test_labels: expected train_images, train_labels, test_images, test_labels"
    )


@pytest.mark.parametrize(
    "key, change, message",
    [
        (
            "train_images",
            lambda a: a.transpose(0, 3, 1, 2),
            "train_images must be (N, 32, 32, 3) uint8, got (50, 3, 32",
        ),
        ("test_images", lambda a: a / 255, "test_images must be (N, 32, 32, 3) uint8, got (20, 32, 32, 3) float64"),
        ("test_labels", lambda a: a.astype(float), "test_labels must be (N,) integers, got (20,) float64"),
        ("test_labels", lambda a: np.eye(10, dtype=int)[a], "test_labels must be (N,) integers, got (20, 10) int64"),
        ("train_labels", lambda a: a[:-1], "expected one int64 label for each of 50 images, got (49,) int64"),
        ("train_labels", lambda a: a - 1, "cifar10 training set: labels must be 0..9, found -1..8"),
    ],
)
def test_npz_with_wrong_content(tmp_path, arrays, key, change, message):
    write_npz(tmp_path, arrays | {key: change(arrays[key])})
    assert message in error_of(tmp_path)


@pytest.mark.parametrize("write, suffix", [(write_binary, ".bin"), (write_python, "")])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_damaged_batch_files(tmp_path, arrays, write, suffix, name):
    path = write(tmp_path, arrays) / f"{name}{suffix}"
    whole = path.read_bytes()
    for damaged in (whole[:-1], b""):
        path.write_bytes(damaged)
        assert error_of(tmp_path).startswith(str(path))
    path.unlink()
    message = error_of(tmp_path)
    assert str(path.with_suffix("")) in message


def test_binary_batch_cut_between_two_images(tmp_path, arrays):
    path = write_binary(tmp_path, arrays) / "data_batch_5.bin"
    path.write_bytes(path.read_bytes()[: 9 * 3073])
    assert "training batches differ in size, [9, 10] images: get the data set again" in error_of(tmp_path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize("content", [Malicious(), {b"data": Malicious(), b"labels": []}])
def test_no_code_runs_from_a_batch_file(tmp_path, arrays, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = write_python(tmp_path, arrays) / "data_batch_1"
    path.write_bytes(pickle.dumps(content))
    assert "it asks for posix.mkdir, which no CIFAR-10 file needs" in error_of(tmp_path)
    assert not (tmp_path / "made by a pickle").exists()


@pytest.mark.parametrize(
    "content",
    [[1, 2], {b"labels": [1]}, {b"data": np.zeros((2, 3072)), b"labels": [1, 1]}, {b"data": b"x", b"labels": [1]}],
)
def test_pickles_of_something_else(tmp_path, arrays, content):
    path = write_python(tmp_path, arrays) / "data_batch_1"
    path.write_bytes(pickle.dumps(content))
    assert error_of(tmp_path).startswith(f"{path}")


@pytest.mark.skipif("CIFAR10_DIR" not in os.environ, reason="CIFAR10_DIR is not set: real CIFAR-10 is not checked")
def test_the_real_data_set():
    data = CIFAR10Data(padding=0, flip=False, mean=(0, 0, 0), std=(1, 1, 1), eval_batch_size=1000, drop_last=False)
    assert (data.train_size, data.test_size) == (50_000, 10_000)
    assert torch.cat([labels for _, labels in data.test_dataloader()]).bincount().tolist() == [1000] * 10
    total, square, labels = torch.zeros(3), torch.zeros(3), []
    for images, batch_labels in data.train_dataloader():
        total += images.sum((0, 2, 3)) / 1024
        square += (images**2).sum((0, 2, 3)) / 1024
        labels.append(batch_labels)
    assert torch.cat(labels).bincount().tolist() == [5000] * 10
    mean = total / 50_000
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    std = (square / 50_000 - mean**2).sqrt()
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4, rtol=0)
