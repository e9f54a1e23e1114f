"""What the runs of this folder give: losses of a resumed run, logits, scores and greedy texts. Run in a copy
of it:

python read.py OUT.npz

Only the command line and the public functions of neojax are used, so that any version of it can be read with
this.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

import neojax
from neojax.cli import main

RUNS = ("gpt_neo", "gpt2", "rotary", "axial")
RESUMED = ("gpt_neo", "gpt2", "axial")  # the other has the optimizer of gpt2
PROMPTS = ["the cat ", "A", "saw 3 "]
TEXT = "some words of a text"  # longer than n_ctx


def logits(path: str) -> np.ndarray:
    """Those of `neojax.load(path)`, on one device."""
    tokens = np.random.default_rng(0).integers(0, 61, (3, 16)).astype(np.int32)
    return np.asarray(neojax.load(path)(tokens))


def texts(path: str) -> dict[str, np.ndarray]:
    """What `neojax.load(path)` makes of the prompts, and of a text."""
    model = neojax.load(path)
    samples = neojax.generate(
        model, PROMPTS, max_new_tokens=8, temperature=0, eos=(), return_samples=True, return_logprobs=True
    )
    score = neojax.score(model, TEXT)
    return {
        "generated": np.array([sample.tokens for sample in samples], np.int32),
        "generated_logprobs": np.array([sample.logprobs for sample in samples], np.float32),
        "text": np.array([sample.text for sample in samples]),
        "scored": np.array(score.tokens, np.int32),
        "scored_logprobs": np.array(score.logprobs, np.float32),
    }


def resumed(run: str) -> dict[str, np.ndarray]:
    """Trains `run` to step 8; every number of its metrics that does not measure time. What it began from is
    gone."""
    if status := main(["train", f"{run}/config.yml", "train.steps=8", "model.init_from="]):
        raise SystemExit(status)
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    found = {key: np.array([row[key] for row in rows]) for key in ("loss", "grad_norm", "learning_rate")}
    return {**found, "validation_loss": np.array(rows[-1]["validation_loss"])}


def everything() -> dict[str, np.ndarray]:
    """RUN/STEP/what -> its values; at step 8 also what was logged on the way."""
    found = {}
    for run in RESUMED:  # first, since this chooses JAX's devices
        found |= {f"{run}/8/{key}": value for key, value in resumed(run).items()}
        found[f"{run}/8/logits"] = logits(run)
    for run in RUNS:
        found[f"{run}/4/logits"] = logits(f"{run}/checkpoints/4")
        found |= {f"{run}/4/{key}": value for key, value in texts(f"{run}/checkpoints/4").items()}
    found["gpt_neo/2/logits"] = logits("gpt_neo/checkpoints/2")
    return found


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], **everything())
