"""The training run of a GPT-NeoX config: steps, precision, optimizer, schedule, checkpoints, evaluation."""

from functools import partial

from neojax.convert.hf_config import is_hf_dir
from neojax.convert.keys import Conversion
from neojax.convert.neox_checkpoint import refuse_checkpoint
from neojax.convert.neox_files import NeoxKeys
from neojax.convert.neox_mesh import convert_batch
from neojax.convert.neox_model import required
from neojax.runs.run_dir import is_run_dir
from neojax.storage.remote import place

SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear_to_zero",
    "exponential": "exponential",
    "constant": "constant",
}


def convert_train(keys: NeoxKeys, out: Conversion, asks: bool) -> None:
    """The section `train`; `asks` is of `convert_batch`."""
    out.put("train.run_dir", lambda: keys.text("save") or None, "save")
    _origin(keys, out)
    convert_batch(keys, out, asks)
    out.put("train.steps", partial(required, keys, "train_iters", "steps", "train"), "train_iters")
    out.put("train.precision", partial(_precision, keys, out), "fp16, bf16, precision")
    remat = partial(keys.flag, "checkpoint_activations")
    out.put("train.remat", lambda: "full" if remat() else None, "checkpoint_activations")
    _optimizer(keys, out)
    _schedule(keys, out)
    out.put("train.seed", partial(keys.count, "seed", 1234), "seed")
    out.put("train.log_every", partial(keys.count, "log_interval", least=1), "log_interval")
    _evaluation(keys, out)
    _checkpoints(keys, out)


def _origin(keys: NeoxKeys, out: Conversion) -> None:
    """Weights to start from: `load`, where that is not the run itself."""
    path, finetunes = keys.text("load"), keys.flag("finetune")
    if not path or out.is_given("train.init_from"):
        return
    refuse_checkpoint(place(path))
    if path == keys.text("save") and not finetunes:
        return  # the run goes on from its own checkpoints
    if is_hf_dir(path) or is_run_dir(path):
        out.put("train.init_from", lambda: path, "load")
    elif finetunes:
        raise keys.error("load", f"{path} is neither a Hugging Face directory nor a run to start from")
    else:
        out.ignored.append(f"load {path} (there is no model there)")


def _precision(keys: NeoxKeys, out: Conversion) -> str:
    named = keys.choice("precision", "", ("", "fp16", "fp32", "bfloat16"))
    half = keys.flag("fp16.enabled") or named == "fp16"
    brain = keys.flag("bf16.enabled") or named == "bfloat16" or keys.text("fp16.type") == "bfloat16"
    if half and not brain:
        text = "fp16: computes in bfloat16, with weights in float32 and no loss scaling"
        out.note("train.precision", text)
    return "bfloat16" if half or brain else "float32"


def _optimizer(keys: NeoxKeys, out: Conversion) -> None:
    def optimizer() -> str:
        name = keys.text("optimizer.type", "Adam")
        if name.lower() not in ("adam", "adamw"):
            raise keys.error("optimizer.type", f"{name} is not supported; Adam is")
        return "adamw"

    out.put("train.optimizer", optimizer, "optimizer.type")
    out.put("train.learning_rate", partial(keys.number, "optimizer.params.lr", 1e-3), "optimizer.params.lr")
    betas = partial(_betas, keys)
    out.put("train.beta1", lambda: betas()[0], "optimizer.params.betas")
    out.put("train.beta2", lambda: betas()[1], "optimizer.params.betas")
    out.put("train.epsilon", partial(keys.number, "optimizer.params.eps", 1e-8), "optimizer.params.eps")
    corrects = partial(keys.flag, "optimizer.params.bias_correction", True)
    out.put(
        "train.bias_correction", lambda: None if corrects() else False, "optimizer.params.bias_correction"
    )
    out.put("train.weight_decay", partial(keys.number, "weight_decay", 0.1), "weight_decay")
    out.put("train.clip_norm", partial(keys.number, "gradient_clipping", 1.0), "gradient_clipping")


def _betas(keys: NeoxKeys) -> list[float]:
    given = keys.get("optimizer.params.betas")
    if given is None:
        return [0.9, 0.999]
    if not isinstance(given, list) or len(given) != 2:
        raise keys.wrong("optimizer.params.betas", "two numbers, such as [0.9, 0.95]", given)
    return [keys.as_number("optimizer.params.betas", beta, "two numbers below 1") for beta in given]


def _schedule(keys: NeoxKeys, out: Conversion) -> None:
    """Decay and warm-up, whose lengths are shares of the updates that the decay lasts."""

    def schedule() -> str:
        return SCHEDULES[keys.choice("lr_decay_style", "linear", SCHEDULES)]

    out.put("train.schedule", schedule, "lr_decay_style")
    steps = out.count("train.steps", 1)
    share = keys.number("lr_decay_fraction")
    span = keys.count("lr_decay_iters", least=1)
    span = round(share * steps) if share is not None else span
    decay = span or steps
    out.put("train.decay_steps", lambda: span, "lr_decay_iters")
    out.put("train.warmup_steps", partial(_warmup, keys, decay), f"warmup, a share of {decay}")
    peak, floor = keys.number("optimizer.params.lr", 1e-3), keys.number("min_lr", 0.0)
    if floor > peak and not out.is_given("train.min_lr_ratio"):
        raise keys.error("min_lr", f"{floor:g} is more than the learning rate, {peak:g}")
    out.put("train.min_lr_ratio", lambda: float(f"{floor / peak:.12g}") if peak else 0.0, "min_lr / lr")


def _warmup(keys: NeoxKeys, decay: int) -> int:
    share = keys.number("warmup", 0.01)
    if share > 1:
        raise keys.wrong("warmup", "a share of the steps, from 0 to 1", share)
    return round(share * decay)


def _evaluation(keys: NeoxKeys, out: Conversion) -> None:
    batch = out.count("train.batch_size", 1)
    rows = out.count("train.microbatch", batch)
    iterations = keys.count("eval_iters", 100)
    out.put(
        "train.eval_every",
        lambda: keys.count("eval_interval", 1000, least=1) if iterations else None,
        "eval_interval",
    )
    out.put(
        "train.eval_batches", lambda: -(-iterations * batch // rows) or None, "eval_iters, in microbatches"
    )


def _checkpoints(keys: NeoxKeys, out: Conversion) -> None:
    steps = out.count("train.steps", 1)
    extra = keys.get("extra_save_iters") or []
    if not isinstance(extra, list) or not all(type(step) is int and step >= 0 for step in extra):
        raise keys.wrong("extra_save_iters", "a list of steps", extra)
    factor, scale = (
        keys.number("checkpoint_factor"),
        keys.choice("checkpoint_scale", "linear", ("linear", "log")),
    )
    if factor is None:
        if keys.text("save") and not extra and not out.is_given("train.checkpoint_every"):
            raise keys.error("save", "needs checkpoint_factor or extra_save_iters, which say when to save")
        every = steps if extra else None
    elif scale == "log":
        if factor <= 1:
            raise keys.wrong("checkpoint_factor", "a number above 1, since checkpoint_scale is log", factor)
        every, extra = steps, sorted({*extra, *_powers(factor, steps)})
    else:
        every = keys.count("checkpoint_factor", least=1)
    out.put("train.checkpoint_every", lambda: every, "checkpoint_factor")
    out.put(
        "train.checkpoint_steps",
        lambda: extra or None,
        "extra_save_iters" if scale == "linear" else "checkpoint_scale",
    )
    kept = keys.count("keep_last_n_checkpoints", least=1)
    origin = "keep_last_n_checkpoints" if kept else "keep_last_n_checkpoints: all"
    out.put("train.keep", lambda: kept or steps + 1, origin)


def _powers(factor: float, steps: int) -> list[int]:
    """1, factor, factor squared, ... below `steps`, cut to whole numbers."""
    found, step = [], 1.0
    while step < steps:
        found.append(int(step))
        step *= factor
    return found
