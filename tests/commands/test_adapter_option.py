"""--adapter: commands give of a base and an adapter what a model loaded with it gives, and not what the base
gives."""

import io
import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import failure, perturbed, tiny

import neojax
from neojax.cli import main
from neojax.config import HeadConfig, LoraConfig
from neojax.convert import hf, peft
from neojax.data.tokenizer import train
from neojax.models import Transformer
from neojax.sampling.chat import Chat

TEXT = "the cat sat on the mat and the dog sat on the log. " * 2
LORA = LoraConfig(rank=2, targets=("attn.query", "mlp.up"))


def adapter(config, base, lora, folder):
    """An adapter's folder, whose additions are noise, for the parameters `base` of a model of `config`."""
    model = Transformer(config, lora=lora).adapted(dict(base.params()))
    rng = np.random.default_rng(1)
    noise = {
        name: jnp.asarray(0.3 * rng.normal(size=value.shape), jnp.float32)
        for name, value in model.params().items()
        if ".lora_" in name or "score" in name
    }
    peft.save(model.bind({**model.params(), **noise}), folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face directory of a model with a tokenizer, one of an adapter, and one of a classifier's."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train([TEXT], 270)
    end = tokenizer.token_to_id("<|endoftext|>")
    config = tiny(n_layer=1, n_ctx=64, n_vocab=tokenizer.get_vocab_size(), attention_types=[[["global"], 1]])
    model = Transformer(config)
    model = model.bind(perturbed(model.init(0).params())).accompanied(tokenizer, end)
    hf.save(model, folder / "base")
    answers = adapter(config, model, LORA, folder / "answers")
    classes = replace(config, head=HeadConfig(("sequence_classification",), ("a", "b", "c")))
    score = Transformer(classes).init(0).params()["score.weight"]
    kept = {name: value for name, value in model.params().items() if not name.startswith("lm_head")}
    whole = Transformer(classes).bind({**kept, "score.weight": score})
    return (
        str(folder / "base"),
        answers,
        adapter(classes, whole, replace(LORA, whole=("score.*",)), folder / "c"),
    )


def said(capsys, *command):
    assert main(list(command)) == 0
    return capsys.readouterr().out


def test_text_is_measured_with_it(base, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    name, own, _ = base
    rows = [
        json.loads(said(capsys, "eval", name, str(tmp_path / "a.txt"), "--json", *more))
        for more in ((), ("--adapter", own))
    ]
    (found,) = neojax.score(neojax.load(name, adapter=own), [TEXT])
    assert rows[1]["nats_per_token"] == pytest.approx(-found.logprob / len(found.tokens), rel=1e-5)
    assert abs(rows[1]["nats_per_token"] - rows[0]["nats_per_token"]) > 1e-3


def test_a_conversation_is_held_with_it_by_the_template_beside_it(base, capsys, monkeypatch):
    name, own, _ = base
    assert "has no chat template" in failure(capsys, "chat", name, "--adapter", own)
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    with open(f"{own}/chat_template.jinja", "w") as file:
        file.write(template)
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog\n"))
    words = ("--temperature", "0", "--max-new-tokens", "8", "--adapter", own)
    answer = said(capsys, "chat", name, *words)
    sampling = neojax.sampling.requests.Sampling(max_new_tokens=8, temperature=0.0)
    expected = [Chat(neojax.load(name, adapter=a), template, sampling).say("the dog") for a in (own, None)]
    assert answer.strip() == expected[0].strip() != expected[1].strip()


def test_classes_are_told_with_a_head_that_only_it_has(base, tmp_path, capsys):
    name, _, own = base
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "the cat"}) + "\n")
    row = json.loads(said(capsys, "predict", name, str(tmp_path / "rows.jsonl"), "--json", "--adapter", own))
    (found,) = neojax.predict(neojax.load(name, adapter=own), ["the cat"])
    assert row["scores"] == pytest.approx(found.scores) and len(row["scores"]) == 3
    (tmp_path / "other.jsonl").write_text('{"question": "the cat"}')  # of no matter without the head
    assert "this model does not say what texts are" in failure(
        capsys, "predict", name, str(tmp_path / "other.jsonl")
    )
    assert "none does not exist; expected a folder of PEFT's" in failure(
        capsys, "predict", name, str(tmp_path / "rows.jsonl"), "--adapter", str(tmp_path / "none")
    )
