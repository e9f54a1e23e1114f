"""A writer of TensorFlow V2 checkpoints, independent of the reader: small tables of several blocks, keys with
shared prefixes, values over any number of data files."""

import struct
from pathlib import Path

import numpy as np
from tfrecord_writer import field, masked_crc, varint

DTYPES = {"float32": 1, "int64": 9, "bfloat16": 14}
BLOCK = 10  # entries


def number(tag: int, value: int) -> bytes:
    return varint(tag << 3) + varint(value) if value else b""


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % 4 == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(entries: list[tuple[bytes, bytes]]) -> bytes:
    out, handles = b"", []

    def add(content: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        out += content + b"\0" + struct.pack("<I", masked_crc(content + b"\0"))
        return handle

    for i in range(0, len(entries), BLOCK):
        part = entries[i : i + BLOCK]
        handles.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(handles))
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write(prefix: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    """Writes `prefix`.index and its data files; returns `prefix`."""
    data = [b"" for _ in range(shards)]
    entries = [(b"", number(1, shards) + field(3, number(1, 1)))]
    for i, name in enumerate(sorted(tensors)):
        value = np.asarray(tensors[name])
        raw, shard = value.tobytes(), i % shards
        shape = b"".join(field(2, number(1, size)) for size in value.shape)
        entry = number(1, DTYPES[str(value.dtype)]) + field(2, shape) + number(3, shard)
        entry += number(4, len(data[shard])) + number(5, len(raw))
        entries.append((name.encode(), entry + bytes([6 << 3 | 5]) + struct.pack("<I", masked_crc(raw))))
        data[shard] += raw
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    prefix.with_name(prefix.name + ".index").write_bytes(table(entries))
    return prefix
