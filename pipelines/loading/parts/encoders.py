"""Text encoders that ComfyUI's users have as files, and their tokenizers; CLIP's are in `clips`.

Sources of the configurations, all in agreement with what is here:
- edkamesh/FluX-optimized on GitHub, a copy of black-forest-labs/FLUX.1-schnell's configurations: T5-XXL.
- ComfyUI, `comfy/text_encoders/t5_config_xxl.json`, `umt5_config_xxl.json`, and the
  classes Qwen3_4BConfig, Qwen3_8BConfig, Qwen3VL_4BConfig and Qwen25_7BVLI_Config of
  `comfy/text_encoders/llama.py`, and what Qwen3-VL sees with in `comfy/text_encoders/qwen3vl.py`: the same sizes.
- transformers: what is left out here is its class's default, which the published configurations repeat.
Sizes that a file's shapes tell are taken from there or compared with it.
"""

from __future__ import annotations

from typing import Any

from .component import Component, Config, Shapes, Tokenizer, Weights, count_blocks

T5_XXL: Config = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}

UMT5_XXL: Config = {**T5_XXL, "vocab_size": 256384}

_QWEN: Config = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu"}

QWEN3_4B: Config = {
    **_QWEN,
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}

QWEN3_8B: Config = {
    **QWEN3_4B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}

QWEN25_VL_7B: Config = {
    "text_config": {
        **_QWEN,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
    },
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "tie_word_embeddings": False,
}

QWEN3_VL_4B: Config = {
    "text_config": {
        **{name: value for name, value in QWEN3_4B.items() if name not in ("tie_word_embeddings", "rope_theta")},
        "max_position_embeddings": 262144,
        "rope_theta": 5_000_000.0,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    "tie_word_embeddings": True,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's for what a pipeline sends: one message, without tools. The one that ComfyUI ships is Qwen2.5's, which puts a
system message before it."""

T5_TOKENIZER = Tokenizer("T5TokenizerFast", "comfy/text_encoders/t5_tokenizer", {"model_max_length": 512})
UMT5_TOKENIZER = Tokenizer("T5TokenizerFast", options={"model_max_length": 512}, inside="text_encoder")
QWEN_TOKENIZER = Tokenizer(
    "Qwen2TokenizerFast", "comfy/text_encoders/qwen25_tokenizer", {"chat_template": CHAT_TEMPLATE}
)

_INNER_HEAD = "model.lm_head.weight"
"""What ComfyUI calls the head of a language model where it has one of its own."""
_T5_BLOCK = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def _is_t5(shapes: Shapes) -> bool:
    return _T5_BLOCK.format(0) in shapes and _T5_BLOCK.format(1) not in shapes


def _is_umt5(shapes: Shapes) -> bool:
    return _T5_BLOCK.format(0) in shapes and _T5_BLOCK.format(1) in shapes


def _is_qwen3(shapes: Shapes) -> bool:
    others = ("visual.patch_embed.proj.weight", "model.layers.0.pre_feedforward_layernorm.weight")
    return "model.layers.0.self_attn.q_norm.weight" in shapes and not any(name in shapes for name in others)


def _is_qwen25_vl(shapes: Shapes) -> bool:
    return "model.layers.0.self_attn.q_proj.bias" in shapes and "visual.patch_embed.proj.weight" in shapes


def _is_qwen3_vl(shapes: Shapes) -> bool:
    return "model.visual.deepstack_merger_list.0.norm.weight" in shapes


def _rename_qwen3_vl(weights: Weights, config: Config) -> Weights:
    return {key.removeprefix("model."): value for key, value in weights.items() if key != "lm_head.weight"}


def _qwen25_vl_config(shapes: Shapes) -> Config:
    # A file without the head of the language model is whole: nothing asks for its words.
    return {**QWEN25_VL_7B, "tie_word_embeddings": "lm_head.weight" not in shapes}


def rename_t5(weights: Weights, config: Config) -> Weights:
    """T5's and UMT5's own names: the table of embeddings has two."""
    table = weights["shared.weight"] if "shared.weight" in weights else weights["encoder.embed_tokens.weight"]
    return {**weights, "shared.weight": table, "encoder.embed_tokens.weight": table}


def _rename_qwen3(weights: Weights, config: Config) -> Weights:
    return {key.removeprefix("model."): value for key, value in weights.items() if key != "lm_head.weight"}


def _causal_config(config: Config) -> Any:
    """Of a language model with its head: a file without it is whole, as nothing asks for its words."""
    heads = ("lm_head.weight", _INNER_HEAD)
    return lambda shapes: {**config, "tie_word_embeddings": not any(head in shapes for head in heads)}


def _rename_causal(weights: Weights, config: Config) -> Weights:
    head = weights.get(_INNER_HEAD, weights["model.embed_tokens.weight"])
    return {"lm_head.weight": head, **{key: value for key, value in weights.items() if key != _INNER_HEAD}}


def _rename_qwen25_vl(weights: Weights, config: Config) -> Weights:
    """The names of Qwen2.5-VL's first release; transformers moved both models a level down since."""
    renamed: Weights = {}
    for key, value in weights.items():
        if key.startswith("visual."):
            key = "model." + key
        elif key.startswith("model."):
            key = "model.language_model." + key.removeprefix("model.")
        renamed[key] = value
    if "lm_head.weight" not in renamed:
        renamed["lm_head.weight"] = renamed["model.language_model.embed_tokens.weight"]
    return renamed


def published(config: Config) -> Any:
    """A component's configuration where no shape tells any of it."""
    return lambda shapes: dict(config)


T5_ENCODER = Component(
    "transformers",
    "T5EncoderModel",
    "T5-XXL, usually t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn_scaled.safetensors",
    _is_t5,
    published(T5_XXL),
    rename_t5,
)
UMT5_ENCODER = Component(
    "transformers",
    "UMT5EncoderModel",
    "UMT5-XXL, usually umt5_xxl_fp8_e4m3fn_scaled.safetensors or umt5_xxl_fp16.safetensors",
    _is_umt5,
    published(UMT5_XXL),
    rename_t5,
)
QWEN3_ENCODER = Component(
    "transformers",
    "Qwen3Model",
    "Qwen3-4B, usually qwen_3_4b.safetensors",
    _is_qwen3,
    lambda shapes: {**QWEN3_4B, "num_hidden_layers": count_blocks(shapes, "model.layers.")},
    _rename_qwen3,
)
QWEN3_4B_CAUSAL = Component(
    "transformers",
    "Qwen3ForCausalLM",
    "Qwen3-4B, usually qwen_3_4b.safetensors",
    _is_qwen3,
    _causal_config(QWEN3_4B),
    _rename_causal,
)
QWEN3_8B_CAUSAL = Component(
    "transformers",
    "Qwen3ForCausalLM",
    "Qwen3-8B, usually qwen_3_8b.safetensors or qwen_3_8b_fp8mixed.safetensors",
    _is_qwen3,
    _causal_config(QWEN3_8B),
    _rename_causal,
)
QWEN25_VL_ENCODER = Component(
    "transformers",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2.5-VL-7B, usually qwen_2.5_vl_7b_fp8_scaled.safetensors or qwen_2.5_vl_7b.safetensors",
    _is_qwen25_vl,
    _qwen25_vl_config,
    _rename_qwen25_vl,
)
QWEN3_VL_4B_ENCODER = Component(
    "transformers",
    "Qwen3VLModel",
    "Qwen3-VL-4B, usually qwen3vl_4b_fp8_scaled.safetensors or qwen3vl_4b_bf16.safetensors",
    _is_qwen3_vl,
    published(QWEN3_VL_4B),
    _rename_qwen3_vl,
)
