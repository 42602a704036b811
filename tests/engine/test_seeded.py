import struct

import torch

from worker.cpu.seeded import murmur_hash32


def plain(seed, position, column):
    """MurmurHash3_x86_32 over the 16 bytes, from its published description."""
    data = struct.pack("<QII", seed, position, column)
    state = 0
    for (word,) in struct.iter_unpack("<I", data):
        scaled = word * 0xCC9E2D51 & 0xFFFFFFFF
        turned = (scaled << 15 | scaled >> 17) & 0xFFFFFFFF
        state ^= turned * 0x1B873593 & 0xFFFFFFFF
        state = (state << 13 | state >> 19) & 0xFFFFFFFF
        state = state * 5 + 0xE6546B64 & 0xFFFFFFFF
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state ^= state >> shift
        state = state * factor & 0xFFFFFFFF
    return state ^ state >> 16


def test_the_hash_of_every_row_and_column_is_murmurs():
    seeds, positions, columns = [0, 1, 42, 2**31 - 1, 2**63 - 1], [0, 7, 4095, 9, 1], [0, 1, 2047, 151935]
    found = murmur_hash32(
        torch.tensor(seeds, dtype=torch.int64).to(torch.uint64), torch.tensor(positions), torch.tensor(columns)
    )
    assert found.dtype == torch.uint32
    expected = [[plain(s, p, c) for c in columns] for s, p in zip(seeds, positions, strict=True)]
    assert found.tolist() == expected
