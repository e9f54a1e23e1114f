"""Files of records, read whole: JSON lines, TSV, CSV, and lines of a label and a text."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from neojax.data.encode import to_bytes
from neojax.errors import NeojaxError
from neojax.storage.remote import place

KINDS = (".jsonl", ".json", ".tsv", ".csv", ".txt", ".conll")


class Record(NamedTuple):
    """One record of a file: where it stands, for messages, and its values by the names of the columns; by
    their numbers, as "0", where the file has no header."""

    where: str
    values: dict[str, Any]


def read_records(path: str | Path, header: bool = True, skips_short: bool = False) -> list[Record]:
    """All records of a file, by its suffix: `.jsonl` (or `.json`, a list of objects), `.tsv` (no quoting, as
    GLUE has it) and `.csv`, whose first line is their `header` where they have one, and `.txt`, a label, a
    blank and a text in each line. `skips_short`: lines with too few columns are left out, where they are an
    error else. Raises `NeojaxError`."""
    path = place(path)
    if path.suffix not in KINDS:
        raise NeojaxError(f"{path}: rows of labelled text are files {', '.join(KINDS)}; name one of these")
    text = _text(path)
    match path.suffix:
        case ".json":
            found = listed(path, _parsed(path, text))
        case ".jsonl":
            found = _json_lines(path, text)
        case ".conll":
            found = _words(path, text)
        case ".txt":
            found = _lines(path, text)
        case _:
            found = _table(path, text, header, skips_short)
    records = list(found)
    if not records:
        raise NeojaxError(f"{path} holds no row")
    return records


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise NeojaxError(f"cannot read {path}: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise NeojaxError(f"{path}: byte {e.start} is not UTF-8; save the file as UTF-8") from None


def with_labels(path: str | Path, records: list[Record]) -> list[Record]:
    """`records` of the file `path`; where they have no `label`, and a file STEM-labels.lst lies beside it, as
    of PIQA, with that of each, a line. Raises `NeojaxError` where there are not as many."""
    path = place(path)
    labels = path.with_name(f"{path.stem}-labels.lst")
    if "label" in records[0].values or not labels.is_file():
        return records
    own = [line.strip() for line in _text(labels).split("\n") if line.strip()]
    if len(own) != len(records):
        raise NeojaxError(f"{labels} has {len(own)} labels, and {path} {len(records)} rows")
    return [Record(r.where, {**r.values, "label": label}) for r, label in zip(records, own)]


def read_json(path: str | Path) -> Any:
    """What a file of JSON holds. Raises `NeojaxError`."""
    path = place(path)
    return _parsed(path, _text(path))


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise NeojaxError(f"{path} is not valid JSON: {e}") from None


def listed(path: str | Path, values: Any) -> Iterator[Record]:
    """The records of a list of objects. Raises `NeojaxError` where it is none."""
    if not isinstance(values, list):
        raise NeojaxError(f"{path}: expected a list of objects, got {type(values).__name__}")
    for number, value in enumerate(values, 1):
        yield record_of(f"{path}, row {number}", value)


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield record_of(f"{path}:{number}", json.loads(line))
            except (ValueError, RecursionError) as e:
                raise NeojaxError(f"{path}:{number}: not valid JSON: {e}") from None


def record_of(where: str, value: Any) -> Record:
    """An object of JSON as a record, its texts mended where they have no encoding. Raises `NeojaxError`
    where it is none."""
    if not isinstance(value, dict):
        raise NeojaxError(f"{where}: expected an object with keys and values, got {type(value).__name__}")
    return Record(where, {key: _encodable(own) for key, own in value.items()})


def _encodable(value: Any) -> Any:
    """A value of JSON whose texts have an encoding: half of a surrogate pair becomes U+FFFD."""
    if isinstance(value, str):
        return to_bytes(value)[0]
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    if isinstance(value, dict):
        return {key: _encodable(own) for key, own in value.items()}
    return value


def _lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            label, blank, rest = line.strip().partition(" ")
            if not blank:
                raise NeojaxError(f"{path}:{number}: expected a label, a blank and a text, got {line[:40]!r}")
            yield Record(f"{path}:{number}", {"label": label, "text": rest})


def _words(path: Path, text: str) -> Iterator[Record]:
    tokens: list[str] = []
    tags: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), ""], 1):
        columns = line.split()
        if columns and columns[0] == "-DOCSTART-":
            continue
        if len(columns) == 1:
            raise NeojaxError(f"{path}:{number}: expected a word and its tag, got {line[:40]!r}")
        if columns:
            first = first if tokens else number
            tokens.append(columns[0])
            tags.append(columns[-1])
        elif tokens:
            yield Record(f"{path}:{first}", {"tokens": tokens, "tags": tags})
            tokens, tags = [], []


def _table(path: Path, text: str, header: bool, skips_short: bool) -> Iterator[Record]:
    if path.suffix == ".csv":
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    else:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    names: list[str] | None = None
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if not row:
                continue
            if header and names is None:
                names = [name.strip() for name in row]
                continue
            own = names or [str(i) for i in range(len(row))]
            if len(row) < len(own) and skips_short:
                continue
            if len(row) < len(own):
                raise NeojaxError(f"{where} has {len(row)} columns, expected {len(own)}: {', '.join(own)}")
            yield Record(where, dict(zip(own, row)))
    except csv.Error as e:
        raise NeojaxError(f"{path}:{rows.line_num}: {e}") from None
    finally:
        csv.field_size_limit(limit)
