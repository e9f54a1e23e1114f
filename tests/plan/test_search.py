"""Layouts by the analytic model: `neojax plan --search` and `mesh.layout: auto`."""

import contextlib
import json
import signal
from dataclasses import replace

import jax
import pytest

from neojax import config as configuration
from neojax.cli import main
from neojax.config import from_dict
from neojax.errors import NeojaxError
from neojax.plan import candidates
from neojax.plan import search as searching
from neojax.plan.apart import Answer
from neojax.plan.auto import here, resolved
from neojax.plan.candidates import layouts
from neojax.plan.compiled import Moved
from neojax.plan.machine import machine

TREE = {
    "model": {"n_layer": 2, "n_embd": 64, "n_ctx": 128, "n_vocab": 256, "attention": {"heads": 2}},
    "mesh": {"shape": "data:-1", "layout": "batch:data", "param_layout": "embd:data"},
    "train": {"batch_size": 16, "steps": 1000},
}
AUTO = TREE | {"mesh": {"layout": "auto"}}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "tiny.yml"
    path.write_text(configuration.dump(from_dict(TREE)))
    return path


def test_candidates_are_layouts_of_all_devices_and_differ():
    tree = TREE | {"model": TREE["model"] | {"n_layer": 8, "attention": {"heads": 8}}}
    for text, needed in (("v5e:8x8", "copies:"), ("2xv5e:4x4", "slices:2"), ("h100:64", "stage:")):
        on = machine(text)
        found = list(layouts(from_dict(tree), on))
        assert len(found) == len(set(found)) > 10
        assert any(needed in mesh.shape for mesh in found)
        assert all(bool(mesh.dcn_shape) == (on.slices > 1) for mesh in found)


def test_a_search_ranks_and_writes_the_best_with_its_reason(config, capsys, tmp_path):
    out = tmp_path / "best.yml"
    words = ["--search", "--topology", "h100:2", "--out", str(out), "--json"]
    assert main(["plan", str(config), *words]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"]
    times = [one["seconds"] for one in found]
    assert times == sorted(times)
    assert sorted(filter(None, (one["named"] for one in found))) == ["as configured", "gpt-neo's layout"]
    assert all(one["why_not"] for one in found[1:])
    text = out.read_text()
    assert text.startswith("# The best layout found for h100:2")
    assert "as configured:" in text
    best = configuration.load(out)
    assert (best.mesh.layout, best.mesh.shape) == (found[0]["layout"], found[0]["shape"])
    assert main(["plan", str(config), *words]) == 2
    assert "best.yml is there already" in capsys.readouterr().err and out.read_text() == text


def test_ctrl_c_gives_what_was_found(monkeypatch):
    whole, said = searching.explore, []

    def interrupted(*args, **keys):
        if keys.get("free", True):
            raise KeyboardInterrupt
        return whole(*args, **keys)

    monkeypatch.setattr(searching, "explore", interrupted)
    ranked, _ = searching.search(from_dict(TREE), machine("h100:2"), finalists=0, say=said.append)
    assert [one.one.named for one in ranked]
    assert any(text.startswith("interrupted") for text in said)


def test_ctrl_c_that_a_callback_swallows_ends_the_search_too(monkeypatch):
    whole, said = searching.explore, []

    def swallowed(*args, **keys):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return whole(*args, **keys)

    monkeypatch.setattr(searching, "explore", swallowed)
    ranked, _ = searching.search(from_dict(TREE), machine("h100:2"), finalists=0, say=said.append)
    assert len(ranked) == 1 and any(text.startswith("interrupted") for text in said)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("ends", [False, True])
def test_what_is_compiled_ranks_first_and_ctrl_c_keeps_it(monkeypatch, ends):
    asked, shown = [], []

    def answers(config, topology, timeout):
        if ends and asked:
            raise KeyboardInterrupt
        asked.append((config, topology))
        return Answer(None, len(asked) != 1, ())

    monkeypatch.setattr(searching, "compile_apart", answers)
    ranked, _ = searching.search(
        from_dict(TREE),
        machine("v5e:1x2"),
        finalists=2,
        say=lambda text: None,
        show=lambda ranked, found: shown.append([entry.compiled for entry in ranked]),
    )
    assert not any(shown[0])  # the table by the model comes before anything is compiled
    assert [topology for _, topology in asked] == ["v5e:1x2"] * (1 if ends else 3)
    assert all(config.train.unroll is None for config, _ in asked)
    assert ranked[-1].refused == "compiled, it does not fit"  # the soonest by the model
    assert [entry.compiled for entry in ranked[:2]] == [not ends] * 2


@pytest.mark.parametrize("alone", [True, False])
def test_the_best_is_compiled_unrolled_too_and_wins_where_less_runs_beside_nothing(monkeypatch, alone):
    asked = []

    def answers(config, topology, timeout):
        asked.append(config)
        beside = (config.train.unroll == 2) == alone
        gather = Moved("all-gather", "data", "bf16", False, beside, 4, 2_000_000_000)
        return Answer(None, True, (gather,))

    monkeypatch.setattr(searching, "compile_apart", answers)
    tree = TREE | {"model": TREE["model"] | {"n_layer": 4}}
    ranked, found = searching.search(from_dict(tree), machine("v5e:1x2"), finalists=1, say=lambda text: None)
    assert [config.train.unroll for config in asked] == [None, 2]
    assert replace(asked[1].train, unroll=None) == asked[0].train and asked[1].mesh == asked[0].mesh
    assert ranked[0].one.unroll == (2 if alone else None)
    assert sum(entry.compiled and entry.one.unroll == 2 for entry in ranked) == 1
    text = searching.winner_text(ranked, found, from_dict(tree), machine("v5e:1x2"))
    assert ("unroll: 2" in text) == alone


def test_compiled_is_held_against_compiled_and_the_model_against_the_model(monkeypatch):
    """A compiler that hides nothing makes the winner slower than the model says: others are not the better
    for it."""
    slow = Moved("all-gather", "data", "bf16", False, False, 1, 2_000_000_000)
    answers = iter([Answer(None, True, (slow,)), Answer(None, True, (slow, slow))])
    monkeypatch.setattr(searching, "compile_apart", lambda *args: next(answers))
    ranked, _ = searching.search(from_dict(TREE), machine("v5e:1x2"), finalists=2, say=lambda text: None)
    best, second, *others = ranked
    assert best.compiled and second.compiled and not any(entry.compiled for entry in others)
    assert best.estimate.seconds > 0.01 > max(entry.estimate.seconds for entry in others)
    ratio = second.as_compiled.seconds / best.as_compiled.seconds
    assert searching.why(second, best).startswith(f"{ratio - 1:.0%} slower: ")
    for entry in others:
        ratio = entry.model.seconds / best.model.seconds
        assert ratio >= 1 and searching.why(entry, best).startswith(f"by the model {ratio - 1:.0%} slower")
    rows = searching.listed(ranked)
    assert [row["compiled"] for row in rows[:3]] == [True, True, False]
    assert (
        rows[0]["seconds"] > rows[0]["seconds_by_model"] and rows[2]["seconds"] == rows[2]["seconds_by_model"]
    )


@pytest.mark.parametrize(
    "batch, model, said",
    [
        (7, {}, "fail by train.batch_size"),
        (4, {"n_embd": 65536, "n_vocab": 500000}, "memory is what lacks"),
    ],
)
def test_an_empty_search_names_the_constraint(batch, model, said, monkeypatch):
    monkeypatch.setattr(candidates, "REMATS", ("full",))
    monkeypatch.setattr(candidates, "_parts", lambda *args: [1])
    tree = TREE | {"train": TREE["train"] | {"batch_size": batch}, "model": TREE["model"] | model}
    with pytest.raises(NeojaxError, match=said):
        searching.search(from_dict(tree), machine("h100:4"), finalists=0, say=lambda text: None)


def test_auto_is_resolved_with_its_reason_and_stays_as_a_run_began(tmp_path):
    said = []
    config = from_dict(AUTO | {"train": TREE["train"] | {"run_dir": str(tmp_path)}})
    first = resolved(config, machine("h100:2"), said.append)
    assert first.mesh.layout.startswith("batch:") and "soonest by the model" in said[-1]
    began = replace(first, mesh=replace(first.mesh, shape="copies:2, data:1", layout="batch:copies+data"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yml").write_text(configuration.dump(began))
    again = resolved(config, machine("h100:2"), said.append)
    assert again.mesh == began.mesh and "as the run began" in said[-1]


def test_devices_of_no_known_chip_are_a_machine_too():
    on = here(jax.devices()[:2])
    assert on.devices == 2
    found = resolved(from_dict(AUTO | {"train": {"batch_size": 16}}), on, lambda text: None)
    assert found.mesh.layout.startswith("batch:")


def test_auto_takes_no_other_keys_of_the_mesh():
    mixed = from_dict(TREE | {"mesh": {"layout": "auto", "param_layout": "embd:data"}})
    with pytest.raises(NeojaxError, match=r"leave mesh\.param_layout='embd:data' out"):
        resolved(mixed, machine("h100:2"))
