"""Tiny twins of diffusers' pipeline classes, made offline from the classes' own signatures.

The embedded families first; then every class that takes the very components of one of them; then what can be put
together from the types in a class's signature: text encoders and tokenizers of the embedded families, and small models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import torch

from ....errors import first_line
from ....pipelines import tiny
from ....pipelines.classes.scheduling import scheduler_use
from ....pipelines.tiny import components, tokenizers
from ....pipelines.tiny.build import PIPELINE_CLASSES
from ..cases import Case, NotBuilt, pipeline_classes, takes
from .shrink import shrunk

NAME = "twins"
EDGE = 64
"""Width and height of what is made, in pixels."""


def _of(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import diffusers

        return getattr(diffusers, name)(**settings)

    return make


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BY_TYPE: Mapping[str, Callable[[], Any]] = {
    "AutoencoderKLWan": components.wan_vae,
    "AutoencoderKLQwenImage": components.qwen_vae,
    "AutoencoderKLFlux2": components.flux2_vae,
    "CLIPTextModel": components.clip_encoder,
    "CLIPTextModelWithProjection": lambda: components.clip_encoder(projection=True),
    "CLIPTokenizer": tokenizers.clip_tokenizer,
    "T5EncoderModel": components.t5_encoder,
    "UMT5EncoderModel": components.umt5_encoder,
    "T5Tokenizer": tokenizers.t5_tokenizer,
    "AutoTokenizer": tokenizers.t5_tokenizer,
    "GemmaTokenizer": tokenizers.gemma_tokenizer,
    "Qwen2Tokenizer": tokenizers.qwen_tokenizer,
    "Qwen2_5_VLForConditionalGeneration": components.qwen25_vl_encoder,
    "Qwen2VLProcessor": lambda: components.qwen_processor(tokenizers.qwen_tokenizer()),
    "Qwen3ForCausalLM": lambda: components.qwen3_encoder(2, causal=True),
    "Qwen3Model": lambda: components.qwen3_encoder(2, causal=False),
    "CLIPImageProcessor": lambda: _transformers("CLIPImageProcessor", size=30, crop_size=30),
    "CLIPVisionModelWithProjection": lambda: _vision("CLIPVisionModelWithProjection"),
    "CLIPVisionModel": lambda: _vision("CLIPVisionModel"),
    "KarrasDiffusionSchedulers": _of("DDIMScheduler", clip_sample=False, set_alpha_to_one=False, **BETAS),
    "DDIMScheduler": _of("DDIMScheduler", clip_sample=False, set_alpha_to_one=False, **BETAS),
    "UNet2DConditionModel": lambda: _unet("UNet2DConditionModel"),
    "ControlNetModel": lambda: _controlnet(),
    "MotionAdapter": _of(
        "MotionAdapter",
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    ),
    "T2IAdapter": _of("T2IAdapter", in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=8),
}
"""Class of a component -> what makes a small one. What is not here is shrunk from its constructor's defaults."""


def _transformers(name: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**settings)


def _vision(name: str) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
    }
    config = transformers.CLIPVisionConfig(image_size=30, patch_size=2, projection_dim=components.WIDTH, **sizes)
    return getattr(transformers, name)(config)


_UNET = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": components.WIDTH,
}


def _unet(name: str, **changes: Any) -> Any:
    ends = {"sample_size": EDGE // 8, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return _of(name, **{**_UNET, **ends, **changes})()


def _controlnet() -> Any:
    return _of("ControlNetModel", conditioning_embedding_out_channels=(8, 8, 16, 16), **_UNET)()


@lru_cache(maxsize=1)
def _embedded() -> dict[str, str]:
    """Pipeline class -> the embedded family of it."""
    return {name: family for family, name in PIPELINE_CLASSES.items()}


def cases() -> Iterator[Case | NotBuilt]:
    """One case for every class of the installed diffusers."""
    for name, pipeline_class in pipeline_classes().items():
        try:
            build = _builder(name, pipeline_class)
        except Exception as error:  # noqa: BLE001 - whatever a class objects to
            yield NotBuilt(name, name, NAME, first_line(error)[:200])
            continue
        yield Case(name, name, NAME, partial(_ready, build), partial(inputs, pipeline_class))


def _ready(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = build()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _builder(name: str, pipeline_class: Any) -> Callable[[], Any]:
    if name in _embedded():
        return partial(tiny.build, _embedded()[name])
    for family in dict.fromkeys(_embedded().values()):
        if _fits(pipeline_class, family):
            return partial(_around, pipeline_class, family)
    return partial(_assembled, pipeline_class)


@lru_cache(maxsize=32)
def _types_of(family: str) -> dict[str, str]:
    built: Any = tiny.build(family)
    return {name: type(part).__name__ for name, part in built.components.items() if part is not None}


def _needed(pipeline_class: Any) -> dict[str, list[str]]:
    """Component that has to be there -> the names of the classes that it may have."""
    optional = set(getattr(pipeline_class, "_optional_components", ()))
    parameters = inspect.signature(pipeline_class.__init__).parameters
    types = pipeline_class._get_signature_types()
    wanted = {}
    for name, item in parameters.items():
        if name == "self" or name in optional or item.default is not item.empty or item.kind > item.KEYWORD_ONLY:
            continue
        wanted[name] = [each.__name__ for each in types.get(name, ()) if isinstance(each, type)]
    return wanted


def _fits(pipeline_class: Any, family: str) -> bool:
    """Whether a class takes exactly the models of a family: all of them that it needs, of the same classes."""
    held = _types_of(family)
    aside = ("scheduler", "okenizer")
    models = {name for name in held if not any(word in name for word in aside)}
    accepted = set(inspect.signature(pipeline_class.__init__).parameters)
    return models <= accepted and all(
        name in held and (held[name] in classes or any(word in name for word in aside))
        for name, classes in _needed(pipeline_class).items()
    )


def _around(pipeline_class: Any, family: str) -> Any:
    source: Any = tiny.build(family)
    accepted = inspect.signature(pipeline_class.__init__).parameters
    own = {name: part for name, part in source.components.items() if name in accepted}
    settings = {name: value for name, value in source.config.items() if name in accepted and name not in own}
    return pipeline_class(**own | {name: value for name, value in settings.items() if not name.startswith("_")})


def _assembled(pipeline_class: Any) -> Any:
    """A pipeline of components that are made from their types alone."""
    parts: dict[str, Any] = {}
    parameters = inspect.signature(pipeline_class.__init__).parameters
    needed = _needed(pipeline_class)
    for name, classes in sorted(needed.items(), key=lambda item: item[0] == "vae"):  # it fits the denoiser
        parts[name] = _component(name, classes, pipeline_class, parts)
    for name in ("safety_checker", "feature_extractor", "image_encoder", "watermarker"):
        if name in parameters and name not in parts:
            parts[name] = None
    for name in ("requires_safety_checker", "add_watermarker"):
        if name in parameters:
            parts[name] = False
    if "safety_checker" in parameters:
        parts["safety_checker"] = None
    return pipeline_class(**parts)


def _component(name: str, classes: list[str], pipeline_class: Any, parts: dict[str, Any]) -> Any:
    import diffusers

    if name == "unet" and "UNet2DConditionModel" in classes:
        channels = 9 if "Inpaint" in pipeline_class.__name__ else 8 if "Pix2Pix" in pipeline_class.__name__ else 4
        return _unet("UNet2DConditionModel", in_channels=channels)
    if "AutoencoderKL" in classes:
        return _image_vae(parts.get("unet") or parts.get("transformer"))
    for each in classes:
        if each in BY_TYPE:
            return BY_TYPE[each]()
    for each in classes:
        found = getattr(diffusers, each, None)
        if found is None:
            continue
        if each == "FlowMatchEulerDiscreteScheduler":
            return found(use_dynamic_shifting="mu" in scheduler_use(pipeline_class).timestep_arguments)
        if "Scheduler" in each:
            return found()
        return shrunk(found)
    raise ValueError(f"nothing here makes its {name} ({', '.join(classes) or 'no type is given'})")


def _image_vae(denoiser: Any) -> Any:
    """With the channels that a denoiser works on: as many as it takes, or a quarter, where it takes 2 x 2 cells."""
    if denoiser is None or "UNet" in type(denoiser).__name__:
        return components.image_vae(4, 0.18215, quant=True)
    channels = int(denoiser.config.get("in_channels") or 16)
    return components.image_vae(channels if channels <= 16 else channels // 4, 0.3611, 0.1159)


def inputs(pipeline_class: type) -> dict[str, Any]:
    """What to call a class with: its own defaults, but small, and what it cannot do without."""
    from ....pipelines.recognize import family_of

    accepted = takes(pipeline_class)
    parameters = inspect.signature(pipeline_class.__call__).parameters
    family = family_of(pipeline_class)
    wanted = {name for name in accepted if parameters[name].default is inspect.Parameter.empty}
    wanted |= {*family.required, *({family.image_argument} if family.images == "required" else ())}
    values = {name: value for name, value in SMALL.items() if name in accepted}
    for name in wanted & accepted:
        if name in PICTURES:
            values[name] = picture(PICTURES[name])
        elif name in CLIPS:
            values[name] = [picture("RGB") for _ in range(SMALL["num_frames"])]
    return values | dict(ARGUMENTS.get(pipeline_class.__name__, {}))


ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "CycleDiffusionPipeline": {"source_prompt": "a fox", "num_inference_steps": 4},
    "KandinskyV22Img2ImgCombinedPipeline": {"num_inference_steps": 4},
    "StableDiffusionAttendAndExcitePipeline": {"token_indices": [2]},
    "StableDiffusionGLIGENPipeline": {"gligen_phrases": ["a fox"], "gligen_boxes": [[0.1, 0.1, 0.9, 0.9]]},
}
"""Class -> what it makes nothing without, or nothing with the small values."""
SMALL: Mapping[str, Any] = {
    "prompt": "a fox in the snow",
    "num_inference_steps": 3,
    "width": EDGE,
    "height": EDGE,
    "num_frames": 9,
    "frames": 9,
    "video_length": 9,
    "max_sequence_length": 32,
    "use_resolution_binning": False,
    "clean_caption": False,
}
PICTURES = {
    "mask_image": "L",
    "control_mask": "L",
    **dict.fromkeys(("control_image", "image", "images", "input_images", "cond_image", "original_image"), "RGB"),
}
"""Argument -> mode of the picture that it takes."""
CLIPS = ("video", "control_video", "conditioning_frames")


def picture(mode: str) -> Any:
    """A picture of ramps, or a mask of the right half."""
    from PIL import Image

    ramp = torch.linspace(0, 255, EDGE).byte().repeat(EDGE, 1)
    if mode == "L":
        return Image.fromarray((ramp >= 128).byte().mul(255).numpy())
    return Image.merge("RGB", [Image.fromarray(each.numpy()) for each in (ramp, ramp.T.contiguous(), ramp.flip(1))])
