"""The data of a GPT-NeoX config: one pair of files that is cut, or lists of them with weights; its
tokenizer."""

import math
from functools import partial
from typing import Any

from neojax.convert.keys import Conversion
from neojax.convert.neox_files import NeoxKeys
from neojax.data.part import shares

SPLIT = "969,30,1"
LISTS = ("train_data_paths", "valid_data_paths")


def convert_data(keys: NeoxKeys, out: Conversion) -> None:
    """data.train, data.validation (where the config evaluates) and data.tokenizer. Raises `NeojaxError`."""
    path, lists = keys.text("data_path"), [key for key in LISTS if key in keys]
    if path and lists and not out.is_given("data.train"):
        raise keys.error("data_path", f"stands beside {keys.at(lists[0])}; keep one of them")
    out.put("data.train", partial(_train, keys, path), "data_path" if path else "train_data_paths")
    evaluates = keys.count("eval_iters", 100) > 0
    if path and out.is_given("data.train") and not out.is_given("data.validation"):
        out.ignored.append(f"split of data_path {path} (data.train is given)")
    elif evaluates:
        origin = "data_path" if path else "valid_data_paths"
        out.put("data.validation", partial(_validation, keys, path), origin)
    _tokenizer(keys, out)


def _train(keys: NeoxKeys, path: str) -> list[dict[str, Any]] | None:
    if path:
        return [{"path": path, "split": _split(keys)[0]}]
    paths = keys.texts("train_data_paths")
    given = keys.get("train_data_weights")
    weights = [1.0] * len(paths) if given is None else given
    if not isinstance(weights, list) or len(weights) != len(paths):
        raise keys.wrong(
            "train_data_weights", f"{len(paths)} numbers, one of each of train_data_paths", given
        )
    read = [keys.as_number("train_data_weights", weight) for weight in weights]
    return [{"path": path, "weight": weight} for path, weight in zip(paths, read)] or None


def _validation(keys: NeoxKeys, path: str) -> list[dict[str, Any]] | None:
    if not path:
        return [{"path": path} for path in keys.texts("valid_data_paths")] or None
    split, parts = _split(keys)
    return [{"path": path, "split": split}] if parts[1] else None


def _split(keys: NeoxKeys) -> tuple[str, list[float]]:
    text = str(keys.get("split") if "split" in keys else SPLIT)
    parts = shares(text, keys.at("split"))
    if not math.isclose(parts[0], 0.0):
        return ",".join(repr(part).removesuffix(".0") for part in parts), parts
    raise keys.error("split", f"{text} leaves nothing to train on")


def _tokenizer(keys: NeoxKeys, out: Conversion) -> None:
    """The tokenizer's files. Where data.train is given, the ids mean other text, and they are left out."""
    kind = keys.text("tokenizer_type", "GPT2BPETokenizer").lower()
    file, merges = keys.text("vocab_file") or None, keys.text("merge_file") or None
    if out.is_given("data.train") and not out.is_given("data.tokenizer"):
        out.ignored += [f"vocab_file {file} (data.train is given)"] if file else []
        return
    if kind == "hftokenizer":
        out.put("data.tokenizer", lambda: file, "vocab_file")
    elif kind == "gpt2bpetokenizer" and file and merges:
        out.put("data.tokenizer", lambda: file, "vocab_file")
        out.put("data.merges", lambda: merges if not out.is_given("data.tokenizer") else None, "merge_file")
    elif file:
        out.ignored.append(f"vocab_file {file} (of {kind}, which neojax does not read; give data.tokenizer)")
