"""A writer of gpt-neo's TFRecords, independent of the reader: plain protobuf, and CRC-32C bit by bit."""

import struct
from pathlib import Path

import numpy as np


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    value %= 2**64
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def int64_list(tokens, packed: bool = True) -> bytes:
    if packed:
        return field(1, b"".join(varint(int(t)) for t in tokens)) if len(tokens) else b""
    return b"".join(varint(1 << 3) + varint(int(t)) for t in tokens)


def example(features: dict[str, bytes]) -> bytes:
    """`features`: name -> serialised Feature."""
    entries = b"".join(field(1, field(1, name.encode()) + field(2, f)) for name, f in features.items())
    return field(1, entries)


def tokens_example(tokens, packed: bool = True) -> bytes:
    return example({"text": field(3, int64_list(tokens, packed))})


def frame(data: bytes) -> bytes:
    size = struct.pack("<Q", len(data))
    return size + struct.pack("<I", masked_crc(size)) + data + struct.pack("<I", masked_crc(data))


def write(path: Path, examples, packed: bool = True) -> Path:
    """Writes a file of examples, each a list of token ids."""
    path.write_bytes(b"".join(frame(tokens_example(np.asarray(e), packed)) for e in examples))
    return path
