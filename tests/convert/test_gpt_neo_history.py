"""Old gpt-neo configs: read, or refused by the name of what is in the way; nothing is written that is not
taken."""

import json

import pytest
from old_configs import GLOBS, NAMED, PATTERNS, READ, REFUSED, SEVERAL

from neojax import cli
from neojax.convert import configs, gpt_neo
from neojax.errors import NeojaxError

WRONG = (5, -1, 0, 2.5, 1e400, 10**400, "abc", "", "1:2", "a\nb", "\ud800", True, False)
WRONG = (*WRONG, [], [[]], [1, [2]], ["x"], [[["x"], 1]], [[["global"], -1]], {}, {"a": [1]})
KEYS = (
    *PATTERNS,
    *NAMED,
    "rotary_emb",
    "axial_pos_emb",
    "num_mem_kv",
    "mlp_glu",
    "rezero",
    "macaron",
    "share_parameters",
    "local_attention_radius",
    "intermediate_size",
    "activation_fn",
    "entmax_loss",
    "z_loss",
    "seed",
    "mlm_training",
    "mlm_mask_id",
    "mlm_mask_prob",
    "mlm_mask_ignore_ids",
    "lr_decay_end",
    "residual",
    "moe_layers",
    "moe_params",
    "padding_id",
    "a new key",
    "causal",
    "precision",
)


def write(folder, keys):
    path = folder / "old.json"
    path.write_text(json.dumps(keys))
    return path


def check_taken(path, overrides=()):
    """That what `convert` writes is the config that training reads from the JSON."""
    again = path.with_suffix(".yml")
    again.write_text(gpt_neo.convert_text(path, overrides))
    assert configs.load(again) == configs.load(path, overrides)


@pytest.mark.parametrize("name", READ)
def test_an_old_config_is_read_and_what_convert_writes_is_the_same(tmp_path, name):
    check_taken(write(tmp_path, READ[name]))


def test_what_convert_writes_of_every_shipped_config_is_taken(shared_data, tmp_path):
    for path in sorted((shared_data / "gpt-neo-configs").glob("*.json")):
        check_taken(write(tmp_path, json.loads(path.read_text())))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_and_read_where_a_value_is_given(tmp_path, name, capsys):
    keys, message, overrides = REFUSED[name]
    path, out = write(tmp_path, keys), tmp_path / "run.yml"
    with pytest.raises(NeojaxError, match=message) as e:
        gpt_neo.convert_text(path)
    assert len(str(e.value).splitlines()) == 1
    assert cli.main(["convert", str(path), str(out)]) == 2
    assert not out.exists() and len(capsys.readouterr().err.splitlines()) == 1
    if overrides:
        check_taken(path, overrides)
        assert cli.main(["convert", str(path), str(out), *overrides]) == 0
    else:
        with pytest.raises(NeojaxError, match=message):
            configs.load(path, ["model.attention_types=global"])


def test_globs_are_sources_below_data_path_with_their_weight(tmp_path):
    one = configs.load(write(tmp_path, GLOBS)).data
    assert [(s.path, s.weight) for s in one.train] == [("gs://old-data/webtext/webtext_*.tfrecords", 1.0)]
    assert one.validation == ()  # eval_steps is 0
    several = configs.load(write(tmp_path, SEVERAL)).data
    assert [(s.path, s.weight) for s in several.train] == [
        ("gs://a/train_*.tfrecords", 3.0),
        ("gs://b/train_*.tfrecords", 0.5),
    ]
    assert [s.path for s in several.validation] == ["gs://a/eval_*.tfrecords"]
    (tmp_path / "mine_0.tfrecords").touch()
    beside = {**GLOBS, "data_path": None, "datasets": [["mine_*.tfrecords", "", 1, "chunks", 1]]}
    assert configs.load(write(tmp_path, beside)).data.train[0].path == str(tmp_path / "mine_*.tfrecords")


def test_layers_of_gpt2_were_global_before_they_had_types(tmp_path):
    assert configs.load(write(tmp_path, GLOBS)).model.attention_layers == ("global", "global")
    types = ["model.attention_types=[local,global]"]
    assert configs.load(write(tmp_path, GLOBS), types).model.attention_layers == ("local", "global")


def test_a_value_that_is_given_is_not_listed_as_ignored(tmp_path, capsys):
    keys = {**PATTERNS, "layout": "batch:x,foo:y", "n_ctx": "abc"}
    keys = {k: v for k, v in keys.items() if k not in ("local", "layer_offset", "microbatches_per_batch")}
    configs.load(write(tmp_path, keys), ["model.n_ctx=8", "mesh.layout=batch:x"])
    assert not capsys.readouterr().err


def test_rows_of_a_microbatch_follow_the_batch_that_is_given(tmp_path):
    path = write(tmp_path, NAMED)  # 4 replicas, 2 sequences each
    assert configs.load(path).train.microbatch == 8
    assert configs.load(path, ["train.batch_size=4"]).train.microbatch == 4
    assert configs.load(path, ["train.batch_size=3"]).train.microbatch == 0


@pytest.mark.parametrize("key", dict.fromkeys(KEYS))
def test_a_value_of_any_wrong_type_is_one_line_or_none(tmp_path, key, capsys):
    for value in WRONG:
        path = write(tmp_path, {**NAMED, key: value})
        try:
            configs.load(path)
        except NeojaxError as e:
            assert len(str(e).splitlines()) == 1, (value, str(e))
        assert len(capsys.readouterr().err.splitlines()) <= 1, value


def test_the_tokenizer_of_a_dataset_is_not_that_of_other_data(tmp_path, capsys):
    (tmp_path / "dataset_configs").mkdir()
    dataset = {"path": "a/*.tfrecords", "tokenizer_path": "own.json", "tokenizer_is_pretrained": False}
    (tmp_path / "dataset_configs" / "mine.json").write_text(json.dumps(dataset))
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**PATTERNS, "datasets": [["mine", 25, "documents_random", 1.0]]}))
    assert gpt_neo.load(path)["data"]["tokenizer"] == "own.json"
    assert "tokenizer" not in gpt_neo.load(path, {"data": {"train": "prepared"}}).get("data", {})
    assert "tokenizer_path own.json (data.train is given)" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1, str(2**62 + 1)])
def test_whole_numbers_are_those_that_are_written(tmp_path, seed):
    assert gpt_neo.load(write(tmp_path, {**PATTERNS, "seed": seed}))["train"]["seed"] == int(seed)
