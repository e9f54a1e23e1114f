"""Models learn to answer: from conversations in a file to a talk with the model."""

import io
import json
import sys

import numpy as np
import pytest

import neojax
from neojax import config as configuration
from neojax.cli import main
from neojax.data import tokenizer as tokenizers
from neojax.data.chat_template import DEFAULT, ChatTemplate
from neojax.data.store import TokenStore
from neojax.errors import NeojaxError
from neojax.sampling.chat import Chat
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

PAIRS = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack"}


def talk(animal):
    return {
        "messages": [{"role": "user", "content": animal}, {"role": "assistant", "content": PAIRS[animal]}]
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A GPT-Neo that has learned what animals say; its local attention is narrower than a question."""
    folder = tmp_path_factory.mktemp("answers")
    rng = np.random.default_rng(0)
    records = [talk(str(rng.choice(list(PAIRS)))) | {"id": i} for i in range(160)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = [f"User: {animal}\nAssistant: {said}" for animal, said in PAIRS.items()] * 30
    tokenizers.train(texts, 300).save(str(folder / "tokenizer.json"))
    arguments = ["--format", "sft", "--tokenizer", str(folder / "tokenizer.json"), "--validation", "0.1"]
    assert main(["prepare", str(folder / "rows.jsonl"), "--out", str(folder / "data"), *arguments]) == 0
    raw = {
        "model": {"n_layer": 2, "n_embd": 32, "n_ctx": 32, "n_vocab": 300,
                  "attention": {"heads": 2, "window": 4}},
        "mesh": {"shape": "data:4, model:2", "layout": "batch:data, heads:model, mlp:model, vocab:model"},
        "data": {"task": "sft", "train": str(folder / "data"), "validation": str(folder / "data")},
        "train": {"run_dir": str(folder / "run"), "batch_size": 8, "epochs": 12, "learning_rate": 0.01,
                  "tensorboard": False, "log_every": 20},
    }  # fmt: skip
    train(configuration.from_dict(raw))
    return folder


def test_held_out_loss_is_that_of_answers_alone(run):
    """Packed into rows, each sequence has the probabilities that it has by itself, its end among them."""
    model = neojax.load(run / "run")
    tokens, scored = (TokenStore(run / "data" / name) for name in ("validation", "validation_scored"))
    total = count = 0.0
    for start, stop in zip(tokens.starts, tokens.starts[1:]):
        ids, marks = tokens.read(start, stop).tolist(), scored.read(start, stop)
        first = int(np.argmax(marks))
        found = neojax.score(model, [ids[first:]], contexts=[ids[:first]])
        total, count = total - found[0].logprob, count + len(ids) - first
    last = read_metrics(run / "run")[-1]
    assert last["validation_loss"] == pytest.approx(total / count, rel=1e-3)
    assert last["validation_loss"] < 0.05


def test_the_model_answers_and_ends_its_answers(run):
    model = neojax.load(run / "run")
    sampling = neojax.Sampling(temperature=0, max_new_tokens=8)
    chat = Chat(model, (run / "run" / "chat_template.jinja").read_text(), sampling)
    pieces = []
    assert chat.say("cow", pieces.append) == "moo" == "".join(pieces).strip()
    with pytest.warns(UserWarning, match=r"the oldest \d+ messages no longer fit the context of 32"):
        for animal in (*PAIRS, *PAIRS):
            chat.say(animal)
    assert len(chat.messages) < 16 and chat.messages[-1]["role"] == "assistant"
    with pytest.raises(NeojaxError, match=r"what is asked has .* tokens; beside an answer the context of 32"):
        chat.say("cat " * 40)
    with pytest.raises(NeojaxError, match="what is asked is not text that UTF-8 can hold: its character 4"):
        chat.say("caf\udce9")


def test_the_command_talks_and_says_what_it_lacks(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("duck\n\ndog\n"))
    assert main(["chat", str(run / "run"), "--temperature", "0", "--max-new-tokens", "6"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip() == "quack" and len(out.splitlines()) == 2
    terminal = io.StringIO("cat " * 40 + "\ndog\n")
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["chat", str(run / "run"), "--temperature", "0", "--max-new-tokens", "6"]) == 2
    terminal.seek(0)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    capsys.readouterr()
    assert main(["chat", str(run / "run"), "--temperature", "0", "--max-new-tokens", "6"]) == 0
    out, error = capsys.readouterr()
    assert "error: what is asked has" in error and out.split()[:3] == [">", ">", "woof"]
    assert main(["data", "show", str(run / "run"), "--step", "2"]) == 0
    assert "<|endoftext|>" in (shown := capsys.readouterr().out) and "label [' " in shown
    (run / "run" / "chat_template.jinja").rename(run / "kept.jinja")
    assert main(["chat", str(run / "run")]) == 2
    assert "has no chat template: it was not trained for conversations" in capsys.readouterr().err
    assert main(["chat", str(tmp_path / "none")]) == 2
    assert "error: " in (error := capsys.readouterr().err) and "has no chat template" not in error
    (run / "kept.jinja").rename(run / "run" / "chat_template.jinja")


def test_the_template_goes_to_hugging_face_and_back(run, tmp_path):
    assert main(["convert", str(run / "run"), str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == DEFAULT
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == DEFAULT
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [
        {"role": "system", "content": "x"},
        *talk("cat")["messages"],
        {"role": "user", "content": "y"},
    ]
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert theirs == ChatTemplate(DEFAULT, "<|endoftext|>").text(messages, asks=True)


def test_what_does_not_go_with_answers_is_named(run, tmp_path):
    raw = {"data": {"task": "sft", "train": str(run / "data")}, "train": {"run_dir": str(tmp_path / "run")}}
    cases = [
        ({"model": {"family": "bert"}}, "data.task=sft is for models that continue a text; a bert does not"),
        ({"model": {"n_ctx": 4}}, "nothing is left to learn within 4 tokens; raise model.n_ctx"),
        ({"model": {"n_vocab": 50}}, "but model.n_vocab=50 allows ids below it"),
        ({"data": raw["data"] | {"label": "x"}}, "has read the rows; leave data.label out"),
    ]
    for keys, message in cases:
        with pytest.raises(NeojaxError, match=message):
            train(configuration.from_dict(raw | keys))
    (run / "data" / "train_scored.idx").rename(run / "kept.idx")
    with pytest.raises(NeojaxError, match="does not say which tokens are learnt; write it with"):
        train(configuration.from_dict(raw))
    (run / "kept.idx").rename(run / "data" / "train_scored.idx")


def test_prepare_refuses_options_of_the_other_format(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("{}")
    some = [str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--tokenizer", "x.json"]
    assert main(["prepare", *some, "--format", "sft", "--sentences", "lines"]) == 2
    assert "--sentences is not for --format sft" in capsys.readouterr().err
    assert main(["prepare", *some, "--chat-template", "x"]) == 2
    assert "--chat-template is for --format sft" in capsys.readouterr().err
