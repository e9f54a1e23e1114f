"""ALBERT: as BERT, with embeddings of a width of their own and one set of weights for all layers of a group;
its pairs are the same sentences in order or swapped (SOP).

Facts: `AlbertConfig` and the classes `Albert...` of transformers; https://arxiv.org/abs/1909.11942. Dropout
follows google-research/albert, which has it on the output of the MLP too; transformers has not.
"""

from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError
from neojax.models.compute import Compute
from neojax.models.families import encoders
from neojax.models.families.encoders import BUFFERS, CLASSES, LAYER_NORMS, WRITTEN, read_head, write_head
from neojax.models.families.family import Family, HuggingFace, Parts

ARCHITECTURES = {f"Albert{end}": kinds for end, kinds in CLASSES.items()}


def build(config: ModelConfig, sizes: Mapping[str, int], compute: Compute) -> Parts:
    """The three parts of an ALBERT, whose head for pairs has dropout before it. Raises `NeojaxError` where
    its embeddings have no width."""
    if config.embedding.width is None:
        raise NeojaxError(
            "model.embedding.width=null: an albert has a width of its own for them, such as 128"
        )
    return encoders.build(config, sizes, compute, pair_dropout=config.head_dropout)


def read(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The heads by the class of the model, its labels, and the number of layers, each turn counted."""
    layers, inner = raw.get("num_hidden_layers", 12), raw.get("inner_group_num", 1)
    groups = raw.get("num_hidden_groups", 1)
    if not all(type(count) is int and count > 0 for count in (layers, inner, groups)) or layers % groups:
        raise NeojaxError(
            f"{source}: num_hidden_layers={layers}, num_hidden_groups={groups}, inner_group_num={inner}: "
            "expected counts, and equally many layers in each group"
        )
    found = read_head({"hidden_dropout_prob": 0.0, **raw}, source, ARCHITECTURES)
    return {**found, "n_layer": layers * inner}


def write(config: ModelConfig) -> dict[str, Any]:
    """What all encoders write, the rate of dropout of heads, and the number of layers as transformers counts
    them."""
    return {
        **write_head(config),
        "classifier_dropout_prob": config.head_dropout,
        "num_hidden_layers": config.n_layer // config.inner_layers,
    }


FAMILY = Family(
    build,
    HuggingFace(
        model_type="albert",
        architecture="AlbertForPreTraining",
        architectures=ARCHITECTURES,
        keys={
            "vocab_size": ("n_vocab", 30000),
            "embedding_size": ("embedding.width", 128),
            "max_position_embeddings": ("n_ctx", 512),
            "hidden_size": ("n_embd", 4096),
            "num_hidden_groups": ("layer_groups", 1),
            "inner_group_num": ("inner_layers", 1),
            "num_attention_heads": ("attention.heads", 64),
            "intermediate_size": ("mlp.width", 16384),
            "hidden_act": ("mlp.activation", "gelu_new"),
            "layer_norm_eps": ("norm.epsilon", 1e-12),
            "type_vocab_size": ("embedding.token_types", 2),
            "hidden_dropout_prob": ("dropout", 0.0),
            "attention_probs_dropout_prob": ("attention.dropout", 0.0),
            "classifier_dropout_prob": ("head.dropout", 0.1),
            "tie_word_embeddings": ("embedding.tied", True),
            "initializer_range": ("init.std", 0.02),
        },
        read=read,
        write=write,
        written=(*WRITTEN, "n_layer"),
        telltale="num_hidden_groups",
        prefix="albert.",
        block="encoder.albert_layer_groups.{}.albert_layers.{}.",
        output="predictions.decoder.weight",
        output_biases=("predictions.bias", "predictions.decoder.bias"),
        renamed=LAYER_NORMS,
        buffers=BUFFERS,
        tensors={
            "wte": ("embeddings.word_embeddings.weight", "vocab token_embd"),
            "wpe": ("embeddings.position_embeddings.weight", "positions token_embd"),
            "token_types": ("embeddings.token_type_embeddings.weight", "token_types token_embd"),
            "norm_e.scale": ("embeddings.LayerNorm.weight", "token_embd"),
            "norm_e.bias": ("embeddings.LayerNorm.bias", "token_embd"),
            "mapping": ("encoder.embedding_hidden_mapping_in.weight", "embd token_embd"),
            "mapping_bias": ("encoder.embedding_hidden_mapping_in.bias", "embd"),
            "attn.query": ("attention.query.weight", "heads*head_dim embd"),
            "attn.query_bias": ("attention.query.bias", "heads*head_dim"),
            "attn.key": ("attention.key.weight", "heads*head_dim embd"),
            "attn.key_bias": ("attention.key.bias", "heads*head_dim"),
            "attn.value": ("attention.value.weight", "heads*head_dim embd"),
            "attn.value_bias": ("attention.value.bias", "heads*head_dim"),
            "attn.out": ("attention.dense.weight", "embd heads*head_dim"),
            "attn.out_bias": ("attention.dense.bias", "embd"),
            "norm_1.scale": ("attention.LayerNorm.weight", "embd"),
            "norm_1.bias": ("attention.LayerNorm.bias", "embd"),
            "mlp.up": ("ffn.weight", "mlp embd"),
            "mlp.up_bias": ("ffn.bias", "mlp"),
            "mlp.down": ("ffn_output.weight", "embd mlp"),
            "mlp.down_bias": ("ffn_output.bias", "embd"),
            "norm_2.scale": ("full_layer_layer_norm.weight", "embd"),
            "norm_2.bias": ("full_layer_layer_norm.bias", "embd"),
        },
        heads={
            "pooler.weight": ("albert.pooler.weight", "features embd"),
            "pooler.bias": ("albert.pooler.bias", "features"),
            "mlm.dense": ("predictions.dense.weight", "features embd"),
            "mlm.dense_bias": ("predictions.dense.bias", "features"),
            "mlm.norm.scale": ("predictions.LayerNorm.weight", "features"),
            "mlm.norm.bias": ("predictions.LayerNorm.bias", "features"),
            "mlm.table": ("predictions.decoder.weight", "vocab token_embd"),
            "mlm.bias": ("predictions.bias", "vocab"),
            "pair.weight": ("sop_classifier.classifier.weight", "labels embd"),
            "pair.bias": ("sop_classifier.classifier.bias", "labels"),
            "classifier.weight": ("classifier.weight", "labels embd"),
            "classifier.bias": ("classifier.bias", "labels"),
            "span.weight": ("qa_outputs.weight", "labels embd"),
            "span.bias": ("qa_outputs.bias", "labels"),
        },
    ),
)
