"""The run directory: what lies in it besides checkpoints and metrics, and how it is opened again."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from neojax import config as configuration
from neojax.config import HEADS, Config, ModelConfig
from neojax.data import tokenizer as tokenizers
from neojax.data.chat_template import FILE as CHAT_TEMPLATE
from neojax.errors import NeojaxError
from neojax.files import new_file
from neojax.storage.remote import is_remote, place

CONFIG = "config.yml"
TOKENIZER = "tokenizer.json"


def is_run_dir(path: str | Path) -> bool:
    """Whether `path` is a folder that `train.py` or `neojax convert` wrote."""
    path = place(path)
    return (path / CONFIG).is_file() and (path / "checkpoints").is_dir()


def use_of(model: ModelConfig, run_dir: str | Path) -> str:
    """What can be done with a run that has a checkpoint, in a few words."""
    if "lm" in model.head.kinds and model.causal:
        return f"sample with: python sample.py {run_dir}"
    if {"lm", "mlm"} & set(model.head.kinds):
        return f'fill masks with: neojax fill-mask {run_dir} "... [MASK] ..."'
    if set(HEADS[3:]) & set(model.head.kinds):
        return f"predict with: neojax predict {run_dir} FILE.jsonl"
    return f"open it with: neojax.load({str(run_dir)!r})"


def checkpoints_in(run_dir: str | Path) -> list[int]:
    """The steps of the checkpoints of a run directory, oldest first. Raises `OSError` where it cannot be
    read, which must not look like none."""
    try:
        names = os.listdir(Path(run_dir) / "checkpoints")
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if is_step(name))


def is_step(name: str) -> bool:
    """Whether an entry of `checkpoints/` is the folder of a step, by its name."""
    return name.isascii() and name.isdigit()


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing. Raises `NeojaxError` where it cannot."""
    if is_remote(path):
        try:
            place(path).write_text(text)
        except OSError as e:
            raise NeojaxError(f"{path}: cannot be written: {e.strerror or e}") from None
        return
    with new_file(path, replace=True) as file:
        file.write_text(text, encoding="utf-8")


def write(run_dir: Path, config: Config, tokenizer: str | None, chat_template: str | None = None) -> None:
    """Writes the config, the tokenizer and the chat template of a run. Raises `NeojaxError` where it
    cannot."""
    write_text(run_dir / CONFIG, configuration.dump(config))
    if tokenizer is not None:
        write_text(run_dir / TOKENIZER, tokenizer)
    if chat_template is not None:
        write_text(run_dir / CHAT_TEMPLATE, chat_template)


def meta(
    config: Config, tokenizer: str | None, eos_token_id: int | None, data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a checkpoint holds beside arrays, so that it can be used without the rest of the run directory:
    the config, the text of tokenizer.json and the id that ends a document, each None where there is none; and
    of `data`, by split and path, what tells it from other data."""
    return {
        "config": configuration.to_dict(config),
        "tokenizer": tokenizer,
        "eos_token_id": eos_token_id,
        "data": data,
    }


def config_of(saved: dict[str, Any], source: str) -> Config:
    """The config that a checkpoint's `meta` holds."""
    return configuration.from_dict(json.loads(json.dumps(saved["config"])), source=source)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys, as ``section.key (old -> new)``, in which two configs (as dictionaries) differ."""
    rows = []
    for key in new:
        a, b = old.get(key), new[key]
        if isinstance(b, dict) and isinstance(a, dict):
            rows += differences(a, b, f"{prefix}{key}.")
        elif json.dumps(a) != json.dumps(b):
            rows.append(f"{prefix}{key} ({yaml_word(a)} -> {yaml_word(b)})")
    return rows


def yaml_word(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def check_resume(saved: Config, now: Config, run_dir: Path, step: int) -> list[str]:
    """What changed between a run's last checkpoint, at `step`, and the command that resumes it, as lines to
    show.

    Raises `NeojaxError` where the checkpoint no longer fits: another model, another optimizer, other frozen
    parameters or low-rank additions.
    """
    old, new = configuration.to_dict(saved), configuration.to_dict(now)
    old["train"]["init_from"] = new["train"]["init_from"] = ""  # only told where the run once began
    model = differences(old["model"], new["model"], "model.")
    # The state has moments of what is trained alone, and low-rank additions mean what they mean by alpha.
    keys = ["train.optimizer ", "train.frozen ", "train.lora."]
    if now.train.optimizer == "adafactor" and 0 in (
        saved.train.adafactor_momentum,
        now.train.adafactor_momentum,
    ):
        keys.append("train.adafactor_momentum ")  # the state either has a mean of updates or has none
    optimizer = [
        d
        for d in differences(old["train"], new["train"], "train.")
        if d.startswith(tuple(keys)) and not d.startswith("train.lora.dropout ")
    ]
    if model or optimizer:
        anew = "start anew with another train.run_dir"
        if not model:  # the weights fit, only the optimizer's state does not
            anew = f"begin another run with these weights: train.run_dir=NEW train.init_from={run_dir}"
        raise NeojaxError(
            f"{run_dir} holds a run with other settings: {', '.join(model + optimizer)}; set them back, or "
            f"{anew}"
        )
    if not step:  # converted weights: nothing has been trained with the settings that stand there
        return []
    changed = differences({k: old[k] for k in ("data", "train")}, {k: new[k] for k in ("data", "train")})
    order = "data.train ", "data.pairs ", "data.short_prob ", "data.task ", "train.seed ", "train.batch_size "
    data = [d for d in changed if d.startswith(order)]
    lines = []
    if changed:
        lines.append(f"resuming with changed settings: {', '.join(changed)}")
    if data:
        lines.append("the data order differs from before: documents may be seen twice or not at all")
    return lines


def check_data(saved: dict[str, Any], now: dict[str, Any], run_dir: Path, step: int) -> list[str]:
    """As `check_resume`, of the tokenizer and of what lies at the paths of `data`: `saved` and `now` are
    `meta`.

    Raises `NeojaxError` where the tokenizer is another.
    """
    old, new = saved.get("tokenizer"), now["tokenizer"]
    if old is not None and new is not None and old != new and _canonical(old) != _canonical(new):
        raise NeojaxError(
            f"{run_dir} holds a run with another tokenizer than that of data.tokenizer, or beside "
            f"data.train, now: its ids mean other text; set it back ({run_dir / TOKENIZER} is the run's "
            f"own), or begin another run with these weights: train.run_dir=NEW train.init_from={run_dir}"
        )
    lines = []
    for split, sources in (saved.get("data") or {}).items() if step else ():
        for path, before in sources.items():
            found = (now["data"] or {}).get(split, {}).get(path, before)
            if found != before:
                then, here = (
                    f"{f['documents']:,} documents, {f['tokens']:,} tokens" for f in (before, found)
                )
                lines.append(
                    f"data.{split}: {path} holds other data than before ({then} then; {here} now)"
                    + (": documents may be seen twice or not at all" if split == "train" else "")
                )
    return lines


def _canonical(tokenizer: str) -> str:
    """The text of a tokenizer.json without what is a matter of writing."""
    return tokenizers.parse(tokenizer, "the tokenizer").to_str()
