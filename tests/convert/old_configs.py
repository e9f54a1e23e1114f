"""Configs as gpt-neo's repository had them at one time or another, made up anew at sizes that tests can
afford."""

SIZES = {"n_head": 2, "n_embd": 16, "n_vocab": 48, "n_ctx": 8, "n_layer": 2}
DROPOUT = {"embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1}
RUN = {"train_batch_size": 16, "train_steps": 30, "eval_steps": 0, "iterations": 5, "eval_batch_size": 4}
ADAM = {"opt_name": "adam", "lr": 0.00025, "warmup_steps": 4, "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-9}
ADAFACTOR = {"opt_name": "adafactor", "lr": 0.0002, "beta1": 0, "ada_epsilon1": "1e-30", "weight_decay": 0.1}

# Before Mesh-TensorFlow: one model, one data set by the name of its input function.
FIRST = {
    **SIZES,
    **DROPOUT,
    **RUN,
    **ADAFACTOR,
    "model": "GPT2",
    "model_path": "gs://old-models/first",
    "encoder_path": "gs://old-data/encoder",
    "input": "openwebtext_longbiased",
    "data_path": "gs://old-data/webtext/",
    "decay_type": "pow",
    "decay_exponent": 0.8,
    "max_steps": 50,
    "predict_path": "logs/predictions.txt",
    "precision": "float32",
    "scale_by_depth": True,
    "scale_by_in": True,
}
# Globs with a weight, below data_path or by themselves; a mesh.
GLOBS = {
    **SIZES,
    **DROPOUT,
    **RUN,
    **ADAM,
    "model": "GPT2",
    "model_path": "gs://old-models/globs",
    "data_path": "gs://old-data/webtext/",
    "datasets": [["webtext_*.tfrecords", "", 11, "random_sample", 1.0]],
    "mesh_shape": "all:2",
    "layout": "heads:all",
    "lr_decay": "linear",
    "layer_offset": 16,
    "local": False,
}
SEVERAL = {
    **GLOBS,
    "data_path": None,
    "eval_steps": 3,
    "datasets": [
        ["gs://a/train_*.tfrecords", "gs://a/eval_*.tfrecords", 11, "documents_random", 3],
        ["gs://b/train_*.tfrecords", None, 10, "chunks", "0.5"],
    ],
    "mesh_shape": "x:4,y:2",
    "layout": "query_block_length:y, batch:x, intermediate_expanded:y",
    "microbatches_per_batch": 2,
    "activation_function": "selu",
}
PATTERNS = {**SEVERAL, "attention_types": [[["local", "global"], 1]], "local": False, "recompute_grad": False}
NAMED = {
    **PATTERNS,
    "datasets": [["webtext-documents", 11, "documents_random", 1.0], "wiki", ["books", None, None, None]],
    "dataset_ids": ["webtext-documents"],
    "gradient_clipping": 0.5,
    "tokens_per_mb_per_replica": 16,
    "mesh_shape": "x:4;y:2",
    "layout": "batch:x.vocab:n_vocab embd:y",
    "no_weight_tie": True,
}
TEST = {**NAMED, "mesh_shape": "", "layout": "", "num_cores": 256, "use_tpu": False, "scalenorm": True}

READ = {
    "first": FIRST,
    "globs": GLOBS,
    "several globs": SEVERAL,
    "patterns": PATTERNS,
    "named data": NAMED,
    "no mesh": TEST,
    "adafactor": {**PATTERNS, **ADAFACTOR},
    "masked": {**PATTERNS, "mlm_training": True, "mlm_mask_id": 47, "mlm_mask_ignore_ids": [0]},
    "experts": {**PATTERNS, "moe_layers": [1, 2], "moe_params": {"moe_dropout_rate": 0.0}},
    "switched off": {**PATTERNS, "residual": True, "use_mlp": True, "moe_layers": []},
}
# name -> (config, what the line names, overrides with which it is read; None where it cannot be)
REFUSED = {
    "no attention": ({**GLOBS, "model": "GPT"}, "no key attention_types", ["model.attention_types=global"]),
    "local": ({**GLOBS, "local": True}, "local=true without", ["model.attention_types=local"]),
    "convolutions": (
        {**PATTERNS, "attention_types": [[["conv"], 2]], "convolution_dimension": 8},
        "'conv'",
        ["model.attention_types=local"],
    ),
    "no residual": ({**PATTERNS, "residual": False}, "residual=false", None),
    "no MLP": ({**PATTERNS, "use_mlp": False}, "use_mlp=false", None),
    "light": ({**PATTERNS, "lightweight_conv_attention": 4}, "lightweight_conv_attention=4", None),
    "experts of another kind": (
        {**PATTERNS, "moe_layers": [1], "moe_params": {"moe_gating": "ntlb"}},
        "moe_gating: expected top_2",
        None,
    ),
    "video": (
        {**SIZES, "feed_forward_per_attention": 2, "use_video": False, "model_path": "x"},
        "use_video",
        None,
    ),
    "odd heads": ({**PATTERNS, "n_embd": 17}, "n_embd=17 is not a multiple", ["model.n_embd=32"]),
    "short pattern": (
        {**PATTERNS, "attention_types": [[["global"], 1]]},
        "gives 1 layers but model.n_layer is 2",
        ["model.n_layer=1"],
    ),
    "two rules for an axis": (
        {**PATTERNS, "layout": "heads:y,batch:y"},
        "splits both batch and heads",
        ["mesh.layout=batch:x"],
    ),
    "two rules for a weight": (
        {**PATTERNS, "layout": "query_block_length:y, batch:x, intermediate_expanded:y,embd:y"},
        "splits both mlp and embd over axis y",
        ["mesh.layout=batch:x,embd:y"],
    ),
    "rows that no mesh divides": (
        {**PATTERNS, "train_batch_size": 6},
        "4 parts",
        ["train.batch_size=8"],
    ),
    "mesh": ({**PATTERNS, "mesh_shape": "x:2:3"}, "x is '2:3'", ["mesh.shape=x:2"]),
    "text for a number": ({**PATTERNS, "n_ctx": "abc"}, "n_ctx: expected a whole number", ["model.n_ctx=8"]),
    "nothing to read": ({**PATTERNS, "n_ctx": 0}, "n_ctx: expected a whole number", ["model.n_ctx=8"]),
    "datasets": ({**PATTERNS, "datasets": 5}, "datasets: expected a list", ["data.train=x"]),
    "decay": ({**PATTERNS, "lr_decay": "sudden"}, "lr_decay", ["train.schedule=cosine"]),
    "activation": (
        {**PATTERNS, "activation_fn": "geluu"},
        "activation_fn",
        ["model.activation_function=gelu"],
    ),
    "no mask": ({**PATTERNS, "mlm_training": True}, "mlm_mask_id", ["train.mlm_mask_id=3"]),
}
