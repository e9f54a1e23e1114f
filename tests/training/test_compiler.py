"""Compiler options: what the platform's table gives, what a run adds, and what is refused."""

import jax
import pytest
from helpers import layout_of

from neojax.errors import NeojaxError
from neojax.training import compiler
from neojax.training.compiler import OPTIONS, compiler_options

ONE = layout_of("data:1")


def test_the_compiler_here_knows_every_option_of_the_gpu():
    """GPU options are part of the same settings on every platform, so that a CPU's compiler checks their names."""
    if jax.default_backend() != "cpu":
        pytest.skip("this checks the options of another platform")
    assert compiler._refusal(ONE.device, OPTIONS["gpu"]) == ""


@pytest.mark.parametrize("topology, kind", [("v5e:2x2", None), ("v6e:2x2", "TPU v6 lite")])
def test_the_tpu_compiler_knows_every_option_of_the_tpu(topology, kind):
    pytest.importorskip("libtpu")
    from neojax.mesh import MeshConfig, make_layout
    from neojax.topology import tpu_devices

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
