"""The keys of GPT-NeoX that are not translated: those with nothing to set here, and why; those that are
refused where they are on, since the model or its training would be another.

Facts: `megatron/neox_arguments/` of GPT-NeoX, at its head and at v1.0.
"""

from fnmatch import fnmatchcase

from neojax.convert.neox_refusals import REFUSED

GROUPS = ("optimizer", "optimizer.params", "zero_optimization", "fp16", "bf16", "sparsity_config")
"""Keys with keys in them that are read; those of other groups are taken or refused as a whole."""

_READ = """
    num_layers hidden_size num_attention_heads max_position_embeddings seq_length intermediate_size
    expansion_factor mlp_multiple_of norm layernorm_epsilon pos_emb rotary_pct rotary_emb_base
    no_weight_tying gpt_j_residual gpt_j_tied attention_config sliding_window_width activation
    bias_gelu_fusion use_bias_in_attn_linear use_bias_in_mlp hidden_dropout attention_dropout
    init_method output_layer_init_method init_method_std make_vocab_size_divisible_by num_kv_heads
    rms_norm_epsilon sparsity_config.block sparsity_config.num_local_blocks
    sparsity_config.num_sliding_window_blocks pipe_parallel_size model_parallel_size train_batch_size
    train_micro_batch_size_per_gpu gradient_accumulation_steps global_num_gpus num_gpus num_nodes
    zero_optimization.stage checkpoint_activations fp16.enabled fp16.type bf16.enabled precision
    optimizer.type optimizer.params.lr optimizer.params.betas optimizer.params.eps
    optimizer.params.bias_correction weight_decay gradient_clipping lr_decay_style lr_decay_iters
    lr_decay_fraction min_lr warmup train_iters data_path split train_data_paths valid_data_paths
    train_data_weights tokenizer_type vocab_file merge_file seed save load finetune checkpoint_factor
    checkpoint_scale extra_save_iters keep_last_n_checkpoints eval_interval eval_iters log_interval
"""
TRANSLATED = tuple(_READ.split())

IGNORED = {
    "neojax chooses its kernels": """
        scaled_upper_triang_masked_softmax_fusion scaled_masked_softmax_fusion bias_dropout_fusion rope_fusion
        layernorm_fusion rmsnorm_fusion use_flashattn_swiglu attention_softmax_in_fp32
        apply_query_key_layer_scaling fp16_lm_cross_entropy""",
    "JAX finds processes and devices": """
        distributed_backend hostfile launcher include exclude master_addr master_port force_multi no_ssh_check
        comment detect_nvlink_pairs deepspeed deepspeed_* deepscale deepscale_config user_script local_rank
        rank world_size lazy_mpu_init use_cpu_initialization autotuning autotuning_* onnx_safe dump_state
        adlr_autoresume* exit_interval""",
    "the mesh says how memory and work are split": """
        zero_optimization.* zero_* partition_activations synchronize_each_layer checkpoint_num_layers
        checkpoint_in_cpu contiguous_checkpointing activation_checkpointing output_layer_parallelism
        pipe_partition_method sequence_parallel is_pipe_parallel""",
    "bfloat16 needs no loss scaling, and sums are float32": """
        fp16.* bf16.* hysteresis loss_scale loss_scale_window min_scale dynamic_loss_scale fp32_allreduce
        prescale_gradients gradient_predivide_factor sparse_gradients communication_data_type data_types""",
    "RUN/metrics.jsonl and RUN/tensorboard hold what is logged": """
        wandb* use_wandb comet* use_comet tensorboard* csv_monitor log_* steps_per_print wall_clock_breakdown
        memory_profiling* gradient_noise_scale_* flops_profiler comms_logger char_level_ppl git_hash""",
    "train.profile_steps asks for a trace": "profile profile_*",
    "the data needs no hints": """
        num_workers mmap_warmup use_shared_fs short_seq_prob allow_chopped weighted_sampler_alpha
        weighted_document_limit""",
    "every validation source is read by itself": "valid_data_weights",
    "there is no test set": "test_data_paths test_data_weights",
    "sample.py has flags for it": """
        text_gen_type maximum_tokens temperature top_k top_p num_samples sample_input_file sample_output_file
        prompt_end recompute return_logits precompute_model_name""",
    "no run reads it": "eval_tasks eval_results_prefix",
    "checkpoints hold all of a run": """
        no_save_optim no_save_rng no_load_optim no_load_rng checkpoint load_universal s3_path s3_chunk_size
        checkpoint_validation_with_forward_pass override_lr_scheduler use_checkpoint_lr_scheduler
        rotary_save_freqs_buffer""",
    "GPT-NeoX does not read it, or derives it": """
        use_bias_in_norms num_unique_layers param_sharing_style optimizer_type lr batch_size clip_grad
        padded_vocab_size config_files iteration do_train do_valid do_test gas save_iters save_interval
        zero_allow_untested_optimizer""",
    "it is of a part that this model has not": """
        scalenorm_epsilon rpe_num_buckets rpe_max_distance opt_pos_emb_offset gmlp_attn_dim mamba_* dim_att
        head_size ffn_dim expert_interval moe_* use_tutel create_moe_param_group mup_* coord_check
        save_base_shapes base_shapes_file enable_expert_tensor_parallelism dpo_* kto_* z_loss
        sparsity_config.*""",
}
_REASONS = {pattern: reason for reason, words in IGNORED.items() for pattern in words.split()}
_PATTERNS = [pattern for pattern in _REASONS if "*" in pattern]

KNOWN = [*TRANSLATED, *REFUSED, *(key for key in _REASONS if key not in _PATTERNS)]
"""Every name, but for those that only a pattern covers."""


def reason_of(key: str) -> str | None:
    """Why `key` has nothing to set here; None for one that is not among the ignored."""
    if key in _REASONS:
        return _REASONS[key]
    pattern = next((pattern for pattern in _PATTERNS if fnmatchcase(key, pattern)), None)
    return None if pattern is None else _REASONS[pattern]


def is_known(key: str) -> bool:
    """Whether GPT-NeoX has `key`."""
    return key in KNOWN or key in GROUPS or reason_of(key) is not None
