"""lm-evaluation-harness with a model of ours gives what its own Hugging Face model gives on those weights."""

import json
import os
import random

import numpy as np
import pytest
from helpers import layout_of

from neojax.cli import main
from neojax.convert import hf
from neojax.data.tokenizer import train
from neojax.errors import NeojaxError
from neojax.evaluate import harness

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
pytest.importorskip("lm_eval")
N_CTX = 32
WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "a", "dog", "lay", "by", "the", "log", "in", "rain"]


def text(words, seed):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face directory with random weights and a tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("hf")
    tokenizer = train([" ".join(WORDS)] * 3, 290)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": N_CTX}
    config = transformers.GPTNeoConfig(
        vocab_size=tokenizer.get_vocab_size(),
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
        **sizes,
    )
    transformers.GPTNeoForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module", params=["one device", "a mesh"])
def ours(folder, request):
    from neojax.evaluate.lm_eval import NeojaxLM

    if request.param == "one device":
        return NeojaxLM(pretrained=str(folder))
    layout = layout_of("data:4, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
    return NeojaxLM(hf.load(folder, layout))


def requests(kind, pairs):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i, ("t", i, 1)) for i, args in enumerate(pairs)]


def test_log_likelihoods_are_those_of_the_harness_own_model(ours, theirs):
    """Contexts that are shared, empty, too long or end in blanks; continuations of one token and of more."""
    pairs = []
    for seed in range(8):
        context = text(1 + 3 * seed, seed)
        pairs += [(context, " the"), (context, " cat"), (context, " cat sat on"), (context, " zebra")]
    pairs += [("", " the dog sat"), ("", "cat"), (text(5, 9) + "  ", "bird"), (text(60, 9), " a bird sang")]
    asked = requests("loglikelihood", pairs)
    found, wanted = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in wanted], rtol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_rolling_log_likelihoods_are_those_of_the_harness_own_model(ours, theirs):
    texts = [text(n, n) for n in (1, 5, 20, 31, 32, 33, 64, 65, 90)]
    asked = requests("loglikelihood_rolling", [(one,) for one in texts])
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked), rtol=1e-4
    )
    assert ours.loglikelihood_rolling(requests("loglikelihood_rolling", [("",)])) == [0.0]


def test_generated_texts_are_those_of_the_harness_own_model(ours, theirs):
    settings = [
        {"until": ["\n"], "max_gen_toks": 8},
        {"until": [" the", "a"], "max_gen_toks": 8, "do_sample": False},
        {"until": " sat", "max_new_tokens": 5, "temperature": 0.0},
    ]
    pairs = [(text(2 + 4 * i, i), settings[i % 3]) for i in range(9)]
    asked = requests("generate_until", pairs)
    assert ours.generate_until(asked) == theirs.generate_until(asked)


@pytest.fixture
def task(tmp_path):
    """A task of one's own that reads a local file."""
    rows = [{"q": text(5, i), "a": " cat", "b": " dog sat", "label": i % 2} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pets.yaml").write_text(
        f"""
task: pets
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{[a, b]}}}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: f1}}]
"""
    )
    return tmp_path


def test_a_task_of_a_local_file_is_run_from_the_command_line(folder, task, theirs, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(task / "cache"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    arguments = ["eval", str(folder), "--tasks", "pets", "--include-path", str(task)]
    assert main([*arguments, "--num-fewshot", "1", "--limit", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = lm_eval.simple_evaluate(
        theirs,
        tasks=["pets"],
        num_fewshot=1,
        limit=4,
        bootstrap_iters=harness.BOOTSTRAP,
        task_manager=TaskManager(include_path=str(task), include_defaults=False),
    )
    for name in ("acc,none", "acc_norm,none", "acc_stderr,none", "f1,none", "f1_stderr,none"):
        assert found["results"]["pets"][name] == wanted["results"]["pets"][name]
    assert found["n-samples"]["pets"] == {"original": 6, "effective": 4}
    assert main(arguments) == 0
    assert "|pets |" in capsys.readouterr().out


TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'system' and message.content == 'rain' %}{{ raise_exception('no rain') }}{% endif -%}
[{{ message.role }}] {{ message.content | trim }}
{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}[assistant] {% endif %}"""


def test_conversations_are_written_as_by_the_harness_own_model(folder, theirs, monkeypatch):
    """Asked, or with an answer to go on with; what a template refuses of the system is left out."""
    from neojax.evaluate.lm_eval import NeojaxLM

    monkeypatch.setattr(theirs.tokenizer, "chat_template", TEMPLATE)
    ours = NeojaxLM(pretrained=str(folder), chat_template=TEMPLATE)
    assert ours.chat_template(True) == theirs.chat_template(True) == TEMPLATE
    assert ours.chat_template(False) is None
    plain = NeojaxLM(ours.model)
    assert ours.tokenizer_name != plain.tokenizer_name
    talk = [("user", "the cat "), ("assistant", "sat on"), ("user", " a dog"), ("assistant", "by the ")]
    for system in ("the mat", "rain", ""):
        told = [("system", system)] if system else []
        messages = [{"role": role, "content": content} for role, content in [*told, *talk]]
        for some, asks in ((messages[:-1], True), (messages, False), (messages[:-2], False)):
            wanted = theirs.apply_chat_template(some, add_generation_prompt=asks)
            assert ours.apply_chat_template(some, add_generation_prompt=asks) == wanted
    with pytest.raises(NeojaxError, match="the model has no chat template"):
        plain.apply_chat_template(messages)


@pytest.mark.slow
def test_tasks_are_asked_in_conversations_as_of_the_harness_own_model(
    folder, task, theirs, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(task / "cache"))
    monkeypatch.setattr(theirs.tokenizer, "chat_template", TEMPLATE)
    import lm_eval
    from lm_eval.tasks import TaskManager

    from neojax.evaluate.lm_eval import NeojaxLM

    asked = {}

    def noting(kind):
        def score(self, requests, disable_tqdm=False):
            asked[kind] = [request.args for request in requests]
            return [(-1.0, False)] * len(requests)

        monkeypatch.setattr(kind, "loglikelihood", score)

    noting(NeojaxLM)
    noting(type(theirs))
    (task / "own.jinja").write_text(TEMPLATE)
    arguments = ["eval", str(folder), "--tasks", "pets", "--include-path", str(task), "--num-fewshot", "2"]
    chat = ["--chat", "--chat-template", str(task / "own.jinja"), "--system", "the log"]
    for more, by_turns in ((), True), (["--single-turn"], False):
        assert main([*arguments, *chat, *more, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["n-shot"] == {"pets": 2}
        lm_eval.simple_evaluate(
            theirs,
            tasks=["pets"],
            num_fewshot=2,
            apply_chat_template=True,
            fewshot_as_multiturn=by_turns,
            system_instruction="the log",
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(task), include_defaults=False),
        )
        assert asked[NeojaxLM] == asked[type(theirs)]
        context = asked[NeojaxLM][0][0]
        assert context.startswith("[system] the log\n[user] ")
        assert context.count("[user]") == (3 if by_turns else 1)


def test_conversations_that_cannot_be_are_one_line(folder, task, capsys):
    asked = ["eval", str(folder), "--tasks", "pets", "--include-path", str(task)]
    for arguments, words in (
        ([*asked, "--chat"], "has no chat template: it was not trained for conversations; name one"),
        ([*asked, "--system", "x"], "--system is for --chat; give both, or neither"),
        ([*asked, "--single-turn"], "--single-turn is for --chat"),
        (["eval", str(folder), "--tasks", "sst2=a.tsv", "--chat"], "sst2=a.tsv is of a local file"),
        (["eval", str(folder), "a.txt", "--chat"], "and --tasks names none; leave --chat out"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_what_the_harness_cannot_do_is_one_line(folder, task, capsys):
    for arguments, words in (
        (["--tasks", "pest"], "has no task pest; did you mean pets?"),
        (["--tasks", "pets", "--limit", "0"], "--limit is 0; expected at least 1"),
        (["--tasks", "pets", "--num-fewshot", "99"], "cannot ask them so: ValueError"),
    ):
        assert main(["eval", str(folder), "--include-path", str(task), *arguments]) == 2
        assert words in capsys.readouterr().err
    (task / "rows.jsonl").unlink()
    assert main(["eval", str(folder), "--include-path", str(task), "--tasks", "pets"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: --tasks pets cannot be read: FileNotFoundError")


def test_what_a_task_asks_and_a_model_lacks_is_one_line(ours):
    for given, words in (
        ({"until": [], "num_beams": 3}, "generation_kwargs have num_beams"),
        ({"until": [], "max_gen_toks": 32}, "asks for 32 tokens, and the model's context is 32"),
    ):
        with pytest.raises(NeojaxError, match=words):
            ours.generate_until(requests("generate_until", [("the", given)]))
    with pytest.raises(NeojaxError, match="no token to score: '' after 'the'"):
        ours.loglikelihood(requests("loglikelihood", [("the", "")]))
    with pytest.raises(NeojaxError, match="give either a model or pretrained"):
        type(ours)()


def test_without_the_harness_the_extra_is_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="lm_eval")

    monkeypatch.setattr(harness, "import_module", absent)
    with pytest.raises(
        NeojaxError, match=r"needs lm_eval, which is not installed: pip install 'neojax\[eval\]'"
    ):
        harness.evaluate(None, ["pets"])
