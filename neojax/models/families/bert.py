"""BERT: an encoder of post-norm blocks with token types, and heads for masked tokens, pairs and classes.

Facts: `BertConfig` and the classes `Bert...` of transformers; https://arxiv.org/abs/1810.04805.
"""

from collections.abc import Mapping
from typing import Any

from neojax.models.families.encoders import (
    BUFFERS,
    CLASSES,
    LAYER_NORMS,
    WRITTEN,
    build,
    read_head,
    write_head,
)
from neojax.models.families.family import Family, HuggingFace

ARCHITECTURES = {
    **{f"Bert{end}": kinds for end, kinds in CLASSES.items()},
    "BertForNextSentencePrediction": ("pair",),
}


def read(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The heads by the class of the model, and its labels."""
    return read_head(raw, source, ARCHITECTURES)


FAMILY = Family(
    build,
    HuggingFace(
        model_type="bert",
        architecture="BertForPreTraining",
        architectures=ARCHITECTURES,
        keys={
            "vocab_size": ("n_vocab", 30522),
            "max_position_embeddings": ("n_ctx", 512),
            "hidden_size": ("n_embd", 768),
            "num_hidden_layers": ("n_layer", 12),
            "num_attention_heads": ("attention.heads", 12),
            "intermediate_size": ("mlp.width", 3072),
            "hidden_act": ("mlp.activation", "gelu"),
            "layer_norm_eps": ("norm.epsilon", 1e-12),
            "type_vocab_size": ("embedding.token_types", 2),
            "hidden_dropout_prob": ("dropout", 0.1),
            "attention_probs_dropout_prob": ("attention.dropout", 0.1),
            "classifier_dropout": ("head.dropout", None),
            "tie_word_embeddings": ("embedding.tied", True),
            "initializer_range": ("init.std", 0.02),
        },
        read=read,
        write=write_head,
        written=WRITTEN,
        telltale="type_vocab_size",
        prefix="bert.",
        block="encoder.layer.{}.",
        output="cls.predictions.decoder.weight",
        output_biases=("cls.predictions.bias", "cls.predictions.decoder.bias"),
        renamed=LAYER_NORMS,
        buffers=BUFFERS,
        tensors={
            "wte": ("embeddings.word_embeddings.weight", "vocab embd"),
            "wpe": ("embeddings.position_embeddings.weight", "positions embd"),
            "token_types": ("embeddings.token_type_embeddings.weight", "token_types embd"),
            "norm_e.scale": ("embeddings.LayerNorm.weight", "embd"),
            "norm_e.bias": ("embeddings.LayerNorm.bias", "embd"),
            "attn.query": ("attention.self.query.weight", "heads*head_dim embd"),
            "attn.query_bias": ("attention.self.query.bias", "heads*head_dim"),
            "attn.key": ("attention.self.key.weight", "heads*head_dim embd"),
            "attn.key_bias": ("attention.self.key.bias", "heads*head_dim"),
            "attn.value": ("attention.self.value.weight", "heads*head_dim embd"),
            "attn.value_bias": ("attention.self.value.bias", "heads*head_dim"),
            "attn.out": ("attention.output.dense.weight", "embd heads*head_dim"),
            "attn.out_bias": ("attention.output.dense.bias", "embd"),
            "norm_1.scale": ("attention.output.LayerNorm.weight", "embd"),
            "norm_1.bias": ("attention.output.LayerNorm.bias", "embd"),
            "mlp.up": ("intermediate.dense.weight", "mlp embd"),
            "mlp.up_bias": ("intermediate.dense.bias", "mlp"),
            "mlp.down": ("output.dense.weight", "embd mlp"),
            "mlp.down_bias": ("output.dense.bias", "embd"),
            "norm_2.scale": ("output.LayerNorm.weight", "embd"),
            "norm_2.bias": ("output.LayerNorm.bias", "embd"),
        },
        heads={
            "pooler.weight": ("bert.pooler.dense.weight", "features embd"),
            "pooler.bias": ("bert.pooler.dense.bias", "features"),
            "mlm.dense": ("cls.predictions.transform.dense.weight", "features embd"),
            "mlm.dense_bias": ("cls.predictions.transform.dense.bias", "features"),
            "mlm.norm.scale": ("cls.predictions.transform.LayerNorm.weight", "features"),
            "mlm.norm.bias": ("cls.predictions.transform.LayerNorm.bias", "features"),
            "mlm.table": ("cls.predictions.decoder.weight", "vocab embd"),
            "mlm.bias": ("cls.predictions.bias", "vocab"),
            "pair.weight": ("cls.seq_relationship.weight", "labels embd"),
            "pair.bias": ("cls.seq_relationship.bias", "labels"),
            "classifier.weight": ("classifier.weight", "labels embd"),
            "classifier.bias": ("classifier.bias", "labels"),
            "span.weight": ("qa_outputs.weight", "labels embd"),
            "span.bias": ("qa_outputs.bias", "labels"),
        },
    ),
)
