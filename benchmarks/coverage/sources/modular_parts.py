"""Components of small models with random weights that diffusers has in modular form alone, or first."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ....pipelines.tiny.components import (
    WIDTH,
    dynamic_flow_euler,
    flow_euler,
    qwen3_encoder,
    qwen3_vl_encoder,
    qwen3_vl_processor,
    qwen_vae,
    umt5_encoder,
    wan_vae,
)
from ....pipelines.tiny.tokenizers import qwen_tokenizer, t5_tokenizer


def _krea2() -> tuple[str, dict[str, Any]]:
    import diffusers

    transformer = diffusers.Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=12,
        text_num_attention_heads=4,
        text_num_key_value_heads=4,
        text_intermediate_size=64,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    parts = {"text_encoder": qwen3_vl_encoder(36, whole=False), "tokenizer": qwen_tokenizer(), "vae": qwen_vae()}
    return "Krea2ModularPipeline", parts | {"transformer": transformer, "scheduler": dynamic_flow_euler(shift=1.0)}


def _anima() -> tuple[str, dict[str, Any]]:
    import diffusers
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner

    transformer = diffusers.CosmosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
    )
    conditioner = AnimaTextConditioner(
        source_dim=WIDTH,
        target_dim=WIDTH,
        model_dim=WIDTH,
        num_layers=1,
        num_attention_heads=4,
        target_vocab_size=len(t5_tokenizer()),
        min_sequence_length=16,
    )
    return "AnimaModularPipeline", {
        "text_encoder": qwen3_encoder(layers=2, causal=False),
        "tokenizer": qwen_tokenizer(),
        "t5_tokenizer": t5_tokenizer(),
        "text_conditioner": conditioner,
        "transformer": transformer,
        "scheduler": flow_euler(shift=3.0),
        "vae": qwen_vae(),
    }


def _qwenimage21() -> tuple[str, dict[str, Any]]:
    import diffusers

    transformer = diffusers.QwenImage21Transformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=WIDTH, axes_dims_rope=(4, 6, 6)
    )
    vae = diffusers.AutoencoderKLQwenImage21(base_dim=4, decoder_base_dim=4, num_res_blocks=1)
    tokenizer = qwen_tokenizer()
    return "QwenImage21ModularPipeline", {
        "text_encoder": qwen3_vl_encoder(3),
        "processor": qwen3_vl_processor(tokenizer),
        "vae": vae,
        "transformer": transformer,
        "scheduler": dynamic_flow_euler(shift=1.0),
    }


def _wan_animate_2() -> tuple[str, dict[str, Any]]:
    import diffusers
    import transformers

    transformer = diffusers.WanAnimate2Transformer3DModel(
        text_len=16, dim=24, ffn_dim=32, freq_dim=16, text_dim=WIDTH, num_heads=2, num_layers=2
    )
    config = transformers.CLIPVisionConfig(
        hidden_size=1280,  # which the transformer counts on
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=56,
    )
    return "WanAnimate2ModularPipeline", {
        "text_encoder": umt5_encoder(),
        "tokenizer": t5_tokenizer(),
        "image_encoder": transformers.CLIPVisionModel(config),
        "vae": wan_vae(),
        "transformer": transformer,
        # Its blocks give every step a generator, which Wan's own scheduler does not take.
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ),
    }


_MAKERS: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "krea2": _krea2,
    "anima": _anima,
    "qwenimage21": _qwenimage21,
    "wananimate2": _wan_animate_2,
}
PREPARED = tuple(_MAKERS)
"""Names of the models."""


def prepared(name: str) -> tuple[str, dict[str, Any]]:
    """(class of the modular pipeline, its components by name), the same weights every time.

    Args:
        name: one of `PREPARED`.
    """
    return _seeded(_MAKERS[name], name)


def _seeded(make: Callable[[], Any], name: str = "") -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        made = make()
        parts = made[1].values() if isinstance(made, tuple) else [made]
        for part in parts:
            for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
                # What is left at zero or unset, so that no part of a model is switched off.
                if not parameter.data.any() or not parameter.data.isfinite().all():
                    parameter.data.normal_(std=0.02)
    return made


def fitted(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The components and settings that a class needs and that those of its classical twin are not.

    Args:
        name: of a modular class.
        given: the classical twin's components by name.
    """
    return {part: make(given) for part, make in _FITTED.get(name, {}).items()}


def _helios(kind: str) -> Callable[[dict[str, Any]], Any]:
    """With the default gamma of a third the noise of four neighbours has a covariance of rank three, whose Cholesky
    factor is a matter of rounding."""

    def make(given: dict[str, Any]) -> Any:
        import diffusers

        return getattr(diffusers, kind)(gamma=0.3)

    return make


def _another_transformer(name: str = "", **changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Of the twin's class and configuration, with weights of its own."""

    def make(given: dict[str, Any]) -> Any:
        transformer = given["transformer"]
        return _seeded(lambda: type(transformer).from_config(transformer.config, **changes), name)

    return make


def _flow_euler(given: dict[str, Any]) -> Any:
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler()


_FITTED: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {
    "HeliosPyramidModularPipeline": {"scheduler": _helios("HeliosScheduler")},
    "HeliosPyramidDistilledModularPipeline": {"scheduler": _helios("HeliosDMDScheduler")},
    "Cosmos3DistilledModularPipeline": {"distilled_sigmas": lambda given: [1.0, 0.5], "scheduler": _flow_euler},
    "Flux3DistilledModularPipeline": {"transformer": _another_transformer(flow_map=True)},
    "Wan22VaceModularPipeline": {"transformer_2": _another_transformer("Wan22VaceModularPipeline")},
    "LTX25ModularPipeline": {"diffusion_decoder": lambda given: _seeded(partial(_diffusion_decoder, given["vae"]))},
}
"""Modular class -> component or setting of its index -> what makes it of the classical twin's components."""


def _diffusion_decoder(vae: Any) -> Any:
    import diffusers

    channels, kernel = (64, 32, 16, 16, 8), (1, 2, 2)
    return diffusers.LTX2VideoDiffusionDecoderModel(
        latent_channels=vae.config.latent_channels,
        decoder_head_dim=8,
        decoder_stage_channels=channels,
        decoder_stage_depths=(1,) * len(channels),
        decoder_stage_kernels=(kernel,) * 4,
        decoder_stage5_kernel=kernel,
        decoder_t_emb_dim=32,
    )
