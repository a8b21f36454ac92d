"""What the embedded tiny pipelines are made of: real text encoders, VAEs and schedulers, a few layers deep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tokenizers import CHAT_TEMPLATE, CLIP_TOKENS, CLIP_VOCABULARY, QWEN_SPECIALS, QWEN_VOCABULARY, T5_VOCABULARY

if TYPE_CHECKING:
    import torch

WIDTH = 32
"""Hidden size of every text encoder here."""

# What the real checkpoints ship. The Wan and Qwen means and deviations are the VAE classes' own defaults.
FLUX_SCALING, FLUX_SHIFT = 0.3611, 0.1159
SD3_SCALING, SD3_SHIFT = 1.5305, 0.0609
SDXL_SCALING = 0.13025


# --- text encoders ----------------------------------------------------------------------------------------------------


def clip_encoder(projection: bool = False) -> Any:
    """CLIP's text model; with its projection, as SDXL's second encoder and SD3 have it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=CLIP_VOCABULARY - 2,
        eos_token_id=CLIP_VOCABULARY - 1,
        pad_token_id=CLIP_VOCABULARY - 1,
        hidden_act="gelu" if projection else "quick_gelu",
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _t5_sizes(width: int = WIDTH) -> dict[str, Any]:
    return {
        "vocab_size": T5_VOCABULARY,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * WIDTH,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def t5_encoder(width: int = WIDTH) -> Any:
    """T5's encoder, with hidden size `width`."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_t5_sizes(width)))


def umt5_encoder() -> Any:
    """UMT5's encoder, as Wan has it."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**_t5_sizes()))


def _qwen_sizes(layers: int = 3) -> dict[str, Any]:
    return {
        "vocab_size": QWEN_VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
    }


_QWEN_ENDS: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 256)


def _vision_sizes(depth: int) -> dict[str, Any]:
    return {
        "depth": depth,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
    }


def _vision_tokens() -> dict[str, Any]:
    """Of a model that reads pictures: where our vocabulary has its special tokens."""
    token = {name: 256 + index for index, name in enumerate(QWEN_SPECIALS)}
    return {
        "image_token_id": token["<|image_pad|>"],
        "video_token_id": token["<|video_pad|>"],
        "vision_start_token_id": token["<|vision_start|>"],
        "vision_end_token_id": token["<|vision_end|>"],
    }


def qwen3_encoder(layers: int, causal: bool) -> Any:
    """Qwen3 with `layers` layers, with or without its language-model head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(**_qwen_sizes(layers), **_QWEN_ENDS, head_dim=8)
    return Qwen3ForCausalLM(config) if causal else Qwen3Model(config)


def qwen25_vl_encoder() -> Any:
    """Qwen2.5-VL: language and vision model, with the special tokens where our vocabulary has them."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            **_qwen_sizes(),
            **_QWEN_ENDS,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "rope_theta": 1_000_000.0,
        },
        vision_config={**_vision_sizes(2), "fullatt_block_indexes": [1], "initializer_range": 0.1},
        **_vision_tokens(),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen_processor(tokenizer: Any) -> Any:
    """What turns a chat with pictures into Qwen2.5-VL's inputs."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    # At most 64 patches of 14 x 14 a picture: the real encoder reads about a megapixel, the tiny one need not.
    sizes: dict[str, Any] = {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def qwen3_vl_encoder(layers: int, whole: bool = True) -> Any:
    """Qwen3-VL with `layers` layers, as language model with vision or as the plain model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

    config = Qwen3VLConfig(
        text_config={
            **_qwen_sizes(layers),
            "head_dim": 8,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        },
        vision_config={**_vision_sizes(1), "deepstack_visual_indexes": [0]},
        **_vision_tokens(),
    )
    return Qwen3VLForConditionalGeneration(config) if whole else Qwen3VLModel(config)


def qwen3_vl_processor(tokenizer: Any) -> Any:
    """What turns a chat with pictures into Qwen3-VL's inputs."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    sizes: dict[str, Any] = {"size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 32 * 32}}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, **sizes),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


# --- VAEs -------------------------------------------------------------------------------------------------------------


def image_vae(latent_channels: int, scaling: float, shift: float | None = None, quant: bool = False) -> Any:
    """An `AutoencoderKL` with eight-fold reduction; `quant` is SDXL's kind, which overflows in float16."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=latent_channels,
        sample_size=1024,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        force_upcast=quant,
    )
    add_contrast(vae.decoder.conv_out)
    return vae


def flux2_vae() -> Any:
    """Flux.2's VAE: its latents are normalised in 2 x 2 patches."""
    from diffusers import AutoencoderKLFlux2

    vae: Any = AutoencoderKLFlux2(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=1)
    # Statistics that are not 0 and 1, or a test could not tell which side applies them.
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    add_contrast(vae.decoder.conv_out)
    return vae


def wan_vae() -> Any:
    """Wan 2.1's causal video VAE, with the real means and deviations."""
    from diffusers import AutoencoderKLWan

    vae: Any = AutoencoderKLWan(base_dim=4, num_res_blocks=1)
    add_contrast(vae.decoder.conv_out)
    return vae


def qwen_vae() -> Any:
    """Qwen-Image's VAE: Wan's, for pictures."""
    from diffusers import AutoencoderKLQwenImage

    vae: Any = AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1)
    add_contrast(vae.decoder.conv_out)
    return vae


def add_contrast(conv_out: torch.nn.Module) -> None:
    """A random decoder paints almost uniform grey; a stronger last layer makes differences visible."""
    for parameter in conv_out.parameters():
        parameter.data.mul_(2.0)


# --- schedulers -------------------------------------------------------------------------------------------------------


def flow_euler(**config: Any) -> Any:
    """The Euler scheduler of the flow models."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def dynamic_flow_euler(**config: Any) -> Any:
    """The same, with timesteps shifted by the number of image tokens (Flux, Qwen-Image)."""
    return flow_euler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, **config)


def wan_scheduler() -> Any:
    """UniPC in its flow form, as Wan ships it."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
