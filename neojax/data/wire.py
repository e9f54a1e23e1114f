"""What TensorFlow's file formats share: protobuf's wire format and masked CRC-32C checksums."""

from collections.abc import Iterator

import google_crc32c
import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}


def masked_crc(data: bytes | np.ndarray) -> int:
    """The CRC-32C of `data`, rotated and offset as LevelDB and TFRecord store it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at offset `at`: (value, offset behind it). Raises `ValueError` where it has no end."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a varint without end")


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """The fields of a message: (number, wire type, value), fixed-width values as bytes. Raises
    `ValueError`."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = varint(data, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError(f"field {number} runs over the end of its message")
        yield number, kind, data[at : at + size]
        at += size


def message(data: bytes, number: int) -> bytes:
    """All occurrences of the embedded message `number` joined, which is how protobuf merges them."""
    return b"".join(
        v for n, kind, v in fields(data) if n == number and isinstance(v, bytes) and kind == BYTES
    )


def varint_ends(data: np.ndarray) -> np.ndarray:
    """The offset of the last byte of every varint in uint8 [bytes]. Raises `ValueError`."""
    last = np.flatnonzero(data < 0x80)
    if len(data) and (not len(last) or last[-1] != len(data) - 1):
        raise ValueError("a varint without end")
    if len(data) and (last[0] > 9 or (last[1:] - last[:-1]).max(initial=0) > 10):
        raise ValueError("a varint of over ten bytes")
    return last


def varints(data: np.ndarray) -> np.ndarray:
    """Decodes uint8 [bytes] of varints, one after the other, to int64 [values]. Raises `ValueError`."""
    last = varint_ends(data)
    first = np.concatenate([np.zeros(1, last.dtype), last[:-1] + 1])[: len(last)]
    more = last - first
    values = (data[first] & 0x7F).astype(np.int64)
    for i in range(1, int(more.max(initial=0)) + 1):
        longer = np.flatnonzero(more >= i)
        values[longer] |= (data[first[longer] + i] & 0x7F).astype(np.int64) << np.int64(7 * i)
    return values
