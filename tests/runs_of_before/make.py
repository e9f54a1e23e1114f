"""Made `runs.tar.xz`, four small runs and their data, and `expected.npz`, what `read.py` finds in them. Run
by hand:

PYTHONPATH=CHECKOUT python tests/runs_of_before/make.py COMMIT

What lies here is kept as the version of `made.json` wrote it, and is not to be made again by a later one: it
shows that run directories and checkpoints of before can be read, and that their runs go on with the same
losses.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

TEXT = "the cat sat on a mat. A dog saw 3 cats, and we saw it! Some words of a text; why not?\n"
CHARACTERS = sorted({chr(code) for code in range(97, 123)} | set(TEXT) | set("0123456789-()'\":"))
SIZES = {"n_layer": 4, "n_embd": 8, "n_head": 2, "n_inner": 16, "n_ctx": 16, "n_vocab": 61, "window_size": 5}
DROPOUT = {"embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1}
TRAIN = {
    "batch_size": 8, "steps": 4, "checkpoint_every": 4, "log_every": 1, "learning_rate": 1e-2, "warmup_steps": 2,  # noqa: E501
    "decay_steps": 8, "seed": 3, "tensorboard": False, "eval_batches": 1, "keep": 9,
}  # fmt: skip
FSDP = {"cpu_devices": 2, "shape": "data:2", "layout": "batch:data", "param_layout": "embd:data"}
TENSOR = {"cpu_devices": 2, "shape": "model:2", "layout": "heads:model, mlp:model, vocab:model"}
ADAFACTOR = {"optimizer": "adafactor", "adafactor_momentum": 0.5, "schedule": "linear"}
RUNS = {
    "gpt_neo": {
        "model": {"n_vocab": 64, "attention_types": ["global", "local"], **DROPOUT},
        "mesh": FSDP,
        "train": {"microbatch": 4, "checkpoint_every": 2, "z_loss": 1e-3},
    },
    "gpt2": {
        "model": {
            "n_layer": 2, "attention_types": ["global"], "attention_bias": True, "scale_attention": True,
            "initializer_range": 0.02, "scale_by_depth": True, "res_dropout": 0.2,
        },
        "mesh": TENSOR,
        "train": ADAFACTOR,
    },
    "rotary": {
        "model": {
            "n_layer": 2, "attention_types": [[["global", "linear"], 1]], "rotary_emb": True, "mlp_glu": True,
            "num_mem_kv": 2, "share_parameters": True, "tie_word_embeddings": False, "scalenorm": True,
            "activation_function": "aria", "scale_by_in": True,
        },
        "mesh": TENSOR,
        "train": ADAFACTOR,
    },
    "axial": {
        "model": {
            "attention_types": ["local", "none"], "axial_pos_emb": [4, 4], "rezero": True, "macaron": True,
            "activation_function": "prelu", "layer_norm_epsilon": 1e-6, "init_from": "axial_first",
        },
        "mesh": FSDP,
        "train": {"moment_dtype": "bfloat16", "schedule": "constant"},
    },
}  # fmt: skip


def neojax(*words: str | Path) -> None:
    """Runs a command in a process of its own, in the folder where it is."""
    subprocess.run([sys.executable, "-m", "neojax", *map(str, words)], check=True, env=environment())


def environment() -> dict[str, str]:
    """The variables of a user's process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_FLAGS", "JAX_"))}
    return {**kept, "JAX_PLATFORMS": "cpu"}


def make_data() -> None:
    """data/: a tokenizer of characters, and token stores of text that can be learnt."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *CHARACTERS])}
    assert len(vocabulary) <= SIZES["n_vocab"]
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save("tokenizer.json")
    words = TEXT.split()
    with open("text.jsonl", "w") as file:
        for i in range(60):
            text = " ".join(words[(i * 7 + j * j) % len(words)] for j in range(12))
            file.write(json.dumps({"text": text}) + "\n")
    neojax("prepare", "text.jsonl", "--tokenizer", "tokenizer.json", "--out", "data", "--validation", "0.1")


def make_run(name: str, keys: dict[str, dict]) -> None:
    """The run directory `name`, trained for four steps."""
    config = {
        "model": {**SIZES, **keys["model"]},
        "mesh": keys["mesh"],
        "data": {"train": "data", "validation": "data"},
        "train": {**TRAIN, **keys["train"], "run_dir": name},
    }
    Path("config.yml").write_text(json.dumps(config))
    if first := keys["model"].get("init_from"):  # a run that is gone when this one is read
        neojax("train", "config.yml", f"train.run_dir={first}", "model.init_from=", "train.steps=1")
    neojax("train", "config.yml")


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The entry of a file, without who owned it and when."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> None:
    (commit,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data()
        for name, keys in RUNS.items():
            make_run(name, keys)
        with tarfile.open(HERE / "runs.tar.xz", "w:xz", preset=9) as archive:
            for name in ("data", *RUNS):
                archive.add(name, filter=without_owner)
        subprocess.run(
            [sys.executable, HERE / "read.py", HERE / "expected.npz"], check=True, env=environment()
        )
    from recorded import circumstances

    (HERE / "made.json").write_text(json.dumps({"commit": commit, **circumstances()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
