"""gpt-neo's model and its training step, put together from Mesh-TensorFlow's operations and run by
TensorFlow.

An oracle: what layers, attention, losses and optimizer compute is the library's own; which of them follow
each other, and what the variables are called, is gpt-neo's. One device, no dropout, no experts. Needs the
extra `oracle`.
"""

import importlib
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow.compat.v1 as tf
from tensorflow.python.framework import ops, tensor_conversion_registry


def _import_mesh_tensorflow():
    """Mesh-TensorFlow 0.1.18, which gpt-neo asked for, on today's TensorFlow: two names that it looks up are
    gone or have moved, and the package of its attention imports readers of data sets that nothing here
    needs."""
    tf.estimator = types.SimpleNamespace(CheckpointSaverListener=object, SessionRunHook=object)
    ops.register_tensor_conversion_function = tensor_conversion_registry.register_tensor_conversion_function
    mtf = importlib.import_module("mesh_tensorflow")
    package = types.ModuleType("mesh_tensorflow.transformer")
    package.__path__ = [str(Path(mtf.__file__).parent / "transformer")]
    sys.modules[package.__name__] = package
    return mtf, importlib.import_module("mesh_tensorflow.transformer.attention")


mtf, attention = _import_mesh_tensorflow()
tf.disable_v2_behavior()
tf.enable_resource_variables()  # others are read while they are updated
tf.logging.set_verbosity(tf.logging.ERROR)


class Original:
    """The model of `config` (keys of gpt-neo's JSON), at batches of `batch` sequences of `n_ctx` tokens.

    `values` are those of its variables, and of the optimizer's slots where they do not begin at zero, by
    name; `step` is that of the next step.
    """

    def __init__(self, config: Mapping, batch: int, values: Mapping[str, np.ndarray], step: int = 0):
        self.config = {"z_loss": 1e-4, "ada_epsilon1": 1e-30, "ada_epsilon2": 1e-3, **config}
        self.graph = tf.Graph()
        with self.graph.as_default():
            self._build(batch)
            self.session = tf.Session(config=tf.ConfigProto(device_count={"CPU": 2}))
            self.session.run(tf.global_variables_initializer())
            for variable in tf.global_variables():
                name = variable.op.name
                if name in values:
                    variable.load(np.asarray(values[name], variable.dtype.as_numpy_dtype), self.session)
                else:
                    assert "_slot_" in name or "/adam_" in name or name == "global_step", name
            self.global_step.load(step, self.session)
            self.session.run(self.lowering.copy_masters_to_slices())

    def variables(self) -> dict[str, np.ndarray]:
        """All variables, slots among them, as they are now."""
        with self.graph.as_default():
            self.session.run(self.to_masters)
            return {v.op.name: self.session.run(v) for v in tf.global_variables()}

    def save(self, folder: Path) -> Path:
        """Writes a checkpoint as gpt-neo's Saver did, and gives its prefix."""
        with self.graph.as_default():
            self.session.run(self.to_masters)
            saver = tf.train.Saver(tf.global_variables(), sharded=True, save_relative_paths=True)
            path = saver.save(
                self.session, str(folder / "model.ckpt"), self.global_step, write_meta_graph=False
            )
            return Path(path)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(self.tf_logits, tokens, tokens)

    def loss_and_gradients(self, inputs: np.ndarray, labels: np.ndarray):
        """The reported loss (with z_loss), and the gradients by variable, before clipping."""
        return self._run((self.tf_loss, self.tf_gradients), inputs, labels)

    def train(self, inputs: np.ndarray, labels: np.ndarray) -> float:
        """One step; the loss before it in nats a token, without z_loss."""
        return float(self._run((self.tf_nats, self.tf_step), inputs, labels)[0])

    def _run(self, wanted, inputs, labels):
        with self.graph.as_default():
            return self.session.run(wanted, {self.inputs: inputs, self.labels: labels})

    def _build(self, batch: int) -> None:
        c = self.config
        half = c.get("precision") == "bfloat16"
        kept = tf.bfloat16 if half else tf.float32  # of checkpoints and activations; training holds float32
        self.dtype = mtf.VariableDType(kept, tf.float32, kept)
        graph = mtf.Graph()
        self.mesh = mesh = mtf.Mesh(graph, "mesh")
        sizes = {"batch": batch, "sequence": c["n_ctx"], "embd": c["n_embd"], "vocab": c["n_vocab"]}
        sizes |= {"heads": c["n_head"], "features_per_head": c["n_embd"] // c["n_head"]}
        sizes |= {"memory_length": c["n_ctx"], "embed_sequence": c["n_ctx"]}
        self.dim = {name: mtf.Dimension(name, size) for name, size in sizes.items()}
        shape = mtf.Shape([self.dim["batch"], self.dim["sequence"]])
        self.inputs, self.labels = (tf.placeholder(tf.int32, shape.to_integer_list) for _ in range(2))
        tokens, labels = (
            mtf.import_fully_replicated(mesh, x, shape, name=name)
            for x, name in ((self.inputs, "inputs"), (self.labels, "labels"))
        )
        self.global_step = tf.train.get_or_create_global_step()
        with tf.variable_scope("gpt2"):
            logits = mtf.cast(self._model(tokens), tf.float32)
            per_token = self._loss(logits, labels, c["z_loss"])
            loss = mtf.cast(mtf.reduce_mean(per_token), tf.float32)
            nats = mtf.reduce_mean(self._loss(logits, labels, 0.0))
        variables = graph.trainable_variables
        gradients = mtf.gradients([loss], [v.outputs[0] for v in variables])
        gradients = [mtf.cast(g, tf.float32) for g in gradients]
        updates = self._optimizer().apply_grads(self._clipped(gradients), variables)
        devices = mtf.placement_mesh_impl.PlacementMeshImpl([("all", 1)], [], ["/device:CPU:0"])
        self.lowering = lowering = mtf.Lowering(graph, {mesh: devices}, autostack=True)

        def exported(x):
            return tf.cast(lowering.export_to_tf_tensor(x), tf.float32)

        self.tf_logits, self.tf_loss, self.tf_nats = exported(logits), exported(loss), exported(nats)
        self.tf_gradients = {v.name: exported(g) for v, g in zip(variables, gradients)}
        with tf.control_dependencies([self.tf_nats]):
            step = [lowering.lowered_operation(op) for op in updates]
            self.tf_step = tf.group(step, tf.assign_add(self.global_step, 1))
        self.to_masters = lowering.copy_slices_to_masters()

    def _variable(self, name: str, *dims: str, size: int = 0) -> mtf.Tensor:
        shape = [self.dim.get(d) or mtf.Dimension(d, size) for d in dims]
        return mtf.get_variable(self.mesh, name, mtf.Shape(shape), dtype=self.dtype)

    def _model(self, tokens: mtf.Tensor) -> mtf.Tensor:
        c, dim = self.config, self.dim
        wte = self._variable("wte", "vocab", "embd")
        h = mtf.gather(wte, tokens, dim["vocab"])
        self.turn = None
        if "rotary_emb" in c:  # whatever its value
            self.turn = self._rotary()
        else:
            wpe = self._variable("wpe", "embed_sequence", "embd")
            places = mtf.range(self.mesh, dim["sequence"], tf.int64)
            h += mtf.gather(wpe, places, dim["embed_sequence"])
        kinds = [kind for pattern, times in c["attention_types"] for kind in pattern * times]
        for layer, kind in enumerate(kinds):
            with tf.variable_scope(f"h{layer}"):
                h += self._attend(self._norm(h, "norm_1"), kind)
                h += self._mlp(self._norm(h, "norm_2"))
        return mtf.einsum(
            [self._norm(h, "ln_f"), wte], output_shape=[dim["batch"], dim["sequence"], dim["vocab"]]
        )

    def _norm(self, x: mtf.Tensor, scope: str) -> mtf.Tensor:
        embd = self.dim["embd"]
        with tf.variable_scope(scope):
            centred = x - mtf.reduce_mean(x, reduced_dim=embd)
            variance = mtf.reduce_mean(mtf.square(centred), reduced_dim=embd)
            return centred * mtf.rsqrt(variance + 1e-5) * self._variable("g", "embd") + self._variable(
                "b", "embd"
            )

    def _mlp(self, x: mtf.Tensor) -> mtf.Tensor:
        wide = mtf.Dimension("intermediate_expanded", 4 * self.dim["embd"].size)

        def dense(x: mtf.Tensor, to: mtf.Dimension, name: str) -> mtf.Tensor:
            return mtf.layers.dense(x, [to], [x.shape[-1]], variable_dtype=self.dtype, name=name)

        with tf.variable_scope("mlp/conv1d_main"):
            return dense(mtf.gelu(dense(x, wide, "c_fc")), self.dim["embd"], "c_proj")

    def _attend(self, x: mtf.Tensor, kind: str) -> mtf.Tensor:
        c, dim = self.config, self.dim
        features, causal = dim["features_per_head"], not c.get("mlm_training")
        with tf.variable_scope("attn"):
            weights = attention.attention_params_simple(
                self.mesh, dim["embd"], features, dim["heads"], self.dtype
            )
            q, k, v = weights.compute_q(x), weights.compute_k(x), weights.compute_v(x)
            if self.turn:
                q, k = self._turned(q), self._turned(k)
            with tf.variable_scope("attention"):
                if kind == "linear":
                    y = self._linear(q, k, v, causal)
                elif kind == "local":
                    y = attention.local_attention_1d(
                        q, k, v, dim["sequence"], features, features, fully_autoregressive=causal,
                        radius=c["local_attention_radius"], attention_kwargs={},
                    )  # fmt: skip
                else:
                    y = self._global(q, k, v, causal)
            with tf.variable_scope("compute_output"):
                y = weights.compute_output(y, x.shape)
            with tf.variable_scope("compute_output_bias"):
                return y + self._variable("o_b", "embd")

    def _global(self, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, causal: bool) -> mtf.Tensor:
        dim, slots = self.dim, self.config.get("num_mem_kv", 0)
        memory = mtf.Dimension("memory_length", slots + dim["sequence"].size)
        k, v = (mtf.rename_dimension(x, "sequence", "memory_length") for x in (k, v))
        if slots:
            own = [
                self._variable(n, "slots", "heads", "features_per_head", size=slots)
                for n in ("mem_k", "mem_v")
            ]
            shape = [
                dim["batch"],
                mtf.Dimension("memory_length", slots),
                dim["heads"],
                dim["features_per_head"],
            ]
            own = [mtf.broadcast(mtf.rename_dimension(x, "slots", "memory_length"), shape) for x in own]
            k, v = (mtf.concat([mine, x], "memory_length") for mine, x in zip(own, (k, v)))
        bias = None
        if causal:
            now, then = (
                mtf.range(self.mesh, dim["sequence"], tf.int32),
                mtf.range(self.mesh, memory, tf.int32),
            )
            bias = mtf.cast(mtf.greater(then - slots, now), self.dtype.activation_dtype) * -1e10
        features = dim["features_per_head"]
        return attention.attention(q, k, v, memory, features, features, bias)

    def _linear(self, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, causal: bool) -> mtf.Tensor:
        sequence = self.dim["sequence"]
        q, k = (mtf.rename_dimension(x, "features_per_head", "features_in") for x in (q, k))
        features = k.shape.get_dim_by_name("features_in")
        shape = v.shape - sequence + features
        q = mtf.softmax(q, features)
        if not causal:
            return mtf.einsum([q, mtf.einsum([mtf.softmax(k, sequence), v], shape)], v.shape)
        k = mtf.exp(k)
        context = mtf.cumsum(mtf.einsum([k, v], shape + sequence), sequence)
        weights = mtf.einsum([q, mtf.cumsum(k, sequence) + 1e-6], v.shape - self.dim["features_per_head"])
        return mtf.einsum([q, context, 1.0 / weights], v.shape)

    def _rotary(self) -> tuple[mtf.Tensor, mtf.Tensor]:
        """Cosines and sines of the angles, computed as gpt-neo did in the type of checkpoints; the key
        `exact_angles`, which gpt-neo had not, computes them in float32."""
        kept = tf.float32 if self.config.get("exact_angles") else self.dtype.master_dtype
        size = self.dim["features_per_head"].size
        half = mtf.Dimension("half", size // 2)
        exponents = mtf.range(self.mesh, half, kept) * 2 / size
        speeds = 1.0 / mtf.pow(mtf.constant(self.mesh, 10000, dtype=kept), exponents)
        angles = mtf.einsum(
            [speeds, mtf.range(self.mesh, self.dim["sequence"], kept)], [self.dim["sequence"], half]
        )
        angles = mtf.rename_dimension(mtf.concat([angles, angles], "half"), "half", "features_per_head")
        return mtf.cos(angles), mtf.sin(angles)

    def _turned(self, x: mtf.Tensor) -> mtf.Tensor:
        cos, sin = (mtf.cast(y, x.dtype) for y in self.turn)
        half = self.dim["features_per_head"].size // 2
        first, second = (mtf.slice(x, begin, half, "features_per_head") for begin in (0, half))
        return x * cos + mtf.concat([-second, first], "features_per_head") * sin

    def _loss(self, logits: mtf.Tensor, labels: mtf.Tensor, z_loss: float) -> mtf.Tensor:
        vocab = self.dim["vocab"]
        return mtf.layers.softmax_cross_entropy_with_logits(logits, labels, vocab, z_loss)

    def _clipped(self, gradients: list[mtf.Tensor]) -> list[mtf.Tensor]:
        limit = self.config.get("gradient_clipping")
        if limit is None:
            return gradients
        norm = mtf.sqrt(mtf.add_n([mtf.reduce_sum(mtf.square(g)) for g in gradients]))
        return [g * (limit / mtf.maximum(norm, limit)) for g in gradients]

    def _optimizer(self) -> mtf.optimize.Optimizer:
        c = self.config
        if c["opt_name"] == "adam":
            return mtf.optimize.AdamWeightDecayOptimizer(
                c["lr"], c["weight_decay"], c["beta1"], c["beta2"], c["epsilon"], ["norm", "bias"]
            )
        return mtf.optimize.AdafactorOptimizer(
            learning_rate=c["lr"], decay_rate=c.get("weight_decay"), beta1=c.get("beta1"),
            epsilon1=c["ada_epsilon1"], epsilon2=c["ada_epsilon2"],
        )  # fmt: skip
