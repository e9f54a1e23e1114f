import gzip
import io
import json
import lzma
import tarfile
import zipfile
from random import Random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from neojax.data import memory, readers
from neojax.data.encode import decode
from neojax.data.inputs import expand
from neojax.data.readers import Record, Skip, read
from neojax.errors import NeojaxError

TEXTS = ["first\n", "zweite Zeile: äöü 🙂", "x"]
JSONL = "".join(json.dumps({"text": t, "meta": 1}) + "\n" for t in TEXTS).encode()


def records(path, text_key="text"):
    return list(read(path, text_key, lambda n: None))


def texts(path, text_key="text"):
    found = records(path, text_key)
    assert all(isinstance(r, Record) for r in found), found
    return [json.loads(r.data)[text_key] if r.is_json else r.data.decode() for r in found]


def zstd_in_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


COMPRESS = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd_in_frames}


def tar_of(members: dict[str, bytes], mode="w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet_of(column: list) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"id": range(len(column)), "text": column}), buffer, row_group_size=2
    )
    return buffer.getvalue()


CASES = {
    "a.txt": TEXTS[1].encode(),
    "a.md": TEXTS[1].encode(),
    "a.jsonl": JSONL,
    "bom.jsonl": b"\xef\xbb\xbf" + JSONL,
    "no-newline.jsonl": JSONL.rstrip(),
    "blank-lines.jsonl": JSONL.replace(b"\n", b"\n\r\n \n"),
    "a.parquet": parquet_of(TEXTS),
    "a.tar": tar_of({"d/1.txt": TEXTS[0].encode(), "d/2.txt": TEXTS[1].encode(), "3.txt": TEXTS[2].encode()}),
    "a.tar.gz": tar_of({"a.jsonl": JSONL}, "w:gz"),
    "a.tgz": tar_of({"a.jsonl": JSONL}, "w:gz"),
    "a.tar.xz": tar_of({"a.jsonl": JSONL}, "w:xz"),
    "a.tar.zst": zstd_in_frames(tar_of({"a.jsonl.zst": zstd_in_frames(JSONL)})),
    "a.zip": zip_of({"a/b.jsonl": JSONL}),
    "zips.tar": tar_of({"a.zip": zip_of({"a.parquet": parquet_of(TEXTS)})}),
    "a.json.gz": gzip.compress(JSONL),  # as C4 is kept
    "a.zst": zstandard.compress(JSONL),  # as the Pile's archives hold it
    **{f"a.jsonl.{c}": f(JSONL) for c, f in COMPRESS.items()},
    **{f"a.txt.{c}": f(TEXTS[1].encode()) for c, f in COMPRESS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_every_container_gives_its_documents(tmp_path, name):
    (tmp_path / name).write_bytes(CASES[name])
    single = name.startswith(("a.txt", "a.md"))
    assert texts(tmp_path / name) == (TEXTS[1:2] if single else TEXTS)


@pytest.mark.parametrize("name,n", [("blns.txt", 1), ("blns.txt.tar.gz", 1), ("blns.txt.zip", 1)])
def test_real_archives_hold_the_same_text(shared_data, name, n):
    archives = shared_data / "archives"
    assert texts(archives / name) == [(archives / "blns.txt").read_bytes().decode()] * n


def test_the_real_tar_of_zst_and_tar_of_texts_are_read(shared_data):
    found = texts(shared_data / "archives" / "blns.jsonl.zst.tar")
    blns = (shared_data / "archives" / "blns.txt").read_bytes().decode()
    assert len(found) == 8 and found[:4] == found[4:] and blns in found
    assert len(texts(shared_data / "archives" / "testtarfile.tar")) == 4


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.tar", "a.tar.gz", "a.zip", "a.parquet"]
)
def test_a_cut_off_file_is_reported_and_never_taken_for_whole(tmp_path, name):
    # A tar ends in kilobytes of padding: cut it inside its second member.
    (tmp_path / name).write_bytes(CASES[name][: 1600 if name == "a.tar" else len(CASES[name]) * 2 // 3])
    found = records(tmp_path / name)
    assert any(isinstance(r, Skip) and "cannot be read" in r.reason for r in found), found


@pytest.mark.parametrize("name", CASES)
def test_damage_anywhere_is_reported_and_never_ends_the_run(tmp_path, name):
    random = Random(name)
    for _ in range(40):
        content = bytearray(CASES[name])
        for _ in range(random.choice((1, 1, 3))):
            if len(content) < 2:
                break
            at = random.randrange(len(content) - 1)
            how = random.choice(("flip", "cut out", "cut off"))
            if how == "flip":
                content[at] ^= 1 << random.randrange(8)
            elif how == "cut out":
                del content[at : at + random.randrange(1, 20)]
            else:
                del content[at + 1 :]
        (tmp_path / name).write_bytes(content)
        for record in records(tmp_path / name):
            if isinstance(record, Record):
                decode(record, "text")


def test_a_zip_whose_directory_points_before_its_start_is_reported(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.txt", "x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        content = inner.getvalue()[12:]  # what points to places in it now points 12 bytes too far
        info = tarfile.TarInfo("a.zip")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    (skip,) = records(tmp_path / "a.tar")
    assert isinstance(skip, Skip) and skip.reason.startswith("cannot be read: ")


def test_one_damaged_member_does_not_cost_the_others(tmp_path):
    good = TEXTS[0].encode()
    members = {
        "1.txt": good,
        "2.txt.gz": b"nonsense",
        "3.jsonl.zst": zstd_in_frames(JSONL)[:-3],
        "4.txt": good,
    }
    for name, data in {"a.tar": tar_of(members), "a.zip": zip_of(members)}.items():
        (tmp_path / name).write_bytes(data)
        found = records(tmp_path / name)
        assert [r.where.rsplit("/", 1)[1] for r in found if isinstance(r, Skip)] == [
            "2.txt.gz",
            "3.jsonl.zst",
        ]
        assert [r.data for r in found if isinstance(r, Record) and not r.is_json] == [good, good]


def test_binary_files_and_other_keys_are_passed_over_with_a_reason(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "a.parquet").write_bytes(parquet_of(["x", None, "y"]))
    assert "not text" in records(tmp_path / "a.bin")[0].reason
    assert [isinstance(r, Record) for r in records(tmp_path / "a.parquet")] == [True, False, True]
    assert "id, text" in records(tmp_path / "a.parquet", "content")[0].reason


def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + "é".encode() + mark)
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(mark + b"x"))
    (tmp_path / "a.json").write_bytes(mark + b'{"text": "y"}\n{"text": "z"}\n')
    assert texts(tmp_path / "a.txt") == ["é\ufeff"]  # only in front
    assert texts(tmp_path / "a.md.gz") == ["x"]
    assert texts(tmp_path / "a.json") == ["y", "z"]


def test_a_document_longer_than_the_limit_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "longest_document", lambda: 100_000)
    monkeypatch.setattr(readers, "_CHUNK", 1000)
    long = "x" * 100_001
    for name in CASES:
        text = CASES[name]
        (tmp_path / name).write_bytes(text)
        assert len(texts(tmp_path / name)) == len(records(tmp_path / name)), name  # none of them is long
    lines = [json.dumps({"text": t}) for t in ("a", long, "b")]
    (tmp_path / "l.jsonl").write_text("\n".join([*lines, '{"text": "' + long]))
    (tmp_path / "l").write_text("\n".join(lines))
    (tmp_path / "l.json").write_text(lines[1])
    (tmp_path / "long.txt").write_text(long)
    (tmp_path / "fits.txt").write_text(long[1:])
    table = pyarrow.table({"text": ["a", long, "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "l.parquet")
    with tarfile.open(tmp_path / "l.tar.gz", "w:gz") as archive:
        for name in ("long.txt", "l.jsonl", "fits.txt"):
            archive.add(tmp_path / name, name)
    found = {
        name: ["long" if isinstance(r, Skip) else r.data[-9:] for r in records(tmp_path / name)]
        for name in ("l.jsonl", "l", "l.json", "long.txt", "fits.txt", "l.parquet", "l.tar.gz")
    }
    a, b, fits = b'xt": "a"}\n', b'xt": "b"}\n', b"x" * 9
    assert found == {
        "l.jsonl": [a[-9:], "long", b[-9:], "long"],
        "l": [a[-9:], "long", b[:-1][-9:]],
        "l.json": ["long"],
        "long.txt": ["long"],
        "fits.txt": [fits],
        "l.parquet": [b"a", "long", b"b"],
        "l.tar.gz": ["long", a[-9:], "long", b[-9:], "long", fits],
    }
    reasons = {r.reason for name in found for r in records(tmp_path / name) if isinstance(r, Skip)}
    assert reasons == {readers._too_long()} and "100,000 bytes" in readers._too_long()


def test_a_file_that_memory_does_not_hold_is_told(tmp_path, monkeypatch):
    def gather(*_):
        raise MemoryError

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(readers, "_gather", gather)
    (skip,) = records(tmp_path / "a.txt")
    assert skip == Skip(str(tmp_path / "a.txt"), "needs more memory than there is")


def test_a_document_is_no_longer_than_a_store_can_count_or_memory_holds(monkeypatch):
    assert 1 << 20 < memory.longest_document() <= 2**31 - 2
    monkeypatch.setattr(memory, "memory", lambda: 1 << 50)
    assert memory.longest_document.__wrapped__() == 2**31 - 2
    monkeypatch.setattr(memory, "memory", lambda: 8_000_000)
    assert memory.longest_document.__wrapped__() == 1_000_000


def test_json_that_is_not_lines_is_one_document(tmp_path):
    document = json.dumps({"a": [1, 2]}, indent=2)
    (tmp_path / "a.json").write_text(document)
    assert texts(tmp_path / "a.json") == [document]


def test_inputs_are_files_folders_and_globs_each_file_once_in_order(tmp_path):
    for name in ("b/2.txt", "b/1.txt", "b/c/3.py", "b/.git/4.txt", "b/__pycache__/5.pyc", "6.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(*inputs):
        return [p.name for p in expand([tmp_path / i for i in inputs])[0]]

    assert names("6.txt", "b") == ["6.txt", "1.txt", "2.txt", "3.py"]
    assert names("b/*.txt", "b") == ["1.txt", "2.txt", "3.py"]
    assert names("**/*.py", "6.txt", "6.txt") == ["3.py", "6.txt"]
    for missing in ("no.txt", "*.none"):
        with pytest.raises(NeojaxError, match=missing.replace("*", r"\*")):
            expand([tmp_path / missing])


def test_progress_adds_up_to_the_size_of_the_file(tmp_path):
    for name in ("a.jsonl", "a.jsonl.zst", "a.zip"):
        (tmp_path / name).write_bytes(CASES[name])
        told: list[int] = []
        list(read(tmp_path / name, "text", told.append))
        assert sum(told) == len(CASES[name])
