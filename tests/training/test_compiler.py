"""Compiler options: what the platform's table gives, what a run adds, and what is refused."""

import jax
import pytest
from helpers import layout_of, tiny

from neojax.config import TrainConfig
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.training import compiler
from neojax.training.compiler import OPTIONS, compiler_options
from neojax.training.optimizer import make_optimizer
from neojax.training.step import make_eval_step, make_train_step

ONE = layout_of("data:1")


def test_the_compiler_here_knows_every_option_of_the_gpu_in_one_of_its_spellings():
    """GPU options are part of the same settings on every platform, so that a CPU's compiler checks their
    names."""
    if jax.default_backend() != "cpu":
        pytest.skip("this checks the options of another platform")
    table = OPTIONS["gpu"] | compiler.DETERMINISTIC["gpu"]
    unknown = {name for name, value in table.items() if compiler._refusal(ONE.device, {name: value})}
    old = {f"xla_gpu_enable_pipelined_{kind}" for kind in ("all_gather", "reduce_scatter", "all_reduce")}
    new = {name.replace("enable_pipelined", "pipeline") for name in old}
    assert old | new <= set(table)
    assert unknown == (new if jax.__version_info__ < (0, 11) else old)


@pytest.mark.parametrize("topology, kind", [("v5e:2x2", None), ("v6e:2x2", "TPU v6 lite")])
def test_the_tpu_compiler_knows_every_option_of_the_tpu(topology, kind):
    pytest.importorskip("libtpu")
    from neojax.layout.mesh import MeshConfig, make_layout
    from neojax.layout.topology import tpu_devices

    layout = make_layout(MeshConfig("data:-1"), tpu_devices(topology))
    assert compiler_options(layout) == {**OPTIONS["tpu"], **OPTIONS.get(kind, {})}


def test_options_of_the_table_that_the_compiler_does_not_know_are_left_out(monkeypatch):
    known = {"xla_llvm_disable_expensive_passes": True}
    monkeypatch.setattr(compiler, "OPTIONS", {ONE.device.platform: {**known, "xla_of_another_release": True}})
    assert compiler_options(ONE) == known


def test_a_run_adds_and_overrides(monkeypatch):
    monkeypatch.setattr(
        compiler, "OPTIONS", {ONE.device.platform: {"xla_llvm_disable_expensive_passes": True}}
    )
    eight = layout_of("data:8")
    own = ["xla_llvm_disable_expensive_passes=false", "xla_cpu_prefer_vector_width=256"]
    expected = {"xla_llvm_disable_expensive_passes": False, "xla_cpu_prefer_vector_width": "256"}
    assert compiler_options(ONE, own) == expected
    with jax.set_mesh(eight.mesh):
        assert compiler_options(eight) == {"xla_llvm_disable_expensive_passes": True}
        assert compiler_options(eight, own) == expected


@pytest.mark.parametrize(
    "text, cause",
    [
        ("xla_nonsense=1", "No such compile option"),
        ("xla_llvm_disable_expensive_passes=banana", "not a valid bool"),
        ("xla_llvm_disable_expensive_passes", "not name=value"),
    ],
)
def test_what_the_compiler_does_not_take_is_refused_in_one_line(text, cause):
    with pytest.raises(NeojaxError, match=cause) as caught:
        compiler_options(ONE, [text])
    assert "train.compiler_options" in str(caught.value) and "\n" not in str(caught.value)


def test_deterministic_adds_nothing_where_the_devices_need_nothing():
    if jax.default_backend() == "gpu":
        pytest.skip("GPUs need it")
    assert compiler_options(ONE, deterministic=True) == compiler_options(ONE)


@pytest.mark.parametrize("part", ["training", "evaluation"])
def test_deterministic_holds_for_all_that_computes_or_is_refused(part, monkeypatch):
    """As on a GPU: every program whose numbers a run shows asks for it, and a compiler that lacks it is an
    error."""
    model = Transformer(tiny(), ONE)

    def make(train):
        if part == "training":
            make_train_step(model, make_optimizer(train, model.dims()), train)
        else:
            make_eval_step(model, train)

    monkeypatch.setattr(compiler, "DETERMINISTIC", {ONE.platform: {"xla_of_another_release": True}})
    make(TrainConfig())
    with pytest.raises(NeojaxError, match=r"train\.deterministic: .*xla_of_another_release"):
        make(TrainConfig(deterministic=True))


def test_a_run_cannot_undo_deterministic(monkeypatch):
    monkeypatch.setattr(compiler, "DETERMINISTIC", {ONE.platform: {"xla_gpu_deterministic_ops": True}})
    assert compiler_options(ONE, deterministic=True)["xla_gpu_deterministic_ops"] is True
    assert (
        compiler_options(ONE, ["xla_gpu_deterministic_ops=true"], True)["xla_gpu_deterministic_ops"] is True
    )
    with pytest.raises(NeojaxError, match=r"train\.deterministic needs .*=true, which .* sets to false"):
        compiler_options(ONE, ["xla_gpu_deterministic_ops=false"], True)
