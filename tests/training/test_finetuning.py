"""Models are fine-tuned to rows of labelled text, from files to predictions."""

import json

import numpy as np
import pytest

import neojax
from neojax import config as configuration
from neojax.config.tasks import metrics_of
from neojax.convert import configs
from neojax.data import tokenizer as tokenizers
from neojax.data.labelled import read_rows
from neojax.errors import NeojaxError
from neojax.sampling.answered import answers
from neojax.sampling.predict import examples_of
from neojax.training.best import Best
from neojax.training.loop import train
from neojax.training.measures import MEASURES
from neojax.training.metrics import read_metrics

SENTENCE = "the cat sat on a mat and saw two dogs run by while it was raining"
MESH = {"shape": "data:4, model:2", "layout": "batch:data, heads:model, mlp:model, vocab:model"}


def rows(count, seed):
    """Texts in which "good" or "bad" stands once; what number of words they have; and whether B has the word
    of A."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        words = rng.choice(SENTENCE.split(), rng.integers(3, 24)).tolist()
        label = int(rng.integers(2))
        words.insert(int(rng.integers(len(words))), ("bad", "good")[label])
        yield {"text": " ".join(words), "label": ("bad", "good")[label], "length": len(words) / 10}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("train", 240), ("dev", 45)):
        own = list(rows(count, len(name)))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    texts = [row["text"] for row in rows(100, 9)]
    tokenizers.train(texts, 60, "wordpiece").save(str(folder / "tokenizer.json"))
    return folder


def config_of(data, run, *overrides, mesh=MESH, **model):
    raw = {
        "model": {"family": "bert", "n_layer": 1, "n_embd": 32, "n_ctx": 32, "n_vocab": 61, **model},
        "mesh": mesh,
        "data": {
            "train": str(data / "train.jsonl"), "validation": str(data / "dev.jsonl"),
            "task": "classification", "tokenizer": str(data / "tokenizer.json"),
        },
        "train": {
            "run_dir": str(run), "batch_size": 24, "epochs": 8, "learning_rate": 0.01, "unroll": 0,
            "log_every": 10, "checkpoint_every": 40, "tensorboard": False,
        },
    }  # fmt: skip
    none = {"dropout": 0.0}
    raw["model"] = {"attention": {"heads": 2, **none}, "embedding": none, **none, **raw["model"]}
    return configuration.from_dict(raw, overrides)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A BERT that has learned which of two words a text has."""
    folder = tmp_path_factory.mktemp("runs") / "bert"
    train(config_of(data, folder))
    return folder


def test_rows_of_any_length_are_split_over_devices(data, tmp_path):
    """At most 30 tokens, over 4 devices: rows are filled up to what divides, and padding changes nothing."""
    split = {"shape": "data:2, row:4", "layout": "batch:data, sequence:row"}
    logged, said = [], []
    for name, mesh in (("whole", MESH), ("split", split)):
        short = ("data.max_tokens=30", "train.epochs=0", "train.steps=2", "train.warmup_steps=0")
        train(config_of(data, tmp_path / name, *short, "train.log_every=1", mesh=mesh))
        logged.append(
            [
                row[key]
                for row in read_metrics(tmp_path / name)
                for key in ("loss", "grad_norm", "validation_loss")
                if key in row
            ]
        )
        model = neojax.load(tmp_path / name, mesh=configuration.MeshConfig(**mesh))
        texts = [(row["text"],) for row in rows(5, 3)]
        said.append(answers(model, examples_of(model, texts, 30)))
    np.testing.assert_allclose(*logged, rtol=1e-4)
    np.testing.assert_allclose(*said, atol=1e-3)


def test_rows_too_short_for_the_groups_of_experts_are_refused_before_a_run_begins(data, tmp_path):
    split = {"shape": "data:2, row:4", "layout": "batch:data, sequence:row"}
    experts = {"family": "gpt_neo", "n_layer": 2, "experts": {"number": 4, "group_size": 8}}
    with pytest.raises(NeojaxError, match=r"2 in a row of 16; give model\.experts\.group_size=4"):
        train(config_of(data, tmp_path / "run", mesh=split, **experts))
    assert not (tmp_path / "run").exists()


def test_a_bert_learns_labels_and_keeps_their_names(data, run):
    config = configuration.of_run(run)
    assert config.train.steps == 80 and config.train.warmup_steps == 8  # 8 epochs of 10 steps
    assert config.model.head.labels == ("bad", "good")
    last = read_metrics(run)[-1]
    assert last["validation_accuracy"] == last["validation_f1"] == 1.0
    assert last["validation_loss"] < 0.1


def test_predictions_are_those_of_the_evaluation(data, run):
    model = neojax.load(run)
    held_out = read_rows(data / "dev.jsonl", configuration.of_run(run).data)
    found = neojax.predict(model, [row.texts[0] for row in held_out])
    assert [own.label for own in found] == [row.label for row in held_out]
    loss = -np.mean([np.log(own.scores[row.label]) for own, row in zip(found, held_out)])
    assert loss == pytest.approx(read_metrics(run)[-1]["validation_loss"], rel=1e-2)
    alone = neojax.predict(model, held_out[7].texts[0])
    assert alone.scores == pytest.approx(found[7].scores, rel=1e-4)
    with pytest.raises(NeojaxError, match="text 2 is not text that UTF-8 can hold"):
        neojax.predict(model, ["a cat", "half \ud83d"])


def test_the_command_prints_what_the_model_says_and_how_good_it_is(data, run, capsys):
    from neojax.cli import main

    dev = str(data / "dev.jsonl")
    assert main(["predict", str(run), dev, dev, "--json"]) == 0
    out = capsys.readouterr()
    said = [json.loads(line) for line in out.out.splitlines()]
    assert len(said) == 90 and said[:45] == said[45:] and set(said[0]["scores"]) == {"bad", "good"}
    assert out.err.count("dev.jsonl: accuracy 1.0000, f1 1.0000") == 2
    assert main(["predict", str(run), str(data / "dev.jsonl"), "data.text=title"]) == 2
    assert "dev.jsonl:1 has no 'title'; it has text, label, length" in capsys.readouterr().err
    other = data / "other.jsonl"
    other.write_text('{"text": "a cat", "label": "cat"}')
    for words, message in (
        ([str(other)], "the label 'cat' is none of the model's"),
        ([str(data / "dev.jsonl"), "data.task=tagging"], "is a model for data.task=classification"),
    ):
        capsys.readouterr()
        assert main(["predict", str(run), *words]) == 2
        said, error = capsys.readouterr()
        assert message in error and not said


def test_transformers_says_the_same_of_an_exported_model(data, run, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from neojax.convert import hf
    from neojax.loading import load_trained

    hf.save(load_trained(run), tmp_path / "hf")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [row["text"] for row in rows(5, 3)]
    with torch.no_grad():
        given = tokenizer(texts, return_tensors="pt", padding=True)
        expected = theirs(**given).logits.softmax(-1).numpy()
    found = neojax.predict(neojax.load(tmp_path / "hf"), texts)
    np.testing.assert_allclose([list(own.scores.values()) for own in found], expected, atol=1e-6)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(data, run, tmp_path):
    few = ["train.epochs=0", "train.warmup_share=0", "train.warmup_steps=8", "train.decay_steps=80"]
    train(config_of(data, tmp_path / "run", *few, "train.steps=33"))
    train(config_of(data, tmp_path / "run", *few, "train.steps=80"))
    whole, parts = (
        {row["step"]: row["loss"] for row in read_metrics(folder)} for folder in (run, tmp_path / "run")
    )
    assert all(parts[step] == loss for step, loss in whole.items())


@pytest.mark.slow
def test_an_undivided_batch_in_microbatches_gives_the_same(data, run, tmp_path):
    one = {"shape": "data:8", "layout": ""}
    keys = ["train.microbatch=8", "train.steps=20", "train.epochs=0", "train.warmup_share=0"]
    keys += ["train.warmup_steps=8", "train.decay_steps=80"]
    train(config_of(data, tmp_path / "run", *keys, mesh=one))
    ours, theirs = read_metrics(tmp_path / "run"), read_metrics(run)
    for mine, its in zip(ours[:2], theirs[:2]):
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-3)
        assert mine["accuracy"] == pytest.approx(its["accuracy"])


def test_a_model_learns_a_number(data, tmp_path):
    train(config_of(data, tmp_path / "run", "data.task=regression", "data.label=length", "train.epochs=3",
                    mesh={"shape": "data:8", "layout": ""}))  # fmt: skip
    last = read_metrics(tmp_path / "run")[-1]
    assert last["validation_pearson"] > 0.8 and last["validation_spearman"] > 0.8
    assert "accuracy" not in last
    model = neojax.load(tmp_path / "run")
    short, long = neojax.predict(model, ["the cat sat", "the cat sat " * 8])
    assert short.label < long.label and not long.scores


@pytest.mark.slow
def test_a_decoder_tags_words(data, tmp_path, capsys):
    """A GPT-Neo, which knows of a word's class by the word and those before it."""
    from neojax.cli import main

    for name, seed in (("train", 1), ("dev", 2)):
        words = [row["text"].split() for row in rows(90, seed)]
        kind = {"good": "B-GOOD", "bad": "B-BAD", "cat": "B-PET", "dogs": "B-PET"}
        own = [{"tokens": w, "tags": [kind.get(x, "O") for x in w]} for w in words]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    texts = [row["text"] for row in rows(100, 9)]
    tokenizers.train(texts, 330).save(str(tmp_path / "tokenizer.json"))
    train(config_of(tmp_path, tmp_path / "run", "data.task=tagging", "train.epochs=8", "train.batch_size=8",
                    family="gpt_neo", n_layer=2, n_vocab=330))  # fmt: skip
    last = read_metrics(tmp_path / "run")[-1]
    assert configuration.of_run(tmp_path / "run").model.head.labels == ("O", "B-BAD", "B-GOOD", "B-PET")
    assert last["validation_f1"] > 0.95 and last["validation_accuracy"] > 0.95
    assert main(["data", "show", str(tmp_path / "run"), "--step", "1"]) == 0
    assert "label ['" in capsys.readouterr().out
    said = neojax.predict(neojax.load(tmp_path / "run"), "two dogs saw a good cat")
    assert [(e.kind, e.text, e.first) for e in said.entities][:2] == [("PET", "dogs", 1), ("GOOD", "good", 4)]
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "dev.jsonl")]) == 0
    assert f"f1 {last['validation_f1']:.4f}" in capsys.readouterr().err


def test_a_pretrained_model_is_fine_tuned_with_its_own_tokenizer(data, run, tmp_path):
    """From another's weights: heads of other classes begin afresh, and names of classes may be given."""
    path = tmp_path / "more.yml"
    path.write_text(
        f"data: {{task: sst2, train: {data}/train.jsonl}}\nmodel: {{head: {{labels: [bad, good]}}}}\n"
        f"train: {{init_from: {run}, run_dir: {tmp_path}/run, epochs: 0.2, tensorboard: false}}\n"
    )
    config = configs.load(path)
    assert (config.train.learning_rate, config.train.batch_size) == (2e-5, 32)
    assert config.model.n_embd == 32
    train(config)
    assert read_metrics(tmp_path / "run")[-1]["loss"] < 0.1
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (run / "tokenizer.json").read_text()


CONFIG = [
    ({"data.pairs": "sop"}, "data.task=classification: a row is one example; leave data.pairs=sop out"),
    ({"data.max_tokens": 33}, "data.max_tokens=33 is more than model.n_ctx=32"),
    ({"data.tokenizer": ""}, "data.task=classification needs a tokenizer: give train.init_from"),
    ({"data.train": ""}, "data.train is empty; name a file of rows for data.task=classification"),
    ({"model.n_vocab": 40}, "the tokenizer has 60 ids but model.n_vocab=40"),
    ({"data.task": "sst2"}, "the label 'bad' is none of the model's, 0, 1|the label 'good' is none"),
    ({"data.task": "clasification"}, "did you mean classification"),
    ({"data.task": "none"}, "data.task, or leave it out|train.epochs=8.0 is for rows of labelled text"),
]


@pytest.mark.parametrize(("keys", "message"), CONFIG)
def test_what_does_not_go_with_a_task_is_named(keys, message, data, tmp_path):
    with pytest.raises(NeojaxError, match=message):
        train(config_of(data, tmp_path / "run", *(f"{name}={value}" for name, value in keys.items())))


def test_the_rows_of_a_step_are_shown(data, run, capsys):
    from neojax.data.show import show

    show(configuration.of_run(run), run, 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 48 and lines[0].startswith("=== step 3, microbatch 0, row 0: label ")
    assert all(head.rpartition(" ")[2] in text for head, text in zip(lines[::2], lines[1::2]))


def test_recipes_give_way_to_what_is_given():
    raw = {"data": {"task": "rte"}, "train": {"run_dir": "x", "steps": 7, "warmup_steps": 0}}
    bert = configuration.from_dict({**raw, "model": {"family": "bert"}})
    assert (bert.train.epochs, bert.train.steps, bert.train.warmup_share) == (0.0, 7, 0.0)
    assert (bert.train.batch_size, bert.train.learning_rate) == (32, 2e-5)
    albert = configuration.from_dict({"data": {"task": "rte"}, "model": {"family": "albert"}})
    assert (albert.train.epochs, albert.train.warmup_share, albert.train.learning_rate) == (10.3, 0.25, 3e-5)
    assert albert.model.head.kinds == ("sequence_classification",)


def test_every_task_is_measured_by_what_there_is():
    of_rows = [t for t in configuration.TASKS.values() if t.head == "sequence_classification"]
    assert {name for task in of_rows for name in task.metrics} <= set(MEASURES)


def test_a_metric_without_its_source_is_suggested_with_it():
    told = [f"validation_{name}" for name in metrics_of("tagging")]
    assert told == ["validation_precision", "validation_recall", "validation_f1"]
    with pytest.raises(NeojaxError, match="validation_f1"):
        Best(configuration.TrainConfig(best_metric="f1"), None).check(told)
