"""`sample.py`: what is on stdout and stderr, where prompts come from, and clean ends."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import failure, perturbed, tiny, written_run

import neojax
from neojax.cli import main
from neojax.commands import sample as command
from neojax.config import Config, MeshConfig
from neojax.data.tokenizer import train
from neojax.errors import NeojaxError
from neojax.models import Transformer

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with a tokenizer, whose training split it over a mesh."""
    tokenizer = train(["the cat sat on the mat and the dog sat on the log. " * 3], 270)
    mesh = MeshConfig("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
    config = Config(model=tiny(n_layer=2, n_ctx=64, n_vocab=tokenizer.get_vocab_size()), mesh=mesh)
    run = tmp_path_factory.mktemp("run")
    params = perturbed(Transformer(config.model).init(0).params())
    return written_run(run, config, params, tokenizer)


def sample(capsys, *arguments):
    """What the command prints; it must succeed without a word on stderr."""
    assert main(["sample", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fails(capsys, *arguments):
    """The one line that the command ends with."""
    return failure(capsys, "sample", *arguments)


def test_json_is_one_object_a_sample_and_nothing_else(run, capsys):
    arguments = [
        "--prompt",
        "the cat",
        "--prompt",
        "",
        "--num-samples",
        "2",
        "--max-new-tokens",
        "6",
        "--json",
    ]
    lines = [json.loads(line) for line in sample(capsys, run, *arguments).splitlines()]
    expected = neojax.generate(
        neojax.load(run), ["the cat", ""], num_samples=2, max_new_tokens=6, return_samples=True
    )
    names = "prompt", "text", "tokens", "finish_reason"
    assert lines == [{name: getattr(one, name) for name in names} for one in expected]
    assert [list(line) for line in lines] == [["prompt", "text", "tokens", "finish_reason"]] * 4


def test_streamed_text_is_the_text_printed_at_once(run, capsys):
    arguments = [run, "--prompt", "the cat", "--max-new-tokens", "30", "--seed", "3", "--stop", "zebra"]
    streamed = sample(capsys, *arguments)
    assert streamed == sample(capsys, *arguments, "--no-stream")
    assert streamed.startswith("the cat") and streamed.endswith("\n")


def test_an_error_behind_streamed_text_has_a_line_of_its_own(run, capsys, monkeypatch):
    def ends(*args, **keys):
        raise NeojaxError("too long")

    monkeypatch.setattr(command, "generate", ends)
    assert main(["sample", run, "--prompt", "the cat"]) == 2
    assert capsys.readouterr() == ("the cat\n", "error: too long\n")


def test_samples_of_several_prompts_are_told_apart(run, capsys):
    out = sample(
        capsys, run, "--prompt", "the", "--prompt", "a dog", "--num-samples", "2", "--max-new-tokens", "3"
    )
    heads = [line for line in out.splitlines() if line.startswith("--- ")]
    assert len(heads) == 4 and len(set(heads)) == 4
    assert out.count("\na dog") == 2


@pytest.mark.parametrize(
    "name, text, prompts",
    [
        ("one.txt", "the cat\nsat\n", ["the cat\nsat"]),
        ("many.jsonl", '{"prompt": "the"}\n\n"a \\u00e9"\n', ["the", "a \u00e9"]),
        ("-", "on the mat\n", ["on the mat"]),
        ("lines.jsonl", '"a\u2028b\u0085"\r\n{"prompt": "c"}\r\n', ["a\u2028b\u0085", "c"]),
        ("windows.txt", "\ufeffthe cat\r\nsat\r\n", ["the cat\r\nsat"]),
    ],
)
def test_prompts_come_from_a_file_or_standard_input(run, capsys, tmp_path, monkeypatch, name, text, prompts):
    path = tmp_path / name
    path.write_bytes(text.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    out = sample(
        capsys, run, "--prompt-file", "-" if name == "-" else str(path), "--json", "--max-new-tokens", "2"
    )
    assert [json.loads(line)["prompt"] for line in out.split("\n")[:-1]] == prompts


def test_a_mesh_gives_the_same_text(run, capsys):
    arguments = [run, "--prompt", "the dog", "--max-new-tokens", "12", "--json"]
    one = sample(capsys, *arguments)
    assert sample(capsys, *arguments, "mesh.cpu_devices=4") == one
    assert sample(capsys, *arguments, "mesh.cpu_devices=4", "mesh.shape=data:1, model:4") == one


def test_narrow_weights_are_those_of_a_model_loaded_with_them(run, capsys):
    text = sample(capsys, run, "--weights", "int8", "--prompt", "the", "--max-new-tokens", "9", "--seed", "1")
    model = neojax.load(run, weights="int8")
    assert text == "the" + neojax.generate(model, "the", max_new_tokens=9, seed=1) + "\n"


def test_a_prompt_that_is_too_long_is_said_once_on_stderr(run, capsys):
    assert (
        main(["sample", run, "--prompt", "the cat sat on the mat " * 20, "--json", "--max-new-tokens", "3"])
        == 0
    )
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err.startswith("warning: prompt 1 has ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["absent"], "absent does not exist"),
        (["RUN", "--temperature", "-1"], "temperature is -1.0"),
        (["RUN", "--top-p", "2"], "top_p is 2.0"),
        (["RUN", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["RUN", "--stop", ""], "stop string is empty"),
        (["RUN", "--prompt-file", "no-such-file"], "no-such-file"),
        (["RUN", "--prompt", "a", "--prompt-file", "b"], "not allowed with"),
        (["RUN", "model.n_layer=3"], "model.n_layer=3"),
        (["RUN", "mesh.shpae=data:1"], "mesh.shape"),
        (["RUN", "mesh.cpu_devices=4", "mesh.shape=data:3"], "mesh"),
        (["RUN", "--sed", "x"], "x"),
        (["RUN", "--prompt", "a\udcff"], "--prompt is not text that UTF-8 can hold: its character 2"),
        (["RUN", "--stop", "\udcff"], "stop string 1 is not text that UTF-8 can hold"),
        (["RUN", "--prompt-file", "FILE"], "is not UTF-8 text"),
        (["RUN", "--prompt-file", "-"], "--prompt-file - is not UTF-8 text"),
    ],
)
def test_what_the_user_can_mend_is_one_line(run, capsys, tmp_path, monkeypatch, arguments, words):
    file = tmp_path / "bytes.txt"
    file.write_bytes(b"the \xff")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the \xff")))
    places = {"RUN": run, "FILE": str(file)}
    assert words in fails(capsys, *[places.get(word, word) for word in arguments])


def test_more_tokens_than_the_context_holds_are_said_once_on_stderr(run, capsys):
    assert main(["sample", run, "--prompt", "the", "--prompt", "a", "--json", "--max-new-tokens", "500"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: max_new_tokens is 500, but") and err.count("\n") == 1


@pytest.mark.parametrize("line", ["{", '{"text": "a"}', "3", '"\\ud800"', "[" * 100_000])
def test_a_bad_line_of_prompts_is_named(run, capsys, tmp_path, line):
    (tmp_path / "p.jsonl").write_text(f'"fine"\n{line}\n')
    assert "line 2" in fails(capsys, run, "--prompt-file", str(tmp_path / "p.jsonl"))


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "sample.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_whoever_reads_may_leave(run):
    process = start(run, "--prompt", "the", "--json", "--num-samples", "3", "--max-new-tokens", "4")
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


def test_an_interrupt_is_one_word(run):
    # Long enough to be interrupted in the midst of it: the first characters are there before the last.
    process = start(run, "--prompt", "the", "--num-samples", "1", "--max-new-tokens", "60")
    assert process.stdout.read(3) == b"the"
    process.send_signal(signal.SIGINT)
    code = process.wait(60)
    assert (code, process.stderr.read()) == (130, b"interrupted\n")
