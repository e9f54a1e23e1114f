"""Every key is documented and checked; a config survives being written and read."""

import dataclasses
import math
import typing

import pytest
import yaml

from neojax import config as configuration
from neojax.config import Config, ModelConfig, dump, expand_attention_types, from_dict, load
from neojax.convert import configs
from neojax.errors import NeojaxError


def refused(call, *args):
    """The message of the error, one line."""
    with pytest.raises(NeojaxError) as error:
        call(*args)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.learning_rat=1", ["train.learning_rat", "did you mean train.learning_rate"]),
        ("model.n_layers=2", ["model.n_layers", "did you mean model.n_layer"]),
        ("model.attention.head=2", ["model.attention.head;", "did you mean model.attention.heads?"]),
        ("model.heads=2", ["model.heads;", "did you mean model.attention.heads?"]),
        ("model.n_heads=2", ["model.n_heads;", "did you mean model.attention.heads?"]),
        ("model.layer_norm_eps=1", ["model.layer_norm_eps;", "did you mean model.norm.epsilon?"]),
        ("train.n_head=2", ["train.n_head;", "did you mean model.attention.heads?"]),
        ("model.mlp.heads=2", ["model.mlp.heads;", "did you mean model.attention.heads?"]),
        ("model.kind=2", ["model.kind;", "did you mean model.norm.kind or model.positions.kind?"]),
        ("model.n_head.x=2", ["model.n_head.x;", "did you mean model.attention.heads?"]),
        ("model.attention.heads.x=2", ["model.attention.heads", "a whole number"]),
        ("model.attention=2", ["model.attention: expected keys and values, got 2"]),
        ("train.attention.heads=2", ["train.attention.heads;", "did you mean model.attention.heads?"]),
        ("data.train.path=x", ["unknown key data.train.path"]),
        ("train.init=null", ["unknown key train.init;"]),
        ("format.x=2", ["unknown section 'format'"]),
        (
            "model.positions.axial=[3, 4]",
            ["model.positions.axial=[3, 4]", "model.positions.kind=axial", "learned"],
        ),
        ("model.positions.kind=axial", ["model.positions.axial=[]", "two counts"]),
        ("trian.steps=3", ["trian", "did you mean train"]),
        ("data.train=[{pth: x}]", ["data.train[0].pth", "did you mean data.train[0].path"]),
        ("train.steps=ten", ["train.steps", "a whole number", "'ten'"]),
        ("train.steps=1.5", ["train.steps", "a whole number", "1.5"]),
        ("train.steps=true", ["train.steps", "a whole number"]),
        ("train.steps=", ["train.steps", "a whole number"]),
        ("train.steps=null", ["train.steps", "a whole number"]),
        ("train.steps=0", ["train.steps", "at least 1"]),
        ("train.learning_rate=-1", ["train.learning_rate", "at least 0"]),
        ("train.learning_rate=.nan", ["train.learning_rate", "a number"]),
        ("train.learning_rate=.inf", ["train.learning_rate", "a number"]),
        ("train.learning_rate=[1]", ["train.learning_rate", "a number"]),
        ("train.remat=ful", ["train.remat", "'ful'", "did you mean full"]),
        ("train.schedule=zzz", ["train.schedule", "cosine", "inverse_sqrt"]),
        ("train.run_dir=3", ["train.run_dir", "a text"]),
        ("train.tensorboard=maybe", ["train.tensorboard", "true or false"]),
        ("data.train=7", ["data.train", "a path or a list"]),
        ("train.no_decay=[1]", ["train.no_decay", "a list of texts"]),
        ("model.n_head=5", ["model.n_embd", "model.attention.heads=5"]),
        ("model.res_dropout=1", ["model.dropout"]),
        ("model.attention_types=[global, locl]", ["model.attention.types", "did you mean local"]),
        ("model.attention_types=[[[global], 5]]", ["model.attention.types", "5 layers", "12"]),
        ("model.attention_types=[global, global, local, local, local]", ["5 layers", "model.n_layer"]),
        ("model.attention_types=[]", ["model.attention.types"]),
        ("model.attention_types=[[global, 5]]", ["model.attention.types"]),
        (
            "model.attention_types=[[[global, local], 1000000000]]",
            ["model.attention.types", "1000000000 times"],
        ),
        ("model.attention_types=[[[global], 0], [[local], 12]]", ["model.attention.types", "0 times"]),
        ("train.adafactor_decay=1", ["train.adafactor_decay", "below 1", "got 1"]),
        ("train.beta1=1.5", ["train.beta1", "at least 0 and below 1", "got 1.5"]),
        ("train.beta2=1", ["train.beta2", "below 1"]),
        ("train.beta2=0.99999999999", ["train.beta2", "below 1"]),
        ("train.epsilon=0", ["train.epsilon", "above 0"]),
        ("train.epsilon=1e-60", ["train.epsilon", "above 0"]),
        ("train.learning_rate=1e39", ["train.learning_rate", "a number"]),
        ("train.seed=9223372036854775808", ["train.seed", "at most 9223372036854775807"]),
        ("train.steps=4294967296", ["train.steps", "at most 2147483647"]),
        ("model.n_layer=1000000000", ["model.n_layer", "at most 100000"]),
        ("data.train=[{path: a, weight: .inf}]", ["data.train[0].weight", "a number"]),
        ("train.microbatch=3", ["train.microbatch=3", "train.batch_size=8"]),
        ("train.warmup_steps=1000", ["train.warmup_steps=1000", "1000 steps"]),
        ("train.profile_steps=[3]", ["train.profile_steps=[3]", "such as [10, 12]"]),
        ("train.profile_steps=[0, 2]", ["train.profile_steps=[0, 2]", "is 1"]),
        ("train.profile_steps=[4, 3]", ["train.profile_steps=[4, 3]", "such as [10, 12]"]),
        ("train.profile_steps=3", ["train.profile_steps", "a list", "3"]),
        ("train.checkpoint_steps=[1, -2]", ["train.checkpoint_steps=[1, -2]", "a list of steps"]),
        ("data.merges=merges.txt", ["data.merges=merges.txt", "vocab.json", "data.tokenizer"]),
        ("steps=3", ["'steps=3'", "section.key=value"]),
        ("train.steps", ["'train.steps'", "section.key=value"]),
        ("train.steps=[", ["train.steps=[", "YAML"]),
    ],
)
def test_one_line_names_the_key_and_what_would_do(override, words):
    text = refused(from_dict, {}, [override])
    for word in words:
        assert word in text


def numeric_keys(cls=Config, prefix=""):
    """(name of the key, the fraction or whole number it is, its range) of every number in a config."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        hint, name = hints[f.name], f"{prefix}{f.name}"
        kind = next((k for k in (int, float) if hint is k or k in typing.get_args(hint)), None)
        if dataclasses.is_dataclass(hint):
            yield from numeric_keys(hint, f"{name}.")
        elif kind is not None:
            yield name, kind, f.metadata["range"]


@pytest.mark.parametrize(
    "name, kind, bounds", list(numeric_keys()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_number_has_a_range_and_nothing_beyond_it_is_taken(name, kind, bounds):
    step = 1 if kind is int else 1e-6
    beyond = [
        -1 if bounds.least is None else bounds.least - step,
        2**70 if bounds.most is None else bounds.most + step,
        *([] if bounds.above is None else [bounds.above]),
        *([] if bounds.below is None else [bounds.below]),
    ]
    assert bounds.least is not None or bounds.above is not None
    for value in ("nan", ".nan", "inf", "-.inf", "1e400", *beyond):
        if value == 2**70 and kind is float:
            continue
        assert name in refused(from_dict, {}, [f"{name}={value}"]), value


def test_a_whole_number_is_read_to_its_last_digit():
    assert from_dict({}, ["train.seed=9007199254740993"]).train.seed == 2**53 + 1
    assert from_dict({}, ["train.seed=9223372036854775807"]).train.seed == 2**63 - 1


def test_adafactor_has_no_first_moment_to_store_in_half():
    text = refused(from_dict, {}, ["train.optimizer=adafactor", "train.moment_dtype=bfloat16"])
    assert "train.moment_dtype" in text and "adamw" in text


@pytest.mark.parametrize(
    "key, right", [("model.learning_rate", "train.learning_rate"), ("n_embd", "model.n_embd"), ("lr", None)]
)
def test_a_key_of_another_section_is_found(key, right):
    section, _, name = key.rpartition(".")
    raw = {section: {name: 1}} if section else {name: 1}
    text = refused(from_dict, raw)
    assert (f"did you mean {right}" if right else "model, mesh, data, train") in text


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_section_that_is_none_is_refused_without_keys_too(nothing):
    assert "unknown key trian; did you mean train?" in refused(from_dict, {"trian": nothing})
    assert from_dict({"train": nothing}) == from_dict({})


def test_a_dotted_name_in_a_file_is_said_to_be_nested():
    for raw in ({"model": {"attention.heads": 4}}, {"model.attention.heads": 4}):
        text = refused(from_dict, raw)
        assert "attention.heads" in text and "did you mean" not in text
        assert "{model: {attention: {heads: ...}}}" in text
    assert "did you mean model.mlp.width?" in refused(from_dict, {"model": {"attention": {"mlp.width": 3}}})


@pytest.mark.parametrize(
    "text, words",
    [
        ("- 1\n", ["expected sections", "list"]),
        ("model: 3\n", ["model", "expected keys and values"]),
        ("model: {n_layer: 2\n", ["not valid YAML"]),
    ],
)
def test_files_that_are_no_config(text, words, tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(text)
    message = refused(load, path)
    for word in ("c.yml", *words):
        assert word in message


def test_files_that_cannot_be_read(tmp_path):
    assert "absent.yml" in refused(load, tmp_path / "absent.yml")
    assert str(tmp_path) in refused(load, tmp_path)
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yml" in refused(load, tmp_path / "binary.yml")


@pytest.mark.parametrize(
    "text, value", [("6e-4", 6e-4), ("6.0e-4", 6e-4), ("1e-3", 1e-3), (".5", 0.5), ("1", 1.0), ("'2'", 2.0)]
)
def test_numbers_as_people_write_them(text, value):
    """YAML 1.1 reads 6e-4 as a text."""
    rate = from_dict({}, [f"train.learning_rate={text}"]).train.learning_rate
    assert rate == value and isinstance(rate, float)
    assert from_dict(yaml.safe_load(f"train: {{learning_rate: {text}}}")).train.learning_rate == value


@pytest.mark.parametrize("text", ["1e3", "1000", "1000.0", "1_000"])
def test_whole_numbers_as_people_write_them(text):
    steps = from_dict({}, [f"train.steps={text}"]).train.steps
    assert steps == 1000 and isinstance(steps, int)


def test_values_are_of_their_declared_type():
    train = from_dict({}, ["train.weight_decay=0", "train.batch_size=4.0"]).train
    assert isinstance(train.weight_decay, float) and isinstance(train.batch_size, int)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.learning_rate=6e-4", "train.epsilon=1e-30", "model.n_inner=100"],
        ["data.train=[{path: a, weight: 2}, b]", "data.validation=c", "train.no_decay=[vocab, '*norm*']"],
        ["model.attention_types=[[[global, local], 6]]", "train.run_dir='5'", "data.tokenizer='é: #'"],
    ],
)
def test_what_is_written_is_read_back(overrides, tmp_path):
    config = from_dict({}, overrides)
    (tmp_path / "c.yml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "c.yml") == config
    assert hash(load(tmp_path / "c.yml")) == hash(config)


@pytest.mark.parametrize("name", ["data.validation", "train.rate_factors", "train.mlm_mask_ignore_ids"])
def test_a_list_of_nothing_on_the_command_line_is_empty(name):
    """A file's entries are taken back so."""
    section, key = name.split(".")
    file = {section: {key: ["a:1"] if key == "rate_factors" else [1] if "ids" in key else "a"}}
    assert getattr(getattr(from_dict(file, [f"{name}="]), section), key) == ()


def test_overrides_win_and_leave_the_rest(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text("train: {steps: 5, batch_size: 2, warmup_steps: 0}\nmodel:\n")
    config = load(path, ["train.steps=7", "train.steps=9"])
    assert (config.train.steps, config.train.batch_size) == (9, 2)
    assert config.model == ModelConfig()


def test_steps_on_the_command_line_take_the_place_of_the_epochs_of_a_file():
    raw = {"data": {"task": "sst2", "train": "a"}, "train": {"epochs": 3, "warmup_share": 0.1, "steps": 5}}
    given = ["train.steps=7", "train.warmup_steps=2"]
    train = from_dict(raw, given).train
    assert (train.epochs, train.steps, train.warmup_share, train.warmup_steps) == (0, 7, 0, 2)
    assert from_dict(raw, [*given, "train.epochs=2"]).train.epochs == 2
    assert from_dict(raw, ["train.epochs=0"]).train.steps == 5


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("train.lora.alpha=32", "train.lora.rank"),
        ("train.lora.targets=[attn.key]", "train.lora.rank"),
        ("train.eval_tasks_limit=5", "train.eval_tasks;"),
        ("train.eval_tasks_fewshot=1", "train.eval_tasks;"),
        ("model.experts.second_threshold=0.5", "model.experts.second=random"),
        ("model.experts.capacity_factor=2.0", "model.experts.dropless"),
        ("model.experts.group_size=4", "model.experts.dropless"),
        ("model.experts.min_capacity=4", "model.experts.dropless"),
        ("model.experts.tries=2", "model.experts.dropless"),
    ],
)
def test_keys_of_what_is_not_asked_for_are_refused_but_where_a_run_has_them(override, needed, tmp_path):
    experts = ["model.experts.number=4"] if "experts" in override else []
    experts += ["model.experts.dropless=true"] if "dropless" in needed else []
    experts += ["model.experts.top_k=1"] if "tries" in override else []
    (tmp_path / "config.yml").write_text("{}")
    text = refused(configs.load, tmp_path / "config.yml", [override, *experts])
    assert override.partition("=")[0] in text and needed in text
    assert configuration.of_run(tmp_path, [override, *experts])


def test_every_key_is_documented():
    rows = configuration.describe()
    assert len(rows) > 40
    for name, kind, default, doc in rows:
        assert len(doc) > 10, name
        assert kind, name
        assert configuration.value_at(Config(), name) == default
        assert not isinstance(default, float) or math.isfinite(default)


@pytest.mark.parametrize(
    "spec, layers, expected",
    [
        (("global", "local"), 4, "glgl"),
        (("global",), 3, "ggg"),
        (("global", "local", "local"), 3, "gll"),
        (((("global", "local"), 2),), 4, "glgl"),
        (((("global",), 3), (("local",), 1)), 4, "gggl"),
        (((("global",), 1), (("local", "global"), 2)), 5, "glglg"),
    ],
)
def test_attention_types(spec, layers, expected):
    assert "".join(name[0] for name in expand_attention_types(spec, layers)) == expected


def test_attention_types_on_the_command_line():
    for text in ("[global, local]", "global", "global,local", "[[[global, local], 6]]"):
        assert len(from_dict({}, [f"model.attention_types={text}"]).model.attention_layers) == 12


@pytest.mark.parametrize(
    "text, words",
    [
        ("train:\n  steps: 1\n  seed: 2\n  steps: 3\n", ["steps is given twice, in lines 2 and 4"]),
        ("model: {n_layer: 1}\ntrain: {}\nmodel: {n_head: 2}\n", ["model is given twice, in lines 1 and 3"]),
    ],
)
def test_a_key_that_is_given_twice_is_refused(text, words, tmp_path):
    path = tmp_path / "run.yml"
    path.write_text(text)
    message = refused(load, path)
    assert all(word in message for word in [*words, "run.yml"])


@pytest.mark.parametrize(
    "text", ["[" * 2000, "2020-13-45", "!!int x", "\0", "a: b: c", "&a [*a]", "!!python/object:x {}"]
)
def test_text_that_is_no_yaml_is_one_line(tmp_path, text):
    (tmp_path / "a.yml").write_text(f"train: {text}\n")
    for read in (lambda: load(tmp_path / "a.yml"), lambda: from_dict({}, [f"model.attention_types={text}"])):
        with pytest.raises(NeojaxError) as e:
            read()
        assert len(str(e.value).splitlines()) == 1
