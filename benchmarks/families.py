"""Held-out loss of a Pythia from a GPT-NeoX YAML and of a GPT-Neo of its shape, trained alike on one text.

    make demo && python benchmarks/families.py [--width 128] [--context 256] [--steps 1500] [--batch 8]

Both have Pythia 14M's 6 layers and 4 heads, tokens, batches and schedule in common; the GPT-Neo has its
alternating attention (a window of a quarter of the context) and an output table of its own too. The loss of a
smoothed bigram model of the same tokens stands beside them.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

from neojax.config import Config, from_dict, to_dict
from neojax.convert import configs
from neojax.data.store import TokenStore
from neojax.evaluate.bigram import bigram_loss
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

LAYERS, HEADS = 6, 4
GPT_NEO = {"family": "gpt_neo", "embedding": {"tied": False}, "init": {"std": 0.02}}


def pythia(options: dict[str, Any], folder: Path) -> Config:
    """The config that a GPT-NeoX YAML of Pythia 14M's keys means, with these sizes and this data."""
    keys = {
        "num-layers": LAYERS, "hidden-size": options["width"], "num-attention-heads": HEADS,
        "seq-length": options["context"], "max-position-embeddings": options["context"],
        "pos-emb": "rotary", "rotary-pct": 0.25, "no-weight-tying": True, "gpt-j-residual": True,
        "attention-config": [[["flash"], LAYERS]], "bias-gelu-fusion": True,
        "init_method": "small_init", "output_layer_init_method": "wang_init",
        "optimizer": {"type": "Adam", "params": {"lr": options["rate"], "betas": [0.9, 0.95], "eps": 1.0e-8}},
        "min_lr": options["rate"] / 10, "weight-decay": 0.1, "gradient_clipping": 1.0,
        "lr-decay-style": "cosine", "warmup": 0.067, "train-iters": options["steps"],
        "train_micro_batch_size_per_gpu": options["batch"], "global_num_gpus": 1, "log-interval": 50,
        "train-data-paths": [f"{options['data']}/train"],
        "valid-data-paths": [f"{options['data']}/validation"],
        "tokenizer-type": "HFTokenizer", "vocab-file": f"{options['data']}/tokenizer.json",
    }  # fmt: skip
    path = folder / "pythia.yml"
    path.write_text(json.dumps(keys, indent=1))
    every = f"train.checkpoint_every={options['steps']}"
    given = [every, "train.keep=1", "train.eval_batches=0", "train.tensorboard=false", "mesh.cpu_devices=1"]
    return configs.load(path, given)


def gpt_neo(like: Config) -> Config:
    """A GPT-Neo with the sizes, data and training of `like`."""
    model, raw = like.model, to_dict(like)
    sizes = {key: getattr(model, key) for key in ("n_layer", "n_embd", "n_ctx", "n_vocab")}
    attention = {"heads": HEADS, "types": ["global", "local"], "window": model.n_ctx // 4}
    return from_dict({**raw, "model": {**GPT_NEO, **sizes, "attention": attention}})


def loss_of(config: Config, run: Path) -> dict[str, Any]:
    """Trains, and gives the losses at the end."""
    start = time.perf_counter()
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, run_dir=str(run))))
    last = read_metrics(run)[-1]
    seconds = time.perf_counter() - start
    return {"held_out": last["validation_loss"], "training": last["loss"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="demo/data", help="what `make demo` prepared")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--save", default="families", metavar="NAME", help="write results/NAME.json")
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        neox = pythia(options, Path(folder))
        found = {
            "GPT-NeoX YAML": loss_of(neox, Path(folder) / "neox"),
            "GPT-Neo": loss_of(gpt_neo(neox), Path(folder) / "neo"),
        }
    stores = [TokenStore(f"{options['data']}/{part}") for part in ("train", "validation")]
    found["smoothed bigram"] = {"held_out": bigram_loss(*stores, neox.model.n_vocab)}
    for name, row in found.items():
        print(f"{name:16} held-out loss {row['held_out']:.3f}")
    sizes = {name: options[name] for name in ("width", "context", "steps", "batch", "rate")}
    save(options["save"], {"options": sizes, "models": found})


if __name__ == "__main__":
    main()
