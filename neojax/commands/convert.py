"""`neojax convert SOURCE DEST`: what SOURCE is decides what is written to DEST."""

import contextlib
import os
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from neojax.config import Config, TrainConfig
from neojax.convert import bundle, configs, google_bert, gpt_neo, hf, mesh_tf, neox, peft
from neojax.convert.bundle import Bundle
from neojax.convert.hf_config import is_hf_dir
from neojax.convert.neox_checkpoint import refuse_checkpoint
from neojax.convert.peft_files import CONFIG as ADAPTER
from neojax.convert.peft_files import base_of, is_adapter_dir
from neojax.data import chat_template
from neojax.errors import NeojaxError
from neojax.files import ending_cleanly, is_free, named
from neojax.loading import load_adapted, load_trained, open_run
from neojax.lock import Lock
from neojax.models.merging import merged
from neojax.runs.run_dir import is_run_dir, use_of, write_text
from neojax.training.moments import opt_state
from neojax.training.new_run import write_run


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax convert`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a Hugging Face directory (GPT-Neo, GPT-NeoX, GPT-2, BERT, ALBERT), a TensorFlow checkpoint of "
        "gpt-neo or of Google's BERT or ALBERT (its folder, or model.ckpt-STEP in it), a gpt-neo config "
        "(JSON), one or more GPT-NeoX configs (YAML), a run directory, or a folder of PEFT's, alone or "
        "behind its base",
    )
    parser.add_argument(
        "dest",
        metavar="DEST",
        help="what to write: a run directory; of a run a Hugging Face directory, or PEFT's if it trained "
        "low-rank additions; of a config YAML",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the config (JSON) of a TensorFlow checkpoint (default: the one in its folder)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace what DEST is, where it is of the kind that is written"
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of low-rank additions (of a run with train.lora, or PEFT's): write a Hugging Face directory of "
        "the weights with them added",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="of a config: values to write in place of its own, as in mesh.shape=data:-1",
    )


def run(args: Namespace) -> None:
    """Converts, or raises `NeojaxError` and leaves nothing behind."""
    files: list[str] = [args.source, args.dest, *(word for word in args.overrides if "=" not in word)]
    *sources, last = files
    overrides = [word for word in args.overrides if "=" in word]
    source, dest = named(sources[0], "SOURCE"), named(last, "DEST")
    adapted = _adapted(sources)
    prefix = bundle.find(source) if len(sources) == 1 and adapted is None else None
    is_neox = prefix is None and adapted is None and _is_neox(sources)
    is_config = is_neox or (prefix is None and gpt_neo.is_config(source))
    if args.config and prefix is None:
        raise NeojaxError(f"--config is for a TensorFlow checkpoint, and {source} is none")
    if overrides and not is_config:
        raise NeojaxError(
            f"{overrides[0]}: values are for a gpt-neo or GPT-NeoX config, and {source} is none"
        )
    is_step = not is_run_dir(source) and is_run_dir(source.parent.parent)  # RUN/checkpoints/STEP
    root = source.parent.parent if is_step else source if prefix is None else prefix.parent
    is_known = adapted or prefix or is_config or is_hf_dir(source) or is_step or is_run_dir(source)
    if not is_known:
        refuse_checkpoint(source)
        cause = "is not of a format that neojax converts" if source.exists() else "does not exist"
        raise NeojaxError(
            f"{source} {cause}; expected a Hugging Face directory (config.json), a folder with "
            "model.ckpt-STEP.index, a run directory (config.yml), or a folder of PEFT's "
            "(adapter_config.json)"
        )
    if args.merge and adapted is None and not (is_step or is_run_dir(source)):
        raise NeojaxError(f"--merge is for low-rank additions, and {source} has none; leave it out")
    _check_apart(dest, [root, *(adapted or ()), *sources[1:], *filter(None, [args.config])])
    _check_free(dest, args.force, is_file=is_config)
    owned = Lock(dest, "trained") if args.force and is_run_dir(dest) else contextlib.nullcontext()
    with ending_cleanly(), owned:
        if prefix is not None:
            _convert_bundle(args, prefix, dest)
        elif adapted is not None:
            _convert_adapted(args, *adapted, dest)
        elif is_config:
            of_neox = partial(neox.convert_text, sources)
            convert = of_neox if is_neox else partial(gpt_neo.convert_text, source)
            write_text(dest, convert(overrides))
            print(f"wrote {dest}; train with: python train.py {dest}")
        elif is_hf_dir(source):
            model = hf.load(source)
            write_run(model, dest, replace=args.force)
            _keep_template(root, dest)
            print(f"wrote run directory {dest}; {use_of(model.config, dest)}")
        else:
            _convert_run(args, source, dest)
            _keep_template(root, dest)


def _adapted(sources: list[str]) -> tuple[Path, Path] | None:
    """The folders of a base and of an adapter for it, where SOURCE is such."""
    if len(sources) == 1 and is_adapter_dir(sources[0]):
        return base_of(Path(sources[0])), Path(sources[0])
    if len(sources) == 2 and (Path(sources[1]) / ADAPTER).is_file():
        return Path(sources[0]), Path(sources[1])
    return None


def _convert_adapted(args: Namespace, base: Path, adapter: Path, dest: Path) -> None:
    model = load_adapted(base, adapter)
    if args.merge:
        hf.save(merged(model), dest, replace=args.force)
        print(f"wrote Hugging Face directory {dest}, of {base} with {adapter} merged into it")
        return
    write_run(model, dest, Config(train=TrainConfig(init_from=str(base))), replace=args.force)
    use = f"{use_of(model.config, dest)}; train on: python train.py {dest}/config.yml"
    print(f"wrote run directory {dest}; {use}")


def _convert_run(args: Namespace, source: Path, dest: Path) -> None:
    model = load_trained(source)
    if model.adapters is not None and not args.merge:
        base = open_run(source).config.train.init_from
        peft.save(model, dest, base, replace=args.force)
        print(f"wrote PEFT's folder {dest}, of additions to {base or 'the base of the run'}")
        return
    if args.merge and model.adapters is None:
        raise NeojaxError(f"--merge: {source} has no low-rank additions; leave it out")
    hf.save(merged(model), dest, replace=args.force)
    print(f"wrote Hugging Face directory {dest}")


def _keep_template(source: Path, dest: Path) -> None:
    """Takes the chat template of a model along, where it has one."""
    if template := chat_template.find(source):
        write_text(dest / chat_template.FILE, template)


def _is_neox(sources: list[str]) -> bool:
    return len(sources) > 1 or (neox.located(sources[0]).is_file() and configs.is_neox(sources))


def _convert_bundle(args: Namespace, prefix: Path, dest: Path) -> None:
    reader = google_bert if google_bert.is_bert(Bundle(prefix)) else mesh_tf
    loaded = reader.load(args.source, args.config)
    write_run(loaded.model, dest, loaded.config, loaded.step, opt_state(loaded), replace=args.force)
    kept = "with" if loaded.keeps_moments else "without (its moments begin at zero)"
    print(
        f"wrote run directory {dest} at step {loaded.step}, {kept} the optimizer's state; go on with: "
        f"python train.py {dest}/config.yml"
    )
    if loaded.model.tokenizer is None:
        is_causal = loaded.model.config.causal
        use = "to sample text" if is_causal else "to read text"
        which = "tokenizer.json (GPT-2's is the usual one)" if is_causal else "vocab.txt or spiece.model"
        print(
            f"note: there is no tokenizer beside {args.source}; {use}, put the model's {which} there and "
            "convert again"
        )


def _check_apart(dest: Path, sources: list[str | Path]) -> None:
    """Raises `NeojaxError` where writing DEST would change what is converted, by whatever names they are
    given."""
    written = Path(os.path.realpath(dest))
    for source in sources:
        read = Path(os.path.realpath(source))
        if read.is_relative_to(written) or (not is_free(written) and written.is_relative_to(read)):
            relation = (
                "is" if read == written else "holds" if read.is_relative_to(written) else "is a part of"
            )
            raise NeojaxError(f"DEST {dest} {relation} {source}, which is converted; name another place")


def _check_free(dest: Path, force: bool, *, is_file: bool) -> None:
    """Raises `NeojaxError` for a DEST that is in use, unless it is a thing of the same kind and to be
    replaced."""
    if is_file and dest.is_dir():
        raise NeojaxError(f"{dest} is a folder; name the file to write, such as {dest / 'config.yml'}")
    if is_free(os.path.realpath(dest)):
        return
    if not force:
        raise NeojaxError(f"{dest} exists already; name another place, or add --force to replace it")
    if is_file and not dest.is_file():
        raise NeojaxError(f"{dest} is no file; name another place")
    is_hf = is_hf_dir(dest) and any(f.suffix in (".safetensors", ".bin") for f in dest.iterdir())
    if not is_file and not is_hf and not is_adapter_dir(dest) and not is_run_dir(dest):
        raise NeojaxError(
            f"{dest} is neither a run nor a Hugging Face directory, and only such are replaced; remove it "
            "yourself, or name another place"
        )
