"""What a run trains and evaluates on: its sources, opened and checked, and the tokenizer that goes with
them."""

from pathlib import Path

from neojax.config import Config, SourceConfig
from neojax.data import tokenizer as tokenizers
from neojax.data.loader import Windows, check_ids
from neojax.data.pairs import sentences_of
from neojax.data.sources import ABSENT, TokenSource, end_of_document_id, open_source
from neojax.errors import NeojaxError
from neojax.runs.run_dir import TOKENIZER
from neojax.storage.remote import is_on_no_machine, place


def named_sources(sources: tuple[SourceConfig, ...]) -> dict[str, SourceConfig]:
    """Validation stores by the name that metrics show: `validation`, or with several, its file or folder
    too."""
    if len(sources) == 1:
        return {"validation": sources[0]}
    names: dict[str, SourceConfig] = {}
    for source in sources:
        name = f"validation_{Path(source.path).stem}"
        names[name if name not in names else f"{name}_{len(names)}"] = source
    return names


def check_paths(config: Config) -> None:
    """Raises `NeojaxError`, one line, for paths that a config has from another machine and this one has
    not."""
    run_dir = config.train.run_dir
    causes, helps = [], []
    for key, sources in (("data.train", config.data.train), ("data.validation", config.data.validation)):
        absent = [s.path for s in sources if s.path.startswith(ABSENT)]
        remote = [s.path for s in sources if is_on_no_machine(s.path)]
        causes += [f"there is no {path}, which datasets names" for path in dict.fromkeys(absent)]
        causes += [
            f"{path} is not on this machine, and neither gs:// nor s3://" for path in dict.fromkeys(remote)
        ]
        helps += [f"{key}=PATH"] if absent or remote else []
    if is_on_no_machine(run_dir):
        causes.append(f"{run_dir} is no folder to write to")
        helps.append(f"train.run_dir=runs/{run_dir.rstrip('/').rpartition('/')[2]}")
    if causes:
        raise NeojaxError(f"{'; '.join(causes)}; give {' '.join(helps)}")


def check_data(config: Config) -> tuple[list[TokenSource], list[TokenSource]]:
    """Opens every source of `data`, checks that it holds tokens and its ids against the vocabulary. Returns
    those of training and of validation."""
    if not config.data.train:
        raise NeojaxError(
            "data.train is empty; name a token store, such as data.train=DIR, that `neojax prepare ... "
            "--out DIR` wrote"
        )
    check_objective(config)
    sources = [open_source(s.path, "train", s.split) for s in config.data.train]
    held_out = [open_source(s.path, "validation", s.split) for s in config.data.validation]
    for source in sources + held_out:
        if config.data.pairs != "none":
            sentences_of(source)  # raises where it keeps none
        else:
            Windows(source, config.model.n_ctx, config.data)  # raises where there is nothing to predict
    check_ids(sources + held_out, config.model.n_vocab)
    return sources, held_out


def check_objective(config: Config) -> None:
    """Raises `NeojaxError` where the data has not what the heads of the model are trained on: token stores
    have tokens to predict or to mask, and pairs of segments where their sentences are kept, and no other
    labels."""
    kinds, pairs = config.model.head.kinds, config.data.pairs
    if pairs != "none" and set(kinds) - {"mlm", "pair"}:
        raise NeojaxError(
            f"data.pairs={pairs} is for the heads mlm and pair of model.family=bert and albert; "
            f"model.head.kinds is {list(kinds)}"
        )
    if kinds == ("lm",):
        return
    if not kinds:
        raise NeojaxError("model.head.kinds=[] leaves nothing to train; name a head, such as mlm")
    if pairs != "none":
        return
    if kinds != ("mlm",):
        others = [kind for kind in kinds if kind != "mlm"]
        sentences = "data.pairs=nsp or sop, or " if set(others) == {"pair"} else "data.task, or "
        raise NeojaxError(
            f"model.head.kinds={list(kinds)}: data.train has no labels for {' and '.join(others)}; set "
            f"{sentences}model.head.kinds=[mlm] to train on masked tokens alone"
        )
    if config.train.mlm_mask_id is None:
        raise NeojaxError(
            "model.head.kinds=[mlm] is trained on masked tokens; set train.mlm_mask_id, the id of the "
            "tokenizer's mask"
        )


def read_tokenizer(config: Config, sources: list[TokenSource]) -> str | None:
    """The text of data.tokenizer, or of the tokenizer.json beside the first training source, if there is
    one."""
    path = place(config.data.tokenizer) if config.data.tokenizer else sources[0].folder / TOKENIZER
    if not path.is_file():
        if config.data.tokenizer:
            raise NeojaxError(f"data.tokenizer: no file {path}; name a tokenizer.json")
        return None
    tokenizer = tokenizers.load(path, config.data.merges)
    size = tokenizers.n_ids(tokenizer)
    if size > config.model.n_vocab:
        raise NeojaxError(
            f"{path} has {size} ids but model.n_vocab={config.model.n_vocab}; set model.n_vocab to at least "
            f"{size}"
        )
    is_json = path.suffix == ".json" and not config.data.merges
    return path.read_text(encoding="utf-8") if is_json else tokenizer.to_str()


def read_end_of_document(sources: list[TokenSource], tokenizer: str | None) -> int | None:
    """The id that ends a document: as the first training source that knows it says, else the tokenizer's
    usual one."""
    for source in sources:
        if (found := end_of_document_id(source)) is not None:
            return found
    return None if tokenizer is None else tokenizers.usual_end(tokenizers.parse(tokenizer, "data.tokenizer"))
