"""`neojax convert SOURCE DEST`: what SOURCE is decides what is written to DEST."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from neojax.convert import bundle, gpt_neo
from neojax.convert.hf_config import is_hf_dir
from neojax.errors import NeojaxError
from neojax.training.run_dir import is_run_dir, write_text


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax convert`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a Hugging Face directory (GPT-Neo, GPT-2), a Mesh-TensorFlow checkpoint of gpt-neo (its folder, or "
        "model.ckpt-STEP in it), a gpt-neo config (JSON), or a run directory",
    )
    parser.add_argument(
        "dest",
        metavar="DEST",
        help="what to write: a run directory; of a run a Hugging Face directory; of a config YAML",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the gpt-neo config of a Mesh-TensorFlow checkpoint (default: the one in its folder)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="of a gpt-neo config: values to write in place of its own, as in mesh.shape=data:-1",
    )


def run(args: Namespace) -> None:
    """Converts, or raises `NeojaxError` and leaves nothing behind."""
    source, dest = Path(args.source), Path(args.dest)
    is_bundle = bundle.find(source) is not None
    if args.config and not is_bundle:
        raise NeojaxError(f"--config is for a Mesh-TensorFlow checkpoint, and {source} is none")
    if args.overrides and (is_bundle or not gpt_neo.is_config(source)):
        raise NeojaxError(
            f"{args.overrides[0]}: values are for a gpt-neo config (JSON), and {source} is none"
        )
    if is_bundle:
        from neojax.convert import mesh_tf
        from neojax.convert.hf import check_free
        from neojax.convert.run import write_run

        check_free(dest)
        loaded = mesh_tf.load(source, args.config)
        write_run(loaded.model, dest, loaded.config, loaded.step, loaded.opt_state())
        kept = "with" if loaded.keeps_moments else "without (its moments begin at zero)"
        print(
            f"wrote run directory {dest} at step {loaded.step}, {kept} the optimizer's state; go on with: "
            f"python train.py {dest}/config.yml"
        )
        if loaded.model.tokenizer is None:
            print(
                f"note: there is no tokenizer beside {source}; to sample text, put the model's tokenizer.json (GPT-2's is "
                "the usual one) there and convert again"
            )
    elif gpt_neo.is_config(source):
        write_text(dest, gpt_neo.convert_text(source, args.overrides))
        print(f"wrote {dest}; train with: python train.py {dest}")
    elif is_hf_dir(source):
        from neojax.convert import hf
        from neojax.convert.run import write_run

        write_run(hf.load(source), dest)
        print(f"wrote run directory {dest}; sample with: python sample.py {dest}")
    elif is_run_dir(source) or is_run_dir(source.parent.parent):
        from neojax.convert import hf
        from neojax.loading import load

        hf.save(load(source), dest)
        print(f"wrote Hugging Face directory {dest}")
    else:
        cause = "is not of a format that neojax converts" if source.exists() else "does not exist"
        raise NeojaxError(
            f"{source} {cause}; expected a Hugging Face directory (config.json), a folder with "
            "model.ckpt-STEP.index, or a run directory (config.yml)"
        )
