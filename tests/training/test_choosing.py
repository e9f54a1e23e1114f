"""Models learn which of several texts is right, and which of several classes hold."""

import json

import jax
import numpy as np
import pytest
from helpers import failure, layout_of, noisy
from test_finetuning import SENTENCE, config_of

import neojax
from neojax import config as configuration
from neojax.cli import main
from neojax.data import tokenizer as tokenizers
from neojax.data.task_rows import TaskRows
from neojax.errors import NeojaxError
from neojax.training.loop import train
from neojax.training.measures import measured
from neojax.training.metrics import read_metrics

NAMES = ("cats", "dogs", "rain")


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))


def choosing(count, seed):
    """Which of two or three texts has the word that is asked for."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        choices = [
            " ".join(rng.choice(SENTENCE.split(), rng.integers(2, 6))) for _ in range(rng.integers(2, 4))
        ]
        right = int(rng.integers(len(choices)))
        choices[right] += " good"
        yield {"context": "which is it ?", "choices": choices, "label": right}


def holding(count, seed):
    """Texts in which any of three words stand."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        words = rng.choice(SENTENCE.split()[:8], rng.integers(3, 9)).tolist()
        there = [name for name in NAMES if rng.uniform() < 0.4]
        for name in there:
            words.insert(int(rng.integers(len(words))), name)
        yield {"text": " ".join(words), "label": there}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    write(folder / "train.jsonl", choosing(240, 0))
    write(folder / "dev.jsonl", choosing(40, 1))
    write(folder / "many.jsonl", holding(300, 0))
    write(folder / "many_dev.jsonl", holding(50, 1))
    texts = [SENTENCE + " which is it ? good cats dogs rain"] * 3
    tokenizers.train(texts, 80, "wordpiece").save(str(folder / "tokenizer.json"))
    tokenizers.train(texts, 330).save(str(folder / "bpe.json"))
    return folder


def choices_config(data, run, *keys, **model):
    own = ["data.task=multiple_choice", "train.learning_rate=0.005", "train.epochs=6"]
    return config_of(data, run, *own, *keys, **{"n_vocab": 81, "init": {"std": 0.1}, **model})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "choices"
    train(choices_config(data, folder))
    return folder


def test_a_bert_learns_to_choose_and_predicts_as_it_was_evaluated(data, run, capsys):
    last = read_metrics(run)[-1]
    assert last["validation_accuracy"] > 0.9
    rows = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    assert main(["predict", str(run), str(data / "dev.jsonl"), "--json"]) == 0
    out, err = capsys.readouterr()
    said = [json.loads(line) for line in out.splitlines()]
    assert f"accuracy {last['validation_accuracy']:.4f}" in err
    for each, row in zip(said, rows):
        assert each["text"] == row["choices"][each["choice"]] and len(each["scores"]) == len(row["choices"])
        assert sum(each["scores"]) == pytest.approx(1, abs=1e-5)
    alone = neojax.predict(neojax.load(run), (rows[3]["context"], rows[3]["choices"]))
    assert alone.scores == pytest.approx(said[3]["scores"], abs=1e-5)
    loss = -np.mean([np.log(each["scores"][row["label"]]) for each, row in zip(said, rows)])
    assert loss == pytest.approx(last["validation_loss"], rel=1e-2, abs=1e-4)
    with pytest.raises(NeojaxError, match="expected a text and a list of two choices or more as a tuple"):
        neojax.predict(neojax.load(run), [("a", ["b"])])
    assert main(["data", "show", str(run), "--step", "1"]) == 0
    assert "good" in capsys.readouterr().out


def test_transformers_chooses_the_same(data, run, tmp_path, capsys):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from neojax.convert import hf
    from neojax.loading import load_trained

    hf.save(load_trained(run), tmp_path / "hf")
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    context, choices = "which is it ?", ["a mat was raining", "dogs good", "the cat sat on a mat"]
    given = tokenizer([context] * 3, choices, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs(**{name: value[None] for name, value in given.items()}).logits.softmax(-1)[0]
    said = neojax.predict(neojax.load(tmp_path / "hf"), (context, choices))
    np.testing.assert_allclose(said.scores, expected.numpy(), atol=1e-6)
    assert main(["predict", str(tmp_path / "hf"), str(data / "dev.jsonl")]) == 0
    assert f"accuracy {read_metrics(run)[-1]['validation_accuracy']:.4f}" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["bert", pytest.param("gpt_neo", marks=pytest.mark.slow)])
def test_choices_that_are_not_there_change_nothing_on_any_layout(family, data, run):
    """A question of two choices beside one of three, or alone with its own."""
    model = {"bert": {}, "gpt_neo": {"n_vocab": 330, "n_layer": 2}}[family]
    name = "tokenizer" if family == "bert" else "bpe"
    config = choices_config(
        data, "", f"data.tokenizer={data}/{name}.json", "data.validation=", family=family, **model
    )
    rows = TaskRows(config, tokenizers.load(data / f"{name}.json")).train
    two, three = (next(i for i, row in enumerate(rows.rows) if len(row) == n) for n in (2, 3))
    both = rows.batch([two, three])
    own = [jax.tree.map(lambda x, i=i, n=n: x[i : i + 1, :n] if x.ndim > 1 else x[i : i + 1], both)
           for i, n in ((0, 2), (1, 3))]  # fmt: skip
    losses = []
    for layout in (layout_of("data:1"), layout_of("data:2, seq:2", "batch:data, sequence:seq")):
        bound = noisy(config.model, layout)
        with jax.set_mesh(bound.layout.mesh):
            loss = jax.jit(lambda batch, bound=bound: bound.loss(batch).total())
            losses.append(float(loss(both)))
            if layout.mesh.size == 1:
                losses.append(sum(float(loss(each)) for each in own))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.fixture(scope="module")
def several(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "several"
    keys = ["data.task=multilabel", f"data.train={data}/many.jsonl", f"data.validation={data}/many_dev.jsonl"]
    keys += ["train.epochs=8", "train.learning_rate=0.01"]
    train(config_of(data, folder, *keys, n_vocab=81, init={"std": 0.1}))
    return folder


def test_a_bert_learns_which_classes_hold(data, several, capsys):
    config, last = configuration.of_run(several), read_metrics(several)[-1]
    assert config.model.head.labels == NAMES and config.model.head.multilabel
    assert last["validation_micro_f1"] > 0.8 and last["validation_macro_f1"] > 0.7
    assert main(["predict", str(several), str(data / "many_dev.jsonl"), "--json"]) == 0
    out, err = capsys.readouterr()
    said = [json.loads(line) for line in out.splitlines()]
    assert f"micro_f1 {last['validation_micro_f1']:.4f}, macro_f1 {last['validation_macro_f1']:.4f}" in err
    rows = [json.loads(line) for line in (data / "many_dev.jsonl").read_text().splitlines()]
    loss = np.mean([-np.log(p if name in row["label"] else 1 - p)
                    for each, row in zip(said, rows) for name, p in each["scores"].items()])  # fmt: skip
    assert loss == pytest.approx(last["validation_loss"], rel=1e-3)
    assert all(each["label"] == [n for n, p in each["scores"].items() if p > 0.5] for each in said)
    assert main(["predict", str(several), str(data / "many_dev.jsonl")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 50
    assert main(["data", "show", str(several), "--step", "1", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["label"] == [name for name in NAMES if name in row["text"].split()] for row in shown)


def test_transformers_knows_that_several_classes_may_hold(data, several, tmp_path, capsys):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from neojax.convert import hf
    from neojax.loading import load_trained

    hf.save(load_trained(several), tmp_path / "hf")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == dict(enumerate(NAMES))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    given = tokenizer("the cats sat", return_tensors="pt")
    with torch.no_grad():
        out = theirs(**given, labels=torch.tensor([[1.0, 0.0, 1.0]]))
    model = neojax.load(tmp_path / "hf")
    assert model.config.head.multilabel
    said = neojax.predict(model, "the cats sat")
    np.testing.assert_allclose(list(said.scores.values()), torch.sigmoid(out.logits)[0].numpy(), atol=1e-6)
    assert main(["predict", str(tmp_path / "hf"), str(data / "many_dev.jsonl")]) == 0
    assert f"micro_f1 {read_metrics(several)[-1]['validation_micro_f1']:.4f}" in capsys.readouterr().err
    shares = np.array(list(said.scores.values()))
    assert -np.mean(np.log([shares[0], 1 - shares[1], shares[2]])) == pytest.approx(out.loss.item(), rel=1e-4)


def test_measures_of_several_classes_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 5)), (rng.uniform(size=(40, 5)) < 0.3).astype(np.float32)
    logits[:, 4] = -1.0  # a class that is never said
    found = measured(("micro_f1", "macro_f1"), logits, labels)
    for kind in ("micro", "macro"):
        expected = sklearn.f1_score(labels > 0, logits > 0, average=kind, zero_division=0)
        assert found[f"{kind}_f1"] == pytest.approx(expected)


BAD = [
    (
        "many.jsonl",
        '{"text": "a", "label": ["cats", "birds"]}',
        "many2.jsonl:1: the label 'birds' is none of the model's, cats",
    ),
    (
        "many.jsonl",
        '{"text": "a", "label": {"cats": 1}}',
        "many2.jsonl:1: 'label' is .*; expected a list of classes",
    ),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_what_is_wrong_with_classes_is_told(name, row, message, data, tmp_path):
    (tmp_path / "many2.jsonl").write_text(row)
    keys = ["data.task=multilabel", f"data.train={data}/{name}", f"data.validation={tmp_path}/many2.jsonl"]
    with pytest.raises(NeojaxError, match=message):
        train(config_of(data, tmp_path / "run", *keys, n_vocab=81))


@pytest.mark.parametrize("task", ["classification", "multilabel", "tagging"])
def test_labels_that_no_row_has_are_told(task, data, tmp_path):
    rows = {
        "classification": [{"text": "the cat", "label": name} for name in ("cats", "dogs")],
        "multilabel": [{"text": "the cat", "label": []}, {"text": "the cat", "label": ["cats", "dogs"]}],
        "tagging": [{"tokens": ["cats", "and", "dogs"], "tags": ["cats", "dogs", "dogs"]}],
    }
    write(tmp_path / "rows.jsonl", rows[task])
    keys = [f"data.task={task}", f"data.train={tmp_path}/rows.jsonl", "data.validation="]
    config = config_of(data, "", *keys, n_vocab=81, head={"labels": NAMES})
    notes = TaskRows(config, tokenizers.load(data / "tokenizer.json")).notes
    assert notes[-1].startswith("WARNING: no row of data.train has the label 'rain', which is not learnt")
    config = config_of(data, "", *keys, n_vocab=81, head={"labels": NAMES[:2]})
    assert not any(
        "WARNING" in note for note in TaskRows(config, tokenizers.load(data / "tokenizer.json")).notes
    )


def test_a_model_of_one_class_is_not_one_of_several(data, several, tmp_path, capsys):
    assert "data.task=classification with model.head.multilabel=true" in failure(
        capsys, "predict", str(several), str(data / "many_dev.jsonl"), "data.task=classification"
    )
    with pytest.raises(NeojaxError, match=r"multilabel=true: data.task=multilabel is for rows"):
        config_of(data, tmp_path / "run", head={"multilabel": True})
    with pytest.raises(
        NeojaxError, match=r"multilabel=true is for the head sequence_classification, not \['lm'\]"
    ):
        configuration.from_dict({"model": {"head": {"multilabel": True}}})


def test_how_many_rows_are_cut_is_said_once(data, several, tmp_path, capsys):
    write(tmp_path / "long.jsonl", [{"text": "the cat " * n} for n in (2, 40, 50)])
    assert main(["predict", str(several), str(tmp_path / "long.jsonl")]) == 0
    err = capsys.readouterr().err
    assert err.count("2 of 3 rows are longer than 32 tokens and are cut") == 1
