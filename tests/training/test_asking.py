"""Models learn where a passage answers a question, from SQuAD's files to predictions."""

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
from neojax.data.batch import NOT_SCORED
from neojax.data.task_rows import TaskRows
from neojax.errors import NeojaxError
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

NAMES, PLACES = ["ada", "ben", "cleo"], ["rome", "new york", "oslo"]


def squad(count, seed, none=0.0):
    """Passages, the longer ones in several windows, in which a name and a place stand somewhere, and a
    question about one of them; of some the passage does not say it."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        words = rng.choice(SENTENCE.split(), rng.integers(4, 36)).tolist()
        asks_who, lacks = rng.integers(2), rng.uniform() < none
        told = [] if lacks else [str(rng.choice(NAMES if asks_who else PLACES))]
        for word in (*told, str(rng.choice(PLACES if asks_who else NAMES))):
            words.insert(int(rng.integers(len(words))), word)
        start = len(" ".join([*words[: words.index(told[0])], ""])) if told else 0
        answers = [{"text": text, "answer_start": start} for text in told]
        asked = "who was it ?" if asks_who else "where was it ?"
        own = {"id": f"q{number}", "question": asked, "answers": answers, "is_impossible": bool(lacks)}
        paragraphs.append({"context": " ".join(words), "qas": [own]})
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    for name, own in (("train", squad(240, 0, 0.3)), ("dev", squad(40, 1, 0.3)), ("all", squad(24, 3))):
        (folder / f"{name}.json").write_text(json.dumps(own))
    texts = [p["context"] + " who where was it ?" for p in squad(60, 5)["data"][0]["paragraphs"]]
    tokenizers.train(texts, 80, "wordpiece").save(str(folder / "tokenizer.json"))
    tokenizers.train(texts, 330).save(str(folder / "bpe.json"))
    return folder


def asking(data, run, *keys, **model):
    own = ["data.task=squad_v2", f"data.train={data}/train.json", f"data.validation={data}/dev.json"]
    own += ["data.squad.doc_stride=12", "train.learning_rate=0.005"]
    return config_of(data, run, *own, *keys, **{"n_layer": 2, "n_vocab": 81, "init": {"std": 0.1}, **model})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A BERT that has learned to find names and places, and where there is none."""
    folder = tmp_path_factory.mktemp("runs") / "squad"
    train(asking(data, folder, "train.epochs=10"))
    return folder


def test_a_bert_learns_where_answers_stand_and_where_there_is_none(data, run):
    last = read_metrics(run)[-1]
    assert last["validation_exact_match"] > 0.8 and last["validation_f1"] > 0.8
    assert last["validation_has_answer_f1"] > 0.7 and last["validation_no_answer_f1"] > 0.7
    assert last["validation_best_f1"] >= last["validation_f1"]
    assert configuration.of_run(run).data.squad.doc_stride == 12


def test_the_command_gives_the_answers_of_the_evaluation(data, run, tmp_path, capsys):
    last, dev = read_metrics(run)[-1], str(data / "dev.json")
    asked = [
        q for p in json.loads((data / "dev.json").read_text())["data"][0]["paragraphs"] for q in p["qas"]
    ]
    assert main(["predict", str(run), dev, "--json"]) == 0
    out, err = capsys.readouterr()
    said = [json.loads(line) for line in out.splitlines()]
    assert [each["id"] for each in said] == [each["id"] for each in asked]
    for name in ("exact_match", "f1", "no_answer_f1", "best_f1"):
        assert f"{name} {last[f'validation_{name}']:.4f}" in err
    threshold = err.partition("best_f1_threshold ")[2].strip()
    assert main(["predict", str(run), dev, f"data.squad.null_score_diff_threshold={threshold}"]) == 0
    assert f", f1 {last['validation_best_f1']:.4f}, " in capsys.readouterr().err
    right = [each["text"] == (own["answers"] or [{"text": ""}])[0]["text"] for each, own in zip(said, asked)]
    assert np.mean(right) == pytest.approx(last["validation_exact_match"], abs=1e-6)
    for each in said:
        assert sum(span["probability"] for span in each["n_best"]) == pytest.approx(1)
        assert (each["text"] == "") == (each["null_score_diff"] > 0)
    assert main(["predict", str(run), dev, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == ""
    files = {p.name: json.loads(p.read_text()) for p in (tmp_path / "out").iterdir()}
    assert files["predictions.json"] == {each["id"]: each["text"] for each in said}
    assert files["null_odds.json"] == {each["id"]: each["null_score_diff"] for each in said}
    assert files["nbest_predictions.json"]["q0"][0].keys() == {
        "text",
        "probability",
        "start_logit",
        "end_logit",
    }
    assert main(["predict", str(run), dev, "data.squad.null_score_diff_threshold=99"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == [3] * 40 and all(line[2] for line in lines)


def test_one_question_is_answered_like_many(data, run):
    model = neojax.load(run)
    rows = json.loads((data / "all.json").read_text())["data"][0]["paragraphs"]
    pairs = [(p["qas"][0]["question"], p["context"]) for p in rows]
    many = neojax.predict(model, pairs)
    alone = neojax.predict(model, pairs[5])
    assert alone.answer.text == many[5].answer.text and alone.null_score_diff is None
    assert alone.answer.probability == pytest.approx(many[5].answer.probability, rel=1e-4)
    assert pairs[5][1][alone.answer.start : alone.answer.stop] == alone.answer.text
    assert neojax.predict(model, ("who was it ?", "the cat sat on a mat"), no_answer=True).answer.text == ""
    with pytest.raises(NeojaxError, match="expected a question and a passage as a tuple"):
        neojax.predict(model, ["who was it ?"])


def test_an_exported_model_says_the_same_in_transformers(data, run, tmp_path, capsys):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from neojax.convert import hf
    from neojax.loading import load_trained

    hf.save(load_trained(run), tmp_path / "hf")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked, passage = "where was it ?", "the dogs sat on a mat in new york and two saw ada"
    given = tokenizer(asked, passage, return_tensors="pt")
    with torch.no_grad():
        out = theirs(**given)
    reply = neojax.predict(neojax.load(tmp_path / "hf"), (asked, passage))
    assert reply.answer.text == "new york"
    first, last = (
        given.char_to_token(0, reply.answer.start, 1),
        given.char_to_token(0, reply.answer.stop - 1, 1),
    )
    assert reply.answer.start_logit == pytest.approx(float(out.start_logits[0, first]), abs=1e-5)
    assert main(["predict", str(tmp_path / "hf"), str(data / "all.json")]) == 0
    assert "all.json: exact_match " in capsys.readouterr().err
    assert reply.answer.end_logit == pytest.approx(float(out.end_logits[0, last]), abs=1e-5)


def test_the_loss_of_a_question_depends_on_neither_padding_nor_layout(data, run):
    """A row is one of a batch of longer rows, or alone; and a row's tokens are split."""
    config = configuration.of_run(run)
    rows = TaskRows(config, tokenizers.load(data / "tokenizer.json")).files[str(data / "dev.json")]
    short, long = int(np.argmin(rows.lengths)), int(np.argmax(rows.lengths))
    whole, split = layout_of("data:1"), layout_of("data:2, seq:2", "batch:data, sequence:seq")
    found = []
    for layout, chosen in ((whole, [short]), (whole, [short, -1, -1, long]), (split, [short, -1, -1, long])):
        batch = rows.batch(chosen)
        batch.labels[1:] = NOT_SCORED
        model = noisy(config.model, layout)
        with jax.set_mesh(model.layout.mesh):
            found.append(float(jax.jit(lambda batch, model=model: model.loss(batch).total())(batch)))
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


@pytest.mark.slow
def test_a_decoder_answers_with_what_it_has_seen_of_a_question_before_the_passage(data, tmp_path):
    keys = [f"data.tokenizer={data}/bpe.json", "train.epochs=10"]
    train(asking(data, tmp_path / "run", *keys, family="gpt_neo", n_vocab=330, n_layer=2))
    last = read_metrics(tmp_path / "run")[-1]
    assert last["validation_has_answer_f1"] > 0.7 and last["validation_no_answer_f1"] > 0.7


def test_the_answers_of_a_step_are_shown(data, run, capsys):
    assert main(["data", "show", str(run), "--step", "1", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["label"] for row in shown} <= {"[CLS]", *NAMES, *PLACES} and len(shown) == 24


BAD = [
    (["data.task=squad"], "question q.* has no answer; leave it out, or set data.task=squad_v2"),
    (["data.max_tokens=7"], "has no room for a passage beside a question of 4"),
    (["data.task=squad", "data.squad.null_score_diff_threshold=1"], "is for questions without an answer"),
    (["data.task=classification"], "data.squad.doc_stride=12 is for data.task=squad and squad_v2"),
]


@pytest.mark.parametrize(("keys", "message"), BAD)
def test_what_does_not_go_with_questions_is_named(keys, message, data, tmp_path):
    with pytest.raises(NeojaxError, match=message):
        train(asking(data, tmp_path / "run", *keys))


def test_what_the_command_cannot_write_is_told_first(data, run, tmp_path, capsys):
    dev = str(data / "dev.json")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("")
    assert "there exists already" in failure(
        capsys, "predict", str(run), dev, "--out", str(tmp_path / "there")
    )
    said = failure(capsys, "predict", str(run), dev, dev, "--out", str(tmp_path / "x"))
    assert "is for the questions of one file" in said
