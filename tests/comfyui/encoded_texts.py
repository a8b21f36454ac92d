"""Tiny pipelines with the published vocabularies, as diffusers folders with and without text encoders, and the same
text encoders as the files that ComfyUI's own classes read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece_model import TOKENS, sentencepiece_model

sys.path += [str(Path(__file__).parents[1] / "unit" / place) for place in ("pipelines", "modular")]

CLIP_VOCABULARY, T5_VOCABULARY, QWEN_VOCABULARY = 49408, 32128, 151936
SMALL_T5 = 2000
"""Tokens of the T5 of SD 3, whose width is fixed: those of common words come first."""
HEAD = 128
"""Size of Qwen's heads in ComfyUI's classes."""
Made = tuple[Any, dict[str, tuple[Any, dict[str, Any]]]]
"""A pipeline, or the class and the components of a modular one; and of each encoder in ComfyUI's class its network and
the sizes that differ from the published."""


def _clip(projection: bool = False, act: str = "quick_gelu") -> tuple[Any, dict[str, Any]]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPTextConfig(
        **sizes,
        vocab_size=CLIP_VOCABULARY,
        projection_dim=32,
        hidden_act=act,
        eos_token_id=2,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval(), sizes


def _t5(width: int = 32, vocabulary: int = T5_VOCABULARY) -> tuple[Any, dict[str, Any]]:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": vocabulary}
    config = T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return T5EncoderModel(config).eval(), sizes


def _tokenizers(comfyui: Path, *kinds: str) -> dict[str, Any]:
    """The tokenizers that ComfyUI ships, in the order of the encoders."""
    from transformers import CLIPTokenizer, T5TokenizerFast

    made = {}
    for number, kind in enumerate(kinds, 1):
        name = "tokenizer" if number == 1 else f"tokenizer_{number}"
        if kind == "t5":
            place = comfyui / "comfy/text_encoders/t5_tokenizer"
            made[name] = T5TokenizerFast.from_pretrained(place, model_max_length=512)
        else:
            pad = "!" if kind == "g" else "<|endoftext|>"
            place = comfyui / "comfy/sd1_tokenizer"
            made[name] = CLIPTokenizer.from_pretrained(place, model_max_length=77, pad_token=pad)
    return made


def _qwen_tokenizer(comfyui: Path) -> Any:
    from fastdiffusers.pipelines.loading.parts.encoders import QWEN_TOKENIZER
    from fastdiffusers.pipelines.loading.parts.read import read_tokenizer

    return read_tokenizer("tokenizer", QWEN_TOKENIZER, Path("none.safetensors"), str(comfyui), {})


def flux(comfyui: Path) -> Made:
    from fastdiffusers.pipelines import tiny

    pipeline: Any = tiny.build("flux-random")
    clip, t5 = _clip(), _t5()
    pipeline.register_modules(text_encoder=clip[0], text_encoder_2=t5[0], **_tokenizers(comfyui, "l", "t5"))
    return pipeline, {"clip_l": clip, "t5xxl": t5}


def sdxl(comfyui: Path) -> Made:
    from fastdiffusers.pipelines import tiny

    pipeline: Any = tiny.build("sdxl")
    left, right = _clip(), _clip(projection=True, act="gelu")
    pipeline.register_modules(text_encoder=left[0], text_encoder_2=right[0], **_tokenizers(comfyui, "l", "g"))
    return pipeline, {"clip_l": left, "clip_g": right}


def sd15(comfyui: Path) -> Made:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from fastdiffusers.pipelines.tiny.components import image_vae

    clip = _clip()
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=32,
    )
    pipeline = StableDiffusionPipeline(
        vae=image_vae(4, 0.18215, quant=True),
        text_encoder=clip[0],
        unet=unet.eval(),
        scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_tokenizers(comfyui, "l"),
    )
    return pipeline, {"clip_l": clip}


def sd3(comfyui: Path) -> Made:
    """ComfyUI fills what both CLIPs give up to 4096, T5-XXL's width, so this one has that width."""
    from diffusers import SD3Transformer2DModel

    from fastdiffusers.pipelines import tiny

    pipeline: Any = tiny.build("sd3")
    left, right, t5 = _clip(projection=True), _clip(projection=True, act="gelu"), _t5(4096, SMALL_T5)
    # CLIP-L's pooled output is not projected there.
    left[0].text_projection.weight.data = torch.eye(32)
    config = {**pipeline.transformer.config, "joint_attention_dim": 4096, "pooled_projection_dim": 64}
    encoders = {"text_encoder": left[0], "text_encoder_2": right[0], "text_encoder_3": t5[0]}
    tokenizers = _tokenizers(comfyui, "l", "g", "t5")
    pipeline.register_modules(transformer=SD3Transformer2DModel.from_config(config).eval(), **encoders, **tokenizers)
    return pipeline, {"clip_l": left, "clip_g": right, "t5xxl": t5}


def zimage(comfyui: Path) -> Made:
    from transformers import Qwen3Config, Qwen3Model

    from fastdiffusers.pipelines import tiny

    pipeline: Any = tiny.build("zimage")
    sizes = {"vocab_size": QWEN_VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen3Model(Qwen3Config(**sizes, head_dim=HEAD, rope_theta=1e6, initializer_range=0.1)).eval()
    pipeline.register_modules(text_encoder=model, tokenizer=_qwen_tokenizer(comfyui))
    return pipeline, {"qwen3_4b": (model, sizes)}


def qwenimage(comfyui: Path) -> Made:
    from diffusers import QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from fastdiffusers.pipelines import tiny

    pipeline: Any = tiny.build("qwenimage")
    sizes: dict[str, Any] = {"vocab_size": QWEN_VOCABULARY, "hidden_size": HEAD, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    rope = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": HEAD}
    config = Qwen2_5_VLConfig(text_config={**sizes, **rope, "initializer_range": 0.1}, vision_config=vision)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    transformer = {**pipeline.transformer.config, "joint_attention_dim": HEAD}
    pipeline.register_modules(
        text_encoder=model,
        tokenizer=_qwen_tokenizer(comfyui),
        transformer=QwenImageTransformer2DModel.from_config(transformer).eval(),
    )
    return pipeline, {"qwen25_7b": (model, sizes)}


def wan(comfyui: Path) -> Made:
    from transformers import UMT5Config, UMT5EncoderModel

    from fastdiffusers.pipelines import tiny

    pipeline: Any = tiny.build("wan22-t2v")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": TOKENS}
    model = UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)).eval()
    model.spiece_model = torch.tensor(list(sentencepiece_model()), dtype=torch.uint8)
    pipeline.register_modules(text_encoder=model)
    return pipeline, {"umt5xxl": (model, sizes)}


def flux2_klein(comfyui: Path) -> Made:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from fastdiffusers.pipelines import tiny

    pipeline: Any = tiny.build("flux2-klein")
    sizes = {"vocab_size": QWEN_VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 28}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(**sizes, head_dim=HEAD, rope_theta=1e6, initializer_range=0.1, tie_word_embeddings=True)
    model = Qwen3ForCausalLM(config).eval()
    pipeline.register_modules(text_encoder=model, tokenizer=_qwen_tokenizer(comfyui))
    return pipeline, {"qwen3_4b": (model, sizes)}


def chroma(comfyui: Path) -> Made:
    from further_parts import chroma as build

    pipeline, t5 = build(), _t5()
    pipeline.register_modules(text_encoder=t5[0], **_tokenizers(comfyui, "t5"))
    return pipeline, {"t5xxl": t5}


def krea2(comfyui: Path) -> Made:
    from further_parts import krea2 as build
    from transformers import Qwen3VLModel

    pipeline = build()
    sizes: dict[str, Any] = {"vocab_size": QWEN_VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 36, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = pipeline.text_encoder.config
    rope = {**config.text_config.rope_parameters, "mrope_section": [24, 20, 20]}
    for name, value in {**sizes, "head_dim": HEAD, "rope_parameters": rope}.items():
        setattr(config.text_config, name, value)
    model = Qwen3VLModel(config).eval()
    pipeline.register_modules(text_encoder=model, tokenizer=_qwen_tokenizer(comfyui))
    return pipeline, {"qwen3vl_4b": (model, sizes)}


def anima(comfyui: Path) -> Made:
    """The network that reads T5's tokens has as many of them as are published."""
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
    from transformers import Qwen3Config, Qwen3Model

    from fastdiffusers.benchmarks.coverage.sources.modular_parts import prepared

    name, parts = prepared("anima")
    sizes = {"vocab_size": QWEN_VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen3Model(Qwen3Config(**sizes, head_dim=HEAD, rope_theta=1e6, initializer_range=0.1)).eval()
    config = {**parts["text_conditioner"].config, "target_vocab_size": T5_VOCABULARY, "min_sequence_length": 512}
    conditioner = AnimaTextConditioner.from_config(config).eval()
    own = {"text_encoder": model, "tokenizer": _qwen_tokenizer(comfyui), "text_conditioner": conditioner}
    own["t5_tokenizer"] = _tokenizers(comfyui, "t5")["tokenizer"]
    return (name, parts | own), {"qwen3_06b": (model, sizes)}


def minimax_h3(comfyui: Path) -> Made:
    """ComfyUI's file ends with the layer that is read; transformers' model has more."""
    from transformers import Qwen3VLForConditionalGeneration

    from fastdiffusers.pipelines import tiny
    from fastdiffusers.pipelines.tiny.components import qwen3_vl_processor

    pipeline: Any = tiny.build("minimax-h3")
    sizes: dict[str, Any] = {"vocab_size": QWEN_VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = pipeline.text_encoder.config
    rope = {**config.text_config.rope_parameters, "mrope_section": [24, 20, 20], "rope_theta": 5e6}
    for name, value in {**sizes, "head_dim": HEAD, "rope_parameters": rope, "num_hidden_layers": 51}.items():
        setattr(config.text_config, name, value)
    model = Qwen3VLForConditionalGeneration(config).eval()
    tokenizer = _qwen_tokenizer(comfyui)
    own = {"text_encoder": model, "tokenizer": tokenizer, "processor": qwen3_vl_processor(tokenizer)}
    return ("MiniMaxH3ModularPipeline", pipeline.components | own), {"qwen3vl_32b": (model, sizes)}


def ltx2(comfyui: Path) -> Made:
    """Its Gemma is the pipeline's own on both sides."""
    from fastdiffusers.pipelines import tiny

    return tiny.build("ltx2-t2v"), {}


def ltx23(comfyui: Path) -> Made:
    from further_parts import ltx23 as build

    return build(), {}


FAMILIES = {
    "ltx2": ltx2,
    "ltx23": ltx23,
    "anima": anima,
    "minimax-h3": minimax_h3,
    "chroma": chroma,
    "krea2": krea2,
    "flux": flux,
    "flux2-klein": flux2_klein,
    "sdxl": sdxl,
    "sd15": sd15,
    "sd3": sd3,
    "qwenimage": qwenimage,
    "zimage": zimage,
    "wan": wan,
}


def in_comfyuis_names(name: str, model: Any) -> dict[str, torch.Tensor]:
    """The weights of a text encoder under the names of ComfyUI's files."""
    state = dict(model.state_dict())
    if name.startswith("clip"):
        named = {key: key if key.startswith("text_") else f"text_model.{key}" for key in state}
        return {named[key]: value for key, value in state.items()} | {
            "text_projection.weight": state.get("text_projection.weight", torch.eye(32))
        }
    if name == "qwen3_4b":
        inner = {key.removeprefix("model."): value for key, value in state.items() if key != "lm_head.weight"}
        return {f"model.{key}": value for key, value in inner.items()}
    if name == "qwen3_06b":
        return {f"model.{key}": value for key, value in state.items()}
    if name == "qwen3vl_32b":
        state = {key: value for key, value in state.items() if ".layers.50." not in key and "_model.norm" not in key}
    if name in ("qwen25_7b", "qwen3vl_4b", "qwen3vl_32b"):
        beginning = "language_model." if name == "qwen3vl_4b" else "model.language_model."
        return {"model." + key.removeprefix(beginning): value for key, value in state.items() if beginning in key}
    held = {"spiece_model": model.spiece_model} if hasattr(model, "spiece_model") else {}
    return {key: value for key, value in state.items() if key != "encoder.embed_tokens.weight"} | held


def write(family: str, comfyui: Path, models: Path, place: Path) -> None:
    """Write the folders `encoded-<family>-whole` and `-bare`, without text encoders, and ComfyUI's files to `place`."""
    from transformers import T5TokenizerFast

    torch.manual_seed(5)
    pipeline, encoders = FAMILIES[family](comfyui)
    place.mkdir(parents=True, exist_ok=True)
    for name, (model, _) in encoders.items():
        tensors = {key: value.contiguous().clone() for key, value in in_comfyuis_names(name, model).items()}
        save_file(tensors, place / f"{name}.safetensors")
    sizes = {name: changed for name, (_, changed) in encoders.items()}
    (place / "encoder.json").write_text(json.dumps({"family": family, "encoders": sizes}))
    if family in ("ltx2", "ltx23"):
        pipeline.text_encoder.save_pretrained(place / "gemma")
        pipeline.tokenizer.save_pretrained(place / "gemma")
        state = pipeline.connectors.state_dict()
        named = {
            key.removeprefix("text_proj_in.").replace("_text_proj_in", "_aggregate_embed"): value.clone()
            for key, value in state.items()
            if "text_proj_in" in key
        }
        save_file(named, place / "text_embedding_projection.safetensors")
    if family == "wan":
        (place / "spiece.model").write_bytes(bytes(encoders["umt5xxl"][0].spiece_model.tolist()))
        tokenizer = T5TokenizerFast.from_pretrained(place, local_files_only=True, extra_ids=0, model_max_length=512)
        pipeline.register_modules(tokenizer=tokenizer)
    whole = models / "diffusers" / f"encoded-{family}-whole"
    if isinstance(pipeline, tuple):
        _write_modular(*pipeline, whole, models / "diffusers" / f"encoded-{family}-bare")
        return
    pipeline.save_pretrained(whole)
    absent = [name for name in pipeline.components if name.startswith(("text_encoder", "tokenizer"))]
    pipeline.register_modules(**dict.fromkeys(absent))
    pipeline.save_pretrained(models / "diffusers" / f"encoded-{family}-bare")


def _write_modular(class_name: str, parts: dict[str, Any], whole: Path, bare: Path) -> None:
    import diffusers
    from modular_twins import save

    from fastdiffusers.pipelines.modular.blocks import blocks_of, text_components

    own: Any = getattr(diffusers, class_name)
    save(own(), parts, whole)
    absent = text_components(blocks_of(own))
    save(own(), {name: part for name, part in parts.items() if name not in absent}, bare)
