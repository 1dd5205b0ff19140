"""Level tables: encodings, and the projection onto sorted levels."""

import pytest
import torch

from common.errors import UserError
from common.quantizers.levels import LevelsEncoding


def encoding(codes, levels, bits=(2,), axis=0, groups=None):
    groups = groups or (codes.shape[axis] if codes.dim() else 1,)
    return LevelsEncoding(torch.as_tensor(codes, dtype=torch.int32), torch.tensor(levels), axis, groups, bits)


def unpack(packed, like):
    return LevelsEncoding.unpack_codes(packed, tuple(like.codes.shape), like.axis, like.group_sizes, like.bits)


def test_decode_looks_codes_up_in_one_table():
    original = encoding(torch.tensor([[3, 0], [1, 2]]), [-1.0, 0.0, 1.5, 2.0])
    assert original.decode().tolist() == [[2.0, -1.0], [0.0, 1.5]]
    assert original.decode().dtype == torch.float32
    assert encoding(torch.tensor(2), [-1.0, 0.0, 1.5, 2.0]).decode().tolist() == 1.5


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_decode_gives_each_group_its_own_row(axis):
    codes = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    original = encoding(codes, [[-1.0, 1.0], [10.0, 20.0]], bits=(1, 1), axis=axis, groups=(1, 2))
    expected = torch.empty(3, 3)
    for i in range(3):
        for j in range(3):
            group = min((i, j, j)[axis], 1)
            expected[i, j] = [[-1.0, 1.0], [10.0, 20.0]][group][codes[i, j]]
    assert torch.equal(original.decode(), expected)


def test_a_pruned_group_decodes_to_zero_and_stores_nothing():
    original = encoding(torch.tensor([[1, 1], [0, 0]]), [[0.5, 3.0], [7.0, 8.0]], bits=(1, 0), groups=(1, 1))
    assert original.decode().tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert original.code_bytes == original.pack().numel() == 1


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3, 3, 1)])
def test_codes_of_every_width_come_back(bits, shape):
    codes = torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    original = encoding(codes, [float(i) for i in range(2**bits)], bits=(bits,))
    assert original.pack().dtype == torch.uint8
    assert original.pack().numel() == original.code_bytes == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack(original.pack(), original), codes)


def test_groups_of_different_widths_share_one_stream():
    codes = torch.cat([torch.arange(8).reshape(2, 4), torch.arange(4).reshape(1, 4)])
    original = encoding(codes, [[0.0] * 8, [0.0] * 8], bits=(3, 2), groups=(2, 1))
    assert original.code_bytes == 4  # 8 codes of 3 bits, 4 of 2
    assert torch.equal(unpack(original.pack(), original), codes.int())


def test_codes_beyond_their_width_are_refused():
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.3, got 0\.\.4"):
        encoding(torch.tensor([0, 4]), [0.0] * 5).pack()


def test_a_stream_of_another_length_is_refused():
    with pytest.raises(UserError, match="packed codes are too short: 1 bytes"):
        LevelsEncoding.unpack_codes(torch.zeros(1, dtype=torch.uint8), (8,), 0, (8,), (2,))


def test_group_sizes_have_to_fill_the_axis():
    with pytest.raises(ValueError, match="group_sizes add up to 3, axis has 4"):
        encoding(torch.zeros(4), [0.0, 1.0], groups=(3,))


def test_every_group_needs_a_width():
    with pytest.raises(ValueError, match="for each of 2 groups"):
        encoding(torch.zeros(4), [0.0, 1.0], groups=(2, 2))


def test_every_group_needs_a_table():
    with pytest.raises(ValueError, match="for each of 2 groups"):
        encoding(torch.zeros(4), [[0.0, 1.0]], bits=(1, 1), groups=(2, 2))
