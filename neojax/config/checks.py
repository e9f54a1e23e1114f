"""What spans several keys of a configuration: whether they go together.

What does not raises `NeojaxError` with one line that names the keys.
"""

from dataclasses import fields

from neojax.config.keys import Config, TrainConfig
from neojax.config.model import HEADS, ModelConfig, PositionsConfig
from neojax.config.recipes import check_pairs
from neojax.config.tasks import check_task
from neojax.errors import NeojaxError, suggest


def check(config: Config) -> None:
    """Checks what spans several keys. Raises `NeojaxError`; the mesh is checked by `neojax.layout.mesh`."""
    model, train = config.model, config.train
    check_task(config)
    _check_heads(model)
    _ = model.attention_layers  # raises where the pattern does not fit n_layer
    _check_rotary(model)
    _check_axial(model)
    _check_sharing(model)
    _check_experts(model)
    _check_head(model)
    if train.microbatch and train.batch_size % train.microbatch:
        raise NeojaxError(
            f"train.microbatch={train.microbatch} does not divide train.batch_size={train.batch_size}"
        )
    match train.profile_steps:
        case ():
            pass
        case (int(first), int(last)) if 1 <= first <= last:
            pass
        case _:
            raise NeojaxError(
                f"train.profile_steps={list(train.profile_steps)}: expected the first and the last step to "
                "trace, such as [10, 12]; the first step of a run is 1"
            )
    if train.optimizer == "adafactor" and train.moment_dtype != "float32":
        raise NeojaxError(
            f"train.moment_dtype={train.moment_dtype}: adafactor's state is float32; leave it out or use "
            "adamw"
        )
    if train.lora.rank and train.frozen:
        raise NeojaxError(
            f"train.lora.rank={train.lora.rank} freezes all that it does not train; leave train.frozen="
            f"{list(train.frozen)} out"
        )
    _check_best(config)
    _check_mlm(model, train)
    check_pairs(config)
    if not all(type(step) is int and step >= 0 for step in train.checkpoint_steps):
        raise NeojaxError(
            f"train.checkpoint_steps={list(train.checkpoint_steps)}: expected a list of steps, such as "
            "[0, 1, 2, 4]"
        )
    if config.data.merges and not config.data.tokenizer:
        raise NeojaxError(
            f"data.merges={config.data.merges} goes with a vocab.json, which data.tokenizer does not name"
        )
    decays = train.schedule not in ("constant", "inverse_sqrt") and not train.warmup_scales_decay
    decays &= not train.epochs and not train.warmup_share  # checked when the rows are counted
    if decays and train.warmup_steps >= (train.decay_steps or train.steps):
        raise NeojaxError(
            f"train.warmup_steps={train.warmup_steps} leaves nothing of the "
            f"{train.decay_steps or train.steps} steps to decay over; lower it or raise train.steps"
        )


def check_unused(config: Config) -> None:
    """Raises `NeojaxError` for keys of what is not asked for, which would do nothing. Of what a run is asked:
    the config of one that is there opens with them."""
    train, lora, experts = config.train, config.train.lora, config.model.experts
    given = next((f.name for f in fields(lora) if getattr(lora, f.name) != f.default), None)
    if not lora.rank and given is not None:
        value = getattr(lora, given)
        raise NeojaxError(
            f"train.lora.{given}={list(value) if isinstance(value, tuple) else value} needs train.lora.rank, "
            "the rank of the additions; set that, or leave it out"
        )
    for name in ("eval_tasks_fewshot", "eval_tasks_limit"):
        if (value := getattr(train, name)) and not train.eval_tasks:
            raise NeojaxError(f"train.{name}={value} is for train.eval_tasks; name tasks, or leave it out")
    for name in ("capacity_factor", "group_size", "min_capacity", "tries"):
        if experts.dropless and (value := getattr(experts, name)) != getattr(type(experts), name):
            raise NeojaxError(
                f"model.experts.{name}={value} bounds what experts take in training, and with "
                "model.experts.dropless they take all; leave one of the two out"
            )
    if experts.second in ("all", "none") and experts.second_threshold != type(experts).second_threshold:
        raise NeojaxError(
            f"model.experts.second_threshold={experts.second_threshold} is for model.experts.second=random "
            "or threshold; set that, or leave it out"
        )


def _check_best(config: Config) -> None:
    train = config.train
    given = [n for n in ("patience", "min_gain", "best_is") if getattr(train, n) != getattr(TrainConfig, n)]
    if not train.best_metric:
        if given:
            raise NeojaxError(
                f"train.{given[0]}={getattr(train, given[0])} is for train.best_metric; set that, such as "
                "validation_loss"
            )
        return
    if not config.data.validation and not train.eval_tasks:
        raise NeojaxError(
            f"train.best_metric={train.best_metric} is of evaluations; set data.validation or "
            "train.eval_tasks"
        )
    if not train.eval_every:
        raise NeojaxError(
            f"train.best_metric={train.best_metric} compares evaluations, and there is but one, at the end; "
            "set train.eval_every"
        )


def _check_heads(model: ModelConfig) -> None:
    attention, heads = model.attention, model.attention.heads
    if attention.head_dim is None and model.n_embd % heads:
        raise NeojaxError(
            f"model.n_embd={model.n_embd} is not a multiple of model.attention.heads={heads}; change one of "
            "them"
        )
    if heads % model.kv_heads:
        raise NeojaxError(
            f"model.attention.kv_heads={model.kv_heads} does not divide model.attention.heads={heads}: every "
            "head of keys is read by equally many of queries; change one of them"
        )
    if model.kv_heads < heads and attention.memory_slots:
        raise NeojaxError(
            f"model.attention.memory_slots={attention.memory_slots} is for models with as many kv_heads as "
            f"heads ({heads}), this has {model.kv_heads}; leave one of the two out"
        )


def _check_mlm(model: ModelConfig, train: TrainConfig) -> None:
    is_language_model = "lm" in model.head.kinds
    if (model.causal or is_language_model) and model.causal != (train.mlm_mask_id is None):
        raise NeojaxError(
            f"model.causal={str(model.causal).lower()} with train.mlm_mask_id={train.mlm_mask_id}: masked "
            "tokens are predicted by a model that is not causal, and by no other; set both or neither"
        )
    if not all(type(id) is int for id in train.mlm_mask_ignore_ids):
        raise NeojaxError(
            f"train.mlm_mask_ignore_ids={list(train.mlm_mask_ignore_ids)}: expected a list of ids"
        )
    if train.mlm_mask_id is None:
        return
    for name in ("mlm_mask_id", "mlm_cls_token_id"):
        if (value := getattr(train, name)) is not None and value >= model.n_vocab:
            raise NeojaxError(f"train.{name}={value} is not below model.n_vocab={model.n_vocab}")
    if train.mlm_same_token_prob + train.mlm_random_token_prob > 1:
        raise NeojaxError("train.mlm_same_token_prob + mlm_random_token_prob is a share of at most 1")


def _check_sharing(model: ModelConfig) -> None:
    groups, inner = model.layer_groups, model.inner_layers
    if not model.share_parameters and (groups, inner) != (1, 1):
        raise NeojaxError(
            f"model.layer_groups={groups} and model.inner_layers={inner} are for "
            "model.share_parameters=true; set that, or leave them out"
        )
    if model.n_layer % (groups * inner):
        raise NeojaxError(
            f"model.n_layer={model.n_layer} is not a multiple of model.layer_groups={groups} times "
            f"model.inner_layers={inner}; every group has as many layers, and every set of weights as many "
            "turns"
        )


def _check_experts(model: ModelConfig) -> None:
    experts, layers = model.experts, model.experts.layers
    if not experts.number:
        if (
            given := next((f for f in fields(experts) if getattr(experts, f.name) != f.default), None)
        ) is not None:
            raise NeojaxError(
                f"model.experts.{given.name}={getattr(experts, given.name)} needs model.experts.number, the "
                "experts of a layer; set that, or leave it out"
            )
        return
    if bad := [layer for layer in layers if type(layer) is not int or not 0 <= layer < model.n_layer]:
        raise NeojaxError(
            f"model.experts.layers={list(layers)}: expected numbers of layers, 0 to {model.n_layer - 1}, not "
            f"{bad[0]!r}"
        )
    for key in ("top_k", "tries"):
        if (value := getattr(experts, key)) > experts.number:
            raise NeojaxError(
                f"model.experts.{key}={value} is more than model.experts.number={experts.number}; lower it"
            )
    for key, needed in (("second", 2), ("sampled", 1), ("tries", 1)):
        value = getattr(experts, key)
        if value != getattr(type(experts), key) and experts.top_k != needed:
            raise NeojaxError(
                f"model.experts.{key}={str(value).lower()} is for model.experts.top_k={needed}, which is "
                f"{experts.top_k}; change one of the two"
            )
    if model.share_parameters and len(set(model.expert_layers)) > 1:
        raise NeojaxError(
            f"model.experts.layers={list(layers)} with model.share_parameters=true: layers of one set of "
            "weights have experts all or none; leave layers out"
        )


def _check_head(model: ModelConfig) -> None:
    kinds = model.head.kinds
    given = f"model.head.kinds={list(kinds)}"
    if unknown := [kind for kind in kinds if kind not in HEADS]:
        raise NeojaxError(f"{given}: there is no head {unknown[0]!r}{suggest(unknown[0], HEADS)}")
    if len(set(kinds)) < len(kinds):
        raise NeojaxError(f"{given} names one head twice; name each once")
    if not model.is_encoder:
        if len(kinds) != 1 or kinds[0] in ("mlm", "pair"):
            raise NeojaxError(f"{given}: a {model.family} has lm, or one of {', '.join(HEADS[3:])}")
        if model.embedding.width is not None:
            raise NeojaxError(
                f"model.embedding.width={model.embedding.width}: a {model.family} has no table of another "
                "width than n_embd; leave it out"
            )
        _check_labels(model)
        return
    if "lm" in kinds or (len(kinds) > 1 and set(kinds) != {"mlm", "pair"}):
        raise NeojaxError(
            f"{given}: a {model.family} has mlm, pair, both of them, or one of {', '.join(HEADS[3:])}"
        )
    if model.causal:
        raise NeojaxError(
            f"model.causal=true: the tokens of a {model.family} see those after them; leave it out"
        )
    _check_labels(model)


def _check_labels(model: ModelConfig) -> None:
    if model.head.multilabel and model.head.kinds != ("sequence_classification",):
        raise NeojaxError(
            f"model.head.multilabel=true is for the head sequence_classification, not "
            f"{list(model.head.kinds)}; leave it out"
        )
    if not model.head.labels or len(set(model.head.labels)) < len(model.head.labels):
        raise NeojaxError(
            f"model.head.labels={list(model.head.labels)}: expected the names of the classes, each once"
        )


def _check_rotary(model: ModelConfig) -> None:
    dims, kind = model.positions.rotary_dims, model.positions.kind
    usual, positions = PositionsConfig(), model.positions
    if kind != "rotary":
        for name in ("rotary_dims", "interleaved", "scaling"):
            if (value := getattr(positions, name)) != getattr(usual, name):
                raise NeojaxError(
                    f"model.positions.{name}={value} is for model.positions.kind=rotary, which is {kind}; "
                    "set that, or leave it out"
                )
        return
    width = "attention.head_dim" if model.attention.head_dim else "n_embd / attention.heads"
    if dims is None and model.head_dim % 2:
        raise NeojaxError(
            f"model.positions.kind=rotary rotates pairs of features, but {width} = {model.head_dim} is odd; "
            "change model.attention.heads"
        )
    if dims is not None and (dims % 2 or dims > model.head_dim):
        raise NeojaxError(
            f"model.positions.rotary_dims={dims}: expected an even number, at most {width} = {model.head_dim}"
        )
    if positions.scaling == "none" and positions.scaling_factor != usual.scaling_factor:
        raise NeojaxError(
            f"model.positions.scaling_factor={positions.scaling_factor} needs "
            "model.positions.scaling, linear or llama3"
        )
    if positions.scaling == "llama3" and positions.scaling_long >= positions.scaling_short:
        raise NeojaxError(
            f"model.positions.scaling_long={positions.scaling_long} is not below scaling_short="
            f"{positions.scaling_short}: wavelengths between the two are stretched in part; change one"
        )


def _check_axial(model: ModelConfig) -> None:
    axial, kind = model.positions.axial, model.positions.kind
    given = f"model.positions.axial={list(axial)}"
    if kind != "axial":
        if axial:
            raise NeojaxError(
                f"{given} is for model.positions.kind=axial, which is {kind}; set that, or leave it out"
            )
        return
    match axial:
        case (int(rows), int(columns)) if rows > 0 and columns > 0:
            if rows * columns < model.n_ctx:
                raise NeojaxError(
                    f"{given} has {rows * columns} positions, but model.n_ctx={model.n_ctx}; make their "
                    "product at least that"
                )
        case _:
            raise NeojaxError(f"{given}: expected two counts, [a, b]")
