"""Settings of diffusers and transformers that are supported in one way only, and those that change no image.

A fixed setting is in `JsonSettings.require`'s form: a value, or a tuple with all its spellings.
"""

from typing import Any

_SILU = ("silu", "swish", None)
UNET: dict[str, Any] = {
    "center_input_sample": False,
    # diffusers reads null as false.
    "flip_sin_to_cos": (True,),
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": _SILU,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "addition_embed_type": (None, "text_time", False, 0),
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "cross_attention_norm": None,
}
# What another value is a sign of.
UNET_MEANINGS = {
    "addition_embed_type": "as in Kandinsky",
    "num_class_embeds": "as in an upscaler",
    "class_embed_type": "as in unCLIP",
    "encoder_hid_dim": "as in Kolors, Kandinsky or DeepFloyd IF",
    "encoder_hid_dim_type": "as in Kolors, Kandinsky or DeepFloyd IF",
    "attention_type": "as in GLIGEN",
}
# Without an effect on images, or only together with a setting above.
UNET_UNREAD = (
    *("addition_embed_type_num_heads", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    *("dropout", "upcast_attention", "use_linear_projection", "mid_block_only_cross_attention"),
    # What training with averaged weights leaves.
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
)
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": _SILU,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": (None, 1),
    # diffusers reads null as false.
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}
VAE_MEANINGS = dict.fromkeys(("latents_mean", "latents_std"), "as in Playground v2.5")
TINY_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "upsampling_scaling_factor": 2,
    "upsample_fn": "nearest",
    "shift_factor": 0,
}
# The list is that of the decoder once more.
TINY_VAE_UNREAD = ("block_out_channels", "force_upcast")
VAE_UNREAD = ("sample_size", "force_upcast", "dropout")
TEXT_ENCODER: dict[str, Any] = {"layer_norm_eps": 1e-5}
# What transformers has written into every settings file, or still does.
TEXT_ENCODER_UNREAD = (
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "torchscript", "tokenizer_class"),
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range", "logit_scale_init_value"),
    *("projection_dim", "gradient_checkpointing", "use_cache", "use_bfloat16", "pruned_heads", "tf_legacy_loss"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "bad_words_ids"),
    *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "prefix"),
    *("is_decoder", "is_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size", "output_past"),
    *("tie_encoder_decoder", "tie_word_embeddings", "chunk_size_feed_forward", "finetuning_task", "problem_type"),
    *("id2label", "label2id", "task_specific_params", "output_attentions", "output_hidden_states", "output_scores"),
    *("return_dict", "return_dict_in_generate", "use_return_dict", "remove_invalid_values", "early_stopping"),
    *("do_sample", "max_length", "min_length", "num_beams", "num_beam_groups", "num_return_sequences"),
    *("diversity_penalty", "length_penalty", "repetition_penalty", "exponential_decay_length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "temperature", "top_k", "top_p", "typical_p"),
)
