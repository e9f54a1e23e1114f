"""`neojax prepare --format sft`: records of prompts and answers to token stores, and which tokens are learnt.

The folder is as `neojax prepare` writes it, with a store `SPLIT_scored` beside each, of a one for every token
that is to be learnt and a zero for every other, and the chat template where records are conversations.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from neojax.data import tokenizer as tokenizers
from neojax.data.chat_template import DEFAULT, FILE, ChatTemplate, find
from neojax.data.completions import encoded, pieces_of, uses_template
from neojax.data.encode import split_of
from neojax.data.prepare import VALIDATION, Counts, begun, fill, outside
from neojax.data.readers import Skip
from neojax.data.records import Record, read_records
from neojax.data.store import SPLITS, StoreWriter
from neojax.errors import NeojaxError
from neojax.lock import Lock
from neojax.version import __version__

FORMAT = "sft"
_GROUP = 512  # records encoded together


def prepare_sft(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path,
    chat_template: str | Path | None = None,
    validation: float = VALIDATION,
    eod: str | None = None,
    force: bool = False,
) -> Counts:
    """Encodes the records of `inputs` (`.jsonl`, `.json`) into the folder `out`.

    A record has a prompt and its completion, messages, or an instruction and its output
    (`completions.FORMS`). Each ends with the end of a document, of the tokenizer or `eod`. Conversations are
    written by `chat_template`, a file; or the one beside the tokenizer; or a plain one. Records with nothing
    to say are left out and counted. Raises `NeojaxError`, which names the record, for any other that cannot
    be encoded.
    """
    if not 0 <= validation < 1:
        raise NeojaxError(f"--validation {validation}: expected a share of the records, from 0 to below 1")
    out, files, skipped = outside(inputs, out)
    taken = [file for file in files if file.suffix in (".jsonl", ".json")]
    skipped += [Skip(str(file), "is neither .jsonl nor .json") for file in files if file not in taken]
    if not taken:
        raise NeojaxError("--format sft: no input is a .jsonl or .json file; give one with a record a line")
    own = tokenizers.load(tokenizer)
    end, end_id = tokenizers.end_of_document(own, eod)
    template = _template(Path(tokenizer), chat_template, own, end)
    with Lock(out):
        counts = begun(out, skipped, force)
        staging = out / "unfinished"

        def write() -> None:
            has_template = False
            with ExitStack() as stack:
                stores = {
                    split: [
                        stack.enter_context(StoreWriter(staging / name, size))
                        for name, size in ((split, tokenizers.n_ids(own)), (f"{split}_scored", 2))
                    ]
                    for split in SPLITS
                }
                for group in _groups(taken):
                    has_template |= any(map(uses_template, group))
                    _write(group, own, end_id, template, validation, stores, counts)
                if not counts.train.documents:
                    raise NeojaxError("no record has an answer to learn: " + "; ".join(counts.lines()[2:]))
            (staging / "tokenizer.json").write_text(own.to_str(pretty=True), encoding="utf-8")
            if has_template:
                (staging / FILE).write_text(template.source, encoding="utf-8")
            about: dict[str, Any] = {
                "neojax": __version__,
                "format": FORMAT,
                "inputs": [str(i) for i in inputs],
                "validation_fraction": validation,
                "tokenizer": {
                    "source": str(tokenizer),
                    "n_vocab": tokenizers.n_ids(own),
                    "end_of_document": end,
                    "end_of_document_id": end_id,
                },
                "skipped": counts.skipped,
            }
            text = json.dumps(about, indent=2, ensure_ascii=False)
            (staging / "prepared.json").write_bytes(text.encode("utf-8", "backslashreplace"))

        fill(out, staging, write)
    return counts


def _template(beside: Path, given: str | Path | None, tokenizer: Any, end: str) -> ChatTemplate:
    if given is not None:
        try:
            source = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise NeojaxError(f"--chat-template: cannot read {given}: {e}") from None
    else:
        source = find(beside if beside.is_dir() else beside.parent) or DEFAULT
    first = tokenizers.first_tokens(tokenizer)
    return ChatTemplate(source, end, tokenizer.id_to_token(first[0]) if first else end)


def _groups(files: Sequence[Path]) -> Iterator[list[Record]]:
    for file in files:
        records = read_records(file)
        for start in range(0, len(records), _GROUP):
            yield records[start : start + _GROUP]


def _write(
    group: Sequence[Record],
    tokenizer: Any,
    end: int,
    template: ChatTemplate,
    validation: float,
    stores: dict[str, list[StoreWriter]],
    counts: Counts,
) -> None:
    kept, texts = [], []
    for record in group:
        pieces = pieces_of(record, template)
        if any(is_scored and text.strip() for text, is_scored in pieces):
            kept.append(record)
            texts.append(pieces)
        else:
            counts.skip(Skip(record.where, "has an empty answer, or none"))
    first = tokenizers.first_tokens(tokenizer)  # as before a prompt; a template writes its own
    firsts = [() if uses_template(record) else first for record in kept]
    for record, pieces, own in zip(kept, texts, encoded(tokenizer, texts, end, firsts)):
        raw = json.dumps(record.values, sort_keys=True).encode()
        split = split_of(raw, validation)
        for store, values in zip(stores[split], (own.tokens, own.scored)):
            store.add(np.asarray(values, np.int32), np.array([len(own.tokens)]))
        part = getattr(counts, split)
        part.documents += 1
        part.tokens += len(own.tokens)
        part.bytes += sum(len(text.encode("utf-8", "replace")) for text, _ in pieces)
