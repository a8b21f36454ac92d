"""What differs between pipeline classes, in one table: how each is guided, sized, fed and decoded.

`recognize.family_of` finds the entry of a pipeline; a class that is not in the table still runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

NETS = "_nets"
"""Entry of a part's configuration that counts the control models or adapters in it, where it holds several."""
MAX_SIZE = 16384
"""Largest width or height that any family is asked for, in pixels."""
MAX_FRAMES = 4096
"""Longest clip that any family is asked for, in frames."""


@dataclass(frozen=True)
class Family:
    """How one kind of pipeline is called.

    Attributes:
        name: short name, "flux2-klein".
        classes: diffusers classes it covers.
        guidance_argument: call argument that takes the guidance scale, "" when there is none.
        second_guidance: has `guidance_scale_2` for its second expert.
        prompt: takes a prompt.
        negative_prompt: honours a negative prompt.
        negative_above: the negative prompt acts only with a guidance above this value.
        empty_negative: what stands for "no negative prompt" where guidance needs one; None = leave it out.
        steps, guidance, guidance_2: recommended values; `guidance` None = the pipeline's own, `guidance_2` None = same
            as `guidance`.
        width, height: recommended size in pixels, 0 = the pipeline's own. With reference images, their aspect at this
            area.
        size_multiple: width and height are multiples of it, in pixels.
        max_size: largest width or height, in pixels: what the position embeddings reach.
        most_aspect: longer edge to shorter edge at most, 0 for any.
        min_steps: fewest steps.
        steps_less: how many evaluations of the model there are less than steps.
        video: gives frames with a rate.
        num_frames, frame_rate: recommended clip, frames (0 = the pipeline's own) and frames per second.
        frame_rate_assumed: nothing says which rate the model makes.
        rate_argument: call argument that takes the frame rate, where there is one.
        frames_argument: call argument that takes the number of frames.
        required: call arguments that it fails without, and that no input of a request fills.
        makes: what it makes instead of pictures, clips or sound, in words; "" for one that makes those.
        sound_alone: makes sound, and nothing to be seen.
        frame_step: frames are `frame_rest` + a multiple of it; 1 = any number.
        frame_rest: what is over of any number of frames divided by `frame_step`; 1 but for MiniMax-H3.
        min_frames, max_frames: shortest and longest clip, in frames.
        images: "none" for text only, "optional", or "required".
        max_images: reference images accepted.
        min_images: how many a model that works on pictures wants.
        images_as_list: takes its pictures as a list, one for each of the models that read them.
        image_argument: call argument that takes them.
        images_in_front: each of them is a latent frame in front of the clip's own during a run, and none of the result.
        own_controls: control pictures that control models of its own read, one each.
        alpha: reads the transparency of a picture.
        last_image: takes a last frame besides the first.
        own_strength: of a call that always starts from its picture, None for any other.
        batch_by_prompts: a batch is a list of prompts rather than several images per prompt.
        sound: gives a sound track with the frames.
        layout: native latent. "plain" is [B, C, h, w]; "video" is [B, C, t, h, w]; "packed" is [B, h/2 * w/2, 4C];
            "patches" is [B, h * w, C]; "tokens" is [B, t * h * w, C]; "normalized" is [B, C, t, h, w] as the denoiser
            has it, its rows of patches frame by frame; "" is unknown: the pipeline decodes itself.
        row_patch: cells a side of what one row of a "normalized" latent holds.
        latent_channels: channels of the ComfyUI latent.
        latent_stride: pixels per ComfyUI latent cell.
        temporal_stride: frames per latent frame after the first; 1 for images.
        comfy_format: class name in ComfyUI's `latent_formats`, "" when there is none.
        timestep_arguments: what the pipeline hands to `set_timesteps` besides the number of steps: "sigmas", "mu".
        own_flow_sigmas: leaves the sigmas to a scheduler that is configured with `use_flow_sigmas`.
        scheduling: how a class outside the table drives its scheduler.
        unguided: further call arguments for a guidance that is off (1 or less), as (name, value) pairs: what else must
            go for every step to run the model once.
        image_to_image: diffusers class that starts from an image with a strength, "" when there is none.
        image_to_video: diffusers class with the same models that takes a first frame, "" when there is none.
        extra: further fixed call arguments, as (name, value) pairs.
    """

    name: str
    classes: tuple[str, ...] = ()
    guidance_argument: str = "guidance_scale"
    second_guidance: bool = False
    prompt: bool = True
    negative_prompt: bool = True
    negative_above: float = 1.0
    empty_negative: str | None = None
    steps: int = 28
    guidance: float | None = 5.0
    guidance_2: float | None = None
    width: int = 1024
    height: int = 1024
    size_multiple: int = 16
    max_size: int = MAX_SIZE
    most_aspect: float = 0.0
    min_steps: int = 1
    steps_less: int = 0
    video: bool = False
    num_frames: int = 1
    frame_rate: float | None = None
    frame_rate_assumed: bool = False
    rate_argument: str = "frame_rate"
    frames_argument: str = "num_frames"
    required: tuple[str, ...] = ()
    makes: str = ""
    sound_alone: bool = False
    frame_step: int = 1
    frame_rest: int = 1
    min_frames: int = 1
    max_frames: int = 1
    images: str = "none"
    max_images: int = 0
    min_images: int = 1
    images_as_list: bool = False
    image_argument: str = "image"
    images_in_front: bool = False
    own_controls: int = 1
    alpha: bool = False
    last_image: bool = False
    own_strength: float | None = None
    batch_by_prompts: bool = False
    sound: bool = False
    layout: str = ""
    row_patch: int = 1
    latent_channels: int = 0
    latent_stride: int = 8
    temporal_stride: int = 1
    comfy_format: str = ""
    timestep_arguments: tuple[str, ...] = ()
    own_flow_sigmas: bool = False
    scheduling: Any = None
    unguided: tuple[tuple[str, Any], ...] = ()
    image_to_image: str = ""
    image_to_video: str = ""
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def pictures(self) -> str:
        """What a model that works on pictures wants, in words."""
        return (
            "a picture" if self.min_images == 1 else f"{self.min_images} pictures, one for each model that reads them"
        )

    def clip_frames(self, latent_frames: int) -> int:
        """Frames of the clip that so many latent frames decode to."""
        if self.frame_rest > 1:
            return self.frame_rest + (latent_frames - 2) // self.frame_rest * self.frame_step
        return 1 + (latent_frames - 1) * self.temporal_stride

    @property
    def known(self) -> bool:
        """False for a pipeline class that is not in the table: only its signature is known."""
        return bool(self.layout)


_FLUX = Family(
    "flux",
    ("FluxPipeline",),
    timestep_arguments=("sigmas", "mu"),
    own_flow_sigmas=True,
    image_to_image="FluxImg2ImgPipeline",
    negative_prompt=False,
    guidance=3.5,
    layout="packed",
    latent_channels=16,
    comfy_format="Flux",
)
_FLUX2 = Family(
    "flux2",
    ("Flux2Pipeline",),
    timestep_arguments=("sigmas", "mu"),
    own_flow_sigmas=True,
    negative_prompt=False,
    steps=50,
    guidance=4.0,
    images="optional",
    max_images=10,
    layout="patches",
    latent_channels=128,
    latent_stride=16,
    comfy_format="Flux2",
)
_QWEN = Family(
    "qwenimage",
    ("QwenImagePipeline",),
    timestep_arguments=("sigmas", "mu"),
    image_to_image="QwenImageImg2ImgPipeline",
    guidance_argument="true_cfg_scale",
    empty_negative=" ",
    steps=50,
    guidance=4.0,
    width=1328,
    height=1328,
    layout="packed",
    latent_channels=16,
    comfy_format="Wan21",
)
# Wan's rotary embedding reaches 1024 positions on every axis: 1024 patches of 16 pixels, 1024 latent frames.
_WAN = Family(
    "wan-t2v",
    ("WanPipeline",),
    second_guidance=True,
    steps=50,
    guidance=5.0,
    width=832,
    height=480,
    video=True,
    num_frames=81,
    frame_rate=16.0,
    frame_step=4,
    max_frames=4 * 1023 + 1,
    batch_by_prompts=True,
    layout="video",
    latent_channels=16,
    temporal_stride=4,
    comfy_format="Wan21",
)
# LTX-2's rotary embedding spans 20 seconds; 60 frames a second is the most that it is conditioned on.
_LTX2 = Family(
    "ltx2-t2v",
    ("LTX2Pipeline",),
    timestep_arguments=("sigmas", "mu"),
    steps=30,
    guidance=3.0,
    width=768,
    height=512,
    size_multiple=32,
    video=True,
    num_frames=121,
    frame_rate=24.0,
    frame_step=8,
    max_frames=20 * 60 + 1,
    sound=True,
    layout="tokens",
    latent_channels=128,
    latent_stride=32,
    temporal_stride=8,
    comfy_format="LTXV",
    unguided=(
        ("audio_guidance_scale", 1.0),
        ("stg_scale", 0.0),
        ("audio_stg_scale", 0.0),
        ("modality_scale", 1.0),
        ("audio_modality_scale", 1.0),
    ),
)

FAMILIES: tuple[Family, ...] = (
    _FLUX,
    replace(
        _FLUX,
        name="flux-kontext",
        classes=("FluxKontextPipeline",),
        guidance=2.5,
        images="optional",
        max_images=1,
        own_flow_sigmas=False,
        image_to_image="",
    ),
    _FLUX2,
    replace(_FLUX2, name="flux2-klein", classes=("Flux2KleinPipeline",)),
    Family(
        "sdxl",
        ("StableDiffusionXLPipeline",),
        image_to_image="StableDiffusionXLImg2ImgPipeline",
        steps=30,
        size_multiple=8,
        layout="plain",
        latent_channels=4,
        comfy_format="SDXL",
    ),
    Family(
        "sd3",
        ("StableDiffusion3Pipeline",),
        image_to_image="StableDiffusion3Img2ImgPipeline",
        guidance=4.5,
        max_size=3072,
        layout="plain",
        latent_channels=16,
        comfy_format="SD3",
    ),
    _QWEN,
    replace(
        _QWEN,
        name="qwenimage-edit",
        classes=("QwenImageEditPipeline",),
        width=1024,
        height=1024,
        images="required",
        max_images=1,
        image_to_image="",
    ),
    replace(
        _QWEN,
        name="qwenimage-edit-plus",
        classes=("QwenImageEditPlusPipeline",),
        width=1024,
        height=1024,
        images="required",
        max_images=3,
        image_to_image="",
    ),
    Family(
        "zimage",
        ("ZImagePipeline",),
        timestep_arguments=("sigmas", "mu"),
        image_to_image="ZImageImg2ImgPipeline",
        negative_above=0.0,
        steps=9,
        guidance=0.0,
        max_size=512 * 16,
        layout="plain",
        latent_channels=16,
        comfy_format="Flux",
    ),
    _WAN,
    replace(
        _WAN, name="wan-i2v", classes=("WanImageToVideoPipeline",), images="required", max_images=1, last_image=True
    ),
    replace(_LTX2, images="optional", max_images=1, image_to_video="LTX2ImageToVideoPipeline"),
    replace(_LTX2, name="ltx2-i2v", classes=("LTX2ImageToVideoPipeline",), images="required", max_images=1),
)
