"""Opening a trained model for use: a run directory, one of its checkpoints, or a Hugging Face directory."""

import contextlib
import re
from pathlib import Path
from typing import Any

from neojax.config import Config, MeshConfig
from neojax.convert import hf
from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.mesh import Layout, make_layout, single_device
from neojax.models import Transformer
from neojax.training import run_dir as runs
from neojax.training.checkpoint import Checkpoints
from neojax.training.loop import COMPUTE_TYPES, compute_type


def load(path: str | Path, *, mesh: MeshConfig | None = None, dtype: str = "auto") -> Transformer:
    """The trained model at `path`, with its weights placed on `mesh` (default: one device).

    path: a run directory (its newest checkpoint), RUN/checkpoints/STEP, or a Hugging Face directory.
    dtype: compute type, float32 or bfloat16; auto is bfloat16 on TPU and GPU. The model's `tokenizer` (a
    `tokenizers.Tokenizer` or None) and `eos_token_id` (int or None) come with it. Raises `NeojaxError`.
    """
    path = Path(path)
    layout = make_layout(mesh) if mesh else single_device()
    if dtype not in ("auto", *COMPUTE_TYPES):
        raise NeojaxError(f"dtype {dtype!r}: expected auto, float32 or bfloat16")
    if hf.is_hf_dir(path):
        return hf.load(path, layout, dtype=compute_type(dtype))
    run, step = find_run(path)
    with Checkpoints(run) as checkpoints:
        chosen = checkpoints.latest() if step is None else step
        if chosen is None or chosen not in checkpoints.steps():
            have = ", ".join(map(str, checkpoints.steps())) or "none yet"
            raise NeojaxError(
                f"{run} has no checkpoint{'' if step is None else f' of step {step}'}; it has: {have}"
            )
        saved = checkpoints.restore_meta(chosen)
    config = runs.config_of(saved, source=str(run))
    return restore(run, chosen, config, layout, compute_type(dtype), saved["tokenizer"])


def restore(
    run: Path, step: int, config: Config, layout: Layout, dtype: Any, tokenizer_text: str | None
) -> Transformer:
    """The model of checkpoint `step` of `run`, its parameters in the stored layout of `layout`."""
    model = Transformer(config.model, layout, dtype=dtype)
    with Checkpoints(run, dims=model.dims(), n_vocab=config.model.n_vocab) as checkpoints:
        model = model.bind(checkpoints.restore_params(step, model.stored()))
    if tokenizer_text is not None:
        model.tokenizer = tokenizers.parse(tokenizer_text, f"the tokenizer of {run}, checkpoint {step},")
        with contextlib.suppress(NeojaxError):  # without an end-of-document token, text ends by length alone
            model.eos_token_id = tokenizers.end_of_document(model.tokenizer)[1]
    return model


def find_run(path: Path) -> tuple[Path, int | None]:
    """Splits RUN or RUN/checkpoints/STEP into the run directory and the step (None for the newest)."""
    if path.parent.name == "checkpoints" and re.fullmatch(r"[0-9]+", path.name):
        return path.parent.parent, int(path.name)
    if runs.is_run_dir(path):
        return path, None
    if path.name == "checkpoints" and runs.is_run_dir(path.parent):
        return path.parent, None
    cause = "is neither a run directory (config.yml and checkpoints/) nor a Hugging Face one (config.json)"
    if not path.exists():
        cause = "does not exist"
    elif (path / runs.CONFIG).is_file():
        cause = "is a run directory without a checkpoint; train it first"
    raise NeojaxError(f"{path} {cause}")
