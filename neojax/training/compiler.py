"""XLA's options for the training step: one table by platform, and what train.compiler_options adds.

They go with the compilation, not into environment variables, where an option that a release no longer knows
ends the process. Sources: the settings that MaxText and NVIDIA's JAX-Toolbox publish for their training runs.
Those of the TPU let collectives run beside computation; those of the GPU do the same and merge small
collectives.

`train.deterministic` asks that the same program on the same numbers gives the same bits. CPUs and TPUs need
nothing for that. On GPUs XLA then takes no kernel that adds in the order in which threads happen to finish,
tells cuDNN to use the deterministic form of its attention's gradient, and chooses kernels without timing
them, so that a program compiled again is the same program.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout

Options = dict[str, bool | str]

OPTIONS: Mapping[str, Options] = {  # by platform, then by kind of device
    "tpu": {
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_enable_async_all_gather": True,
        "xla_tpu_enable_data_parallel_all_reduce_opt": True,
        "xla_tpu_data_parallel_opt_different_sized_ops": True,
    },
    "TPU v6 lite": {"xla_tpu_scoped_vmem_limit_kib": "98304"},
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_all_reduce_combine_threshold_bytes": "134217728",
        "xla_gpu_all_gather_combine_threshold_bytes": "134217728",
        "xla_gpu_reduce_scatter_combine_threshold_bytes": "67108864",
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_pipelined_all_reduce": True,
        # Pipelining is asked for by these names from JAX 0.11 on, and by those above before.
        "xla_gpu_pipeline_all_gather": "COLLECTIVE_PIPELINING_MODE_ON",
        "xla_gpu_pipeline_reduce_scatter": "COLLECTIVE_PIPELINING_MODE_ON",
        "xla_gpu_pipeline_all_reduce": "COLLECTIVE_PIPELINING_MODE_ON",
    },
}

DETERMINISTIC: Mapping[str, Options] = {"gpu": {"xla_gpu_deterministic_ops": True}}  # by platform


def compiler_options(layout: Layout, own: Sequence[str] = (), deterministic: bool = False) -> Options:
    """The options for the devices of `layout`, with the run's `own` (name=value) on top, and the
    `deterministic` ones.

    Those of the table that the installed compiler does not know are left out. Raises `NeojaxError` for one of
    `own` that it does not know, or whose value it does not take, or that undoes `deterministic`.
    """
    here = _device(layout)
    table = {**OPTIONS.get(here.platform, {}), **OPTIONS.get(here.device_kind, {})}
    if _refusal(here, table):
        table = {name: value for name, value in table.items() if not _refusal(here, {name: value})}
    for text in own:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise NeojaxError(f"train.compiler_options: {text!r} is not name=value")
        option: Options = {name: {"true": True, "false": False}.get(value.lower(), value)}
        if refusal := _refusal(here, option):
            raise NeojaxError(f"train.compiler_options: {text}: {refusal}; correct it or leave it out")
        table |= option
    required = deterministic_options(layout) if deterministic else {}
    for name, needed in required.items():
        if table.setdefault(name, needed) != needed:
            raise NeojaxError(
                f"train.deterministic needs {name}={str(needed).lower()}, which train.compiler_options sets "
                f"to {str(table[name]).lower()}; leave one of the two out"
            )
    return table


def deterministic_options(layout: Layout) -> Options:
    """What `train.deterministic` asks of every program that computes a number of the run.

    Raises `NeojaxError` where the installed compiler cannot promise it.
    """
    options = DETERMINISTIC.get(layout.platform, {})
    if refusal := _refusal(_device(layout), options):
        raise NeojaxError(
            f"train.deterministic: this compiler cannot promise it ({refusal}); set it to false"
        )
    return dict(options)


def _device(layout: Layout) -> jax.Device:
    """A device of `layout`, of this process if it has one there, to ask its compiler."""
    devices = (
        list(layout.mesh.devices.flat) if isinstance(layout.mesh, jax.sharding.Mesh) else [layout.device]
    )
    return next((d for d in devices if d.process_index == jax.process_index()), devices[0])


def _refusal(device: jax.Device, options: Options) -> str:
    """Why the compiler for `device` does not take `options`; empty where it does."""
    if not options:
        return ""
    alone = jax.make_mesh((1,), ("alone",), devices=[device])  # the mesh in force may be of other devices
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(alone, jax.P()))
    try:
        with jax.set_mesh(alone):
            jax.jit(lambda x: x).lower(number).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
        return " ".join(str(e).removeprefix("INVALID_ARGUMENT: ").split()).rstrip(". ")
    return ""
