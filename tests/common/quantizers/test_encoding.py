"""Encoded tensors: bit streams of every width, groups, damaged lengths."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.quantizers import AffineEncoding


def encoding(codes, bits, axis=0, groups=None, scale=None, zero_point=None, offset=None):
    count = len(bits)
    return AffineEncoding(
        codes=codes,
        scale=torch.ones(count) if scale is None else torch.tensor(scale),
        zero_point=torch.zeros(count) if zero_point is None else torch.tensor(zero_point),
        offset=torch.zeros(count) if offset is None else torch.tensor(offset),
        axis=axis,
        group_sizes=groups or (codes.shape[axis],),
        bits=bits,
    )


def unpack(packed, like):
    return AffineEncoding.unpack_codes(packed, tuple(like.codes.shape), like.axis, like.group_sizes, like.bits)


@pytest.mark.parametrize("bits", range(17))
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (4, 3, 3, 1)])
def test_codes_of_every_width_come_back(bits, shape):
    codes = torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    codes.view(-1)[0] = 2**bits - 1
    original = encoding(codes, (bits,))
    packed = original.pack()
    assert packed.dtype == torch.uint8
    assert packed.numel() == original.code_bytes == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack(packed, original), codes)


def test_bit_stream_is_lowest_bit_first():
    # 3-bit codes 5, 2, 7: 101 010 111 written from the right: 11_010_101 and 1.
    assert encoding(torch.tensor([5, 2, 7]), (3,)).pack().tolist() == [0b11010101, 0b1]
    assert encoding(torch.tensor([0x1234, 0xFFFE]), (16,)).pack().tolist() == [0x34, 0x12, 0xFE, 0xFF]


def test_groups_of_different_widths_share_one_stream():
    # Output channels 0..1 at 3 bits, 2 pruned, 3..5 at 2 bits, 4 values each: 24 + 0 + 24 bits.
    codes = torch.cat([torch.arange(8).reshape(2, 4), torch.zeros(1, 4), torch.arange(12).reshape(3, 4) % 4]).int()
    original = encoding(codes, (3, 0, 2), groups=(2, 1, 3))
    assert original.code_bytes == 6
    assert torch.equal(unpack(original.pack(), original), codes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_groups_lie_along_any_axis(axis):
    codes = torch.randint(2, (4, 4, 4), dtype=torch.int32)
    codes.narrow(axis, 2, 2).mul_(7)
    original = encoding(codes, (1, 3), axis=axis, groups=(2, 2))
    assert original.code_bytes == 16  # 32 values of 1 bit, 32 of 3
    assert torch.equal(unpack(original.pack(), original), codes)


def test_decode_uses_each_groups_own_numbers():
    codes = torch.tensor([[0, 1], [2, 3], [0, 3]], dtype=torch.int32)
    original = encoding(
        codes, (2, 2), groups=(1, 2), scale=[0.5, 2.0], zero_point=[1.0, 2.0], offset=[0.25, 0.0]
    )
    assert original.decode().tolist() == [[-0.25, 0.25], [0.0, 2.0], [-4.0, 2.0]]


def test_a_pruned_group_decodes_to_zero():
    codes = torch.tensor([[1, 1], [0, 0]], dtype=torch.int32)
    original = encoding(codes, (1, 0), groups=(1, 1), scale=[1.0, 3.0], zero_point=[0.0, 5.0], offset=[0.0, 0.5])
    assert original.decode().tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_nothing_is_stored_for_a_tensor_of_no_bits():
    original = encoding(torch.zeros(5, dtype=torch.int32), (0,))
    assert original.pack().numel() == original.code_bytes == 0
    assert torch.equal(unpack(original.pack(), original), torch.zeros(5, dtype=torch.int32))


def test_codes_beyond_their_width_are_refused():
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.3, got 0\.\.4"):
        encoding(torch.tensor([0, 4]), (2,)).pack()


def test_negative_codes_are_refused():
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.3, got -1\.\.3"):
        encoding(torch.tensor([-1, 3]), (2,)).pack()


@pytest.mark.parametrize("length, word", [(2, "short"), (4, "long"), (0, "short")])
def test_a_stream_of_another_length_is_refused(length, word):
    with pytest.raises(UserError, match=f"packed codes are too {word}: {length} bytes for shape"):
        AffineEncoding.unpack_codes(torch.zeros(length, dtype=torch.uint8), (8,), 0, (8,), (3,))


def test_group_sizes_have_to_fill_the_axis():
    with pytest.raises(ValueError, match="group_sizes add up to 3, axis has 4"):
        encoding(torch.zeros(4, dtype=torch.int32), (1,), groups=(3,))


def test_every_group_needs_its_numbers():
    with pytest.raises(ValueError, match="for each of 2 groups"):
        encoding(torch.zeros(4, dtype=torch.int32), (1,), groups=(2, 2))


def test_stream_agrees_with_numpys_bit_order():
    codes = torch.randint(2, (37,), dtype=torch.int32)
    expected = np.packbits(codes.numpy().astype(np.uint8), bitorder="little")
    assert encoding(codes, (1,)).pack().tolist() == expected.tolist()
