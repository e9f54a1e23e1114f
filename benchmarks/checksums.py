"""What checksums of a checkpoint's files cost: a save and a restore with and without them, taking turns.

    python benchmarks/checksums.py [--megabytes 750] [--rounds 5] [--folder DIR]

"Without" is the same code with sums of nothing: files are brought to disk and their sizes compared all the
same. Files are read back from the page cache, as just written ones are, which is the costliest case in
proportion: storage that is slower adds to both sides. The time inside the sums, and inside the same functions
without, is taken too: on a machine that others use it moves less than the whole. Beside it, the speed of the
sums that could be taken, over one of the files (xxh3 where the package is installed).
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=750, help="of parameters and two moments")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write, default the system's temporary one")
    options = parser.parse_args()

    import jax
    import jax.numpy as jnp

    from neojax.runs import integrity
    from neojax.runs.checkpoint import Checkpoints

    rows = options.megabytes * 1_000_000 // 3 // 8 // 4 // 1024
    keys = jax.random.split(jax.random.key(0), 24)
    names = [f"layer.{i}" for i in range(8)]
    trees = [{n: jax.random.normal(k, (rows, 1024)) for n, k in zip(names, keys[8 * i :])} for i in range(3)]
    state = {"params": trees[0], "opt_state": {"mu": trees[1], "nu": trees[2]}}
    jax.block_until_ready(state)
    like = jax.eval_shape(lambda: jax.tree.map(jnp.copy, state))

    def nothing(path: Path, sync: bool = False) -> str:
        with open(path, "rb", buffering=0) as f:
            if sync:
                os.fsync(f.fileno())
        return "00000000"

    kinds = {"with": integrity.checksum, "without": nothing}
    seconds: dict[str, dict[str, list[float]]] = {k: {"save": [], "restore": []} for k in kinds}
    inside: dict[str, dict[str, list[float]]] = {k: {"save": [], "restore": []} for k in kinds}
    spent = [0.0]

    def timed(function: Any) -> Any:
        def run(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent[0] += time.perf_counter() - start

        return run

    integrity.sums = timed(integrity.sums)
    integrity.Listing.fault = timed(integrity.Listing.fault)  # type: ignore[method-assign]
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        for turn in range(-1, options.rounds):  # the first is to warm up
            for kind in list(kinds)[:: 1 if turn % 2 else -1]:
                with mock.patch.object(integrity, "checksum", kinds[kind]):
                    run = folder / kind
                    shutil.rmtree(run, ignore_errors=True)
                    with Checkpoints(run, keep=1) as checkpoints:
                        spent[0] = 0.0
                        start = time.perf_counter()
                        checkpoints.save(1, state, {})
                        checkpoints.wait()
                        saved, in_save = time.perf_counter(), spent[0]
                        jax.block_until_ready(checkpoints.restore(1, like))
                        restored = time.perf_counter()
                    if turn >= 0:
                        seconds[kind]["save"].append(saved - start)
                        seconds[kind]["restore"].append(restored - saved)
                        inside[kind]["save"].append(in_save)
                        inside[kind]["restore"].append(spent[0] - in_save)
        listing = integrity.listing(folder / "with" / "checkpoints" / "1")
        files = folder / "with" / "checkpoints" / "1"
        largest = max((f for f in files.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        rates = speeds(largest)
    finally:
        shutil.rmtree(folder)
    results = {
        "bytes": listing.bytes,
        "files": len(listing.files),
        "rounds": seconds,
        "inside": inside,
        "sums_bytes_per_second": rates,
    }
    print(f"{len(listing.files)} files, {listing.bytes / 1e6:,.0f} MB")
    for what in ("save", "restore"):
        on, off = (statistics.median(seconds[k][what]) for k in ("with", "without"))
        cost, sync = (statistics.median(inside[k][what]) for k in ("with", "without"))
        share = (cost - sync) / (on - cost + sync)
        results[what] = {"with": on, "without": off, "sums": cost, "sizes_and_sync": sync, "share": share}
        print(
            f"{what:8} {on:6.2f} s with, {off:6.2f} s without; sums {cost:5.2f} s, without {sync:5.2f} s: "
            f"{100 * share:.1f} % of the rest"
        )
    for name, rate in rates.items():
        print(f"{name:12} {rate / 1e9:6.2f} GB/s, one thread, from the page cache")
    save("checksums", results)


def speeds(file: Path) -> dict[str, float]:
    """Bytes per second of sums over a file, the best of five."""
    import google_crc32c

    try:
        import xxhash
    except ImportError:
        xxhash = None

    def crc32c() -> None:
        crc = 0
        with open(file, "rb", buffering=0) as f:
            while chunk := f.read(1 << 20):
                crc = google_crc32c.extend(crc, chunk)

    def crc32() -> None:
        crc = 0
        with open(file, "rb", buffering=0) as f:
            while chunk := f.read(1 << 20):
                crc = zlib.crc32(chunk, crc)

    def xxh3() -> None:
        digest = xxhash.xxh3_64()
        with open(file, "rb", buffering=0) as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)

    found = {}
    for name, run in {"crc32c": crc32c, "zlib.crc32": crc32, **({"xxh3": xxh3} if xxhash else {})}.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        found[name] = file.stat().st_size / min(times)
    return found


if __name__ == "__main__":
    main()
