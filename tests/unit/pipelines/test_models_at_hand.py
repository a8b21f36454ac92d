"""What models ask for beyond their class is known before they load, and what can be run equals bare diffusers."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from other_pipelines import around, build, generator, loaded, stable_diffusion

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import call_arguments, to_pil
from fastdiffusers.pipelines.loading.described import family_of_folder
from fastdiffusers.pipelines.loading.loader import load, resolve
from fastdiffusers.pipelines.recognize import family_of, family_of_configuration
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.schedulers import SCHEDULERS, compatible_schedulers
from fastdiffusers.pipelines.types import SampleRequest

PICTURES = tuple(torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))


def _with_nets(kind: str) -> Any:
    """Stable Diffusion with two control models, or two adapters."""
    parts: Any = stable_diffusion().components
    if kind == "adapter":
        del parts["image_encoder"]
        blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}  # adapters join where a block attends
        blocks["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
        parts["unet"] = diffusers.UNet2DConditionModel.from_config(parts["unet"].config, **blocks)
        nets = [diffusers.T2IAdapter(channels=(8, 16), num_res_blocks=1, downscale_factor=8) for _ in range(2)]
        return diffusers.StableDiffusionAdapterPipeline(
            **parts, adapter=diffusers.MultiAdapter(nets), requires_safety_checker=False
        )
    nets = [
        diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 4, 8, 8))
        for _ in range(2)
    ]
    for net in nets:  # as made, they add nothing
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=nets, requires_safety_checker=False)


@pytest.mark.parametrize("kind", ["controlnet", "adapter"])
def test_several_control_models_take_a_picture_each(kind: str, tmp_path: Path) -> None:
    pipeline = build(lambda: _with_nets(kind))
    family = family_of(pipeline)
    pipeline.save_pretrained(tmp_path)
    assert family_of_folder(tmp_path).min_images == family_of_folder(tmp_path).max_images == 2
    for count, reason in ((0, "works on 2 pictures"), (1, "works on 2 pictures"), (3, "takes at most 2")):
        with pytest.raises(InputError, match=reason):
            check_request(family_of_folder(tmp_path), SampleRequest("a fox", images=PICTURES[:count]))
    request = SampleRequest("a fox", steps=2, width=32, height=32, images=PICTURES[:2])
    expected = pipeline(
        "a fox",
        image=[to_pil(picture) for picture in PICTURES[:2]],
        num_inference_steps=2,
        width=32,
        height=32,
        generator=generator(),
        output_type="np",
        **({"adapter_conditioning_scale": [1.0, 1.0]} if kind == "adapter" else {}),
    )[0]
    assert family.images == "required"
    made = sampling.run(loaded(pipeline), request).frames
    assert torch.equal(made.flatten(), torch.from_numpy(np.asarray(expected)).flatten())


def test_a_unet_without_a_sample_size_starts_from_pictures() -> None:
    """diffusers' own class cannot be made around one, but gives this with the size that it would ask for."""
    pipeline = build("stable_diffusion")
    pipeline.unet.register_to_config(sample_size=64)
    bare = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    given = {"num_inference_steps": 4, "strength": 0.5, "generator": generator(), "output_type": "np"}
    expected = bare("a fox", image=to_pil(PICTURES[0]), **given)[0]
    pipeline.unet.register_to_config(sample_size=None)
    with pytest.raises(TypeError):
        diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    request = SampleRequest("a fox", steps=4, strength=0.5, width=32, height=32, images=PICTURES[:1])
    made = sampling.run(loaded(pipeline), request).frames
    assert torch.equal(made.flatten(), torch.from_numpy(expected).flatten())
    assert pipeline.unet.config.sample_size is None


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetPipeline"])
def test_a_folder_whose_unet_says_no_size_loads_as_any_class(name: str, tmp_path: Path) -> None:
    """diffusers' own classes for pictures cannot be made around one; what they give with a size is what comes out."""
    pipeline = _with_nets("controlnet") if "Control" in name else build("stable_diffusion")
    parts = {**pipeline.components, "requires_safety_checker": False}
    pipeline.unet.register_to_config(sample_size=64)
    bare = build(lambda: getattr(diffusers, name)(**parts))
    bare.unet.register_to_config(sample_size=None)
    bare.save_pretrained(tmp_path)
    original = getattr(diffusers, name).__init__
    key = resolve(str(tmp_path), device="cpu", dtype="float32")
    held = load(key)
    assert getattr(diffusers, name).__init__ is original
    assert held.pipeline.unet.config.sample_size is None
    controlled = "Control" in name
    if not controlled:
        with pytest.raises(TypeError):
            diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    images = PICTURES[: 2 if controlled else 1]
    request = SampleRequest("a fox", steps=4, width=32, height=32, images=images)
    shown = [to_pil(picture) for picture in images]
    given = {"width": 32, "height": 32} if controlled else {}
    call = {"num_inference_steps": 4, "generator": generator(), "output_type": "np", **given}
    expected = bare("a fox", image=shown if controlled else shown[0], **call)[0]
    made = sampling.run(held, request).frames
    assert torch.equal(made.flatten(), torch.from_numpy(expected).flatten())


def test_the_size_is_the_one_that_the_unet_was_trained_for() -> None:
    """SDXL Turbo is an SDXL of half the edge."""
    vae = {"block_out_channels": (128, 256, 512, 512)}
    for cells, edge in ((128, 1024), (64, 512), (None, 1024)):
        parts = {"unet": {"sample_size": cells}, "vae": vae}
        family = family_of_configuration(diffusers.StableDiffusionXLPipeline, {}, parts)
        assert (family.width, family.height) == (edge, edge)


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionImg2ImgPipeline"]
)
def test_a_unet_that_wants_an_adapter_picture_is_refused(name: str) -> None:
    parts = {"unet": {"encoder_hid_dim_type": "ip_image_proj"}}
    family = family_of_configuration(getattr(diffusers, name), {}, parts)
    with pytest.raises(InputError, match="ip_adapter_image = 'none'"):
        check_request(family, SampleRequest("a fox", images=PICTURES[:1]))
    kept = {"unet": {"encoder_hid_dim_type": "text_proj"}}
    assert "ip_adapter_image" not in family_of_configuration(getattr(diffusers, name), {}, kept).required


def test_stable_cascade_reads_pictures_with_an_encoder_alone() -> None:
    combined = diffusers.StableCascadeCombinedPipeline
    assert family_of_configuration(combined, {}, {"prior_image_encoder": {}}).images == "optional"
    family = family_of_configuration(combined, {}, {})
    with pytest.raises(InputError, match="text-only"):
        check_request(family, SampleRequest("a fox", images=PICTURES[:1]))
    assert check_request(family, SampleRequest("a fox")) is not None


def test_the_position_embedding_of_sd3_limits_the_size() -> None:
    pipeline: Any = tiny.build("sd3")
    reach, stride = pipeline.transformer.config.pos_embed_max_size, pipeline.vae_scale_factor
    largest = reach * pipeline.transformer.config.patch_size * stride
    parts = {name: part.config for name, part in pipeline.components.items() if name in ("transformer", "vae")}
    family = family_of_configuration(type(pipeline), {}, parts)
    assert family.max_size == min(3072, largest)
    beyond = largest + family.size_multiple
    with pytest.raises(InputError, match=f"to {largest}"):
        check_request(replace(family, max_size=largest), SampleRequest("a fox", width=beyond, height=32))
    with pytest.raises(ValueError, match="pos_embed_max_size"):
        pipeline("a fox", width=beyond, height=32, num_inference_steps=1, output_type="latent")
    small = {"transformer": {**parts["transformer"], "sample_size": 16}, "vae": parts["vae"]}
    family = family_of_configuration(type(pipeline), {}, small)
    assert (family.width, family.height) == (16 * stride,) * 2


def test_the_position_embedding_of_auraflow_is_a_square_of_patches() -> None:
    """Without a size the largest one that it reaches is made, as bare diffusers makes it when asked for that."""
    pipeline = build("aura_flow")
    parts = {name: part.config for name, part in pipeline.components.items() if name in ("transformer", "vae")}
    family = family_of_configuration(type(pipeline), {}, parts)
    largest = 16 * 2 * pipeline.vae_scale_factor
    assert (family.max_size, family.width, family.height) == (largest,) * 3
    with pytest.raises(InputError, match=f"to {largest}"):
        check_request(family, SampleRequest("a fox", width=largest + family.size_multiple, height=32))
    with pytest.raises(IndexError):
        pipeline("a fox", width=2 * largest, height=2 * largest, num_inference_steps=1, output_type="latent")
    made = sampling.run(loaded(pipeline), SampleRequest("a fox", steps=1)).frames
    size = {"width": largest, "height": largest, "num_inference_steps": 1}
    expected = pipeline("a fox", generator=generator(), output_type="np", **size)[0]
    assert torch.equal(made[:, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("name", ["SanaSprintPipeline", "SanaSprintImg2ImgPipeline"])
def test_sana_sprint_takes_any_number_of_steps(name: str, steps: int) -> None:
    """Its timestep between is for two steps: diffusers refuses it with any other number."""
    sprint = getattr(diffusers, name)
    family = family_of(name)
    request = ready(family, SampleRequest("a fox", steps=steps, images=PICTURES[:1] if "Img2Img" in name else ()))
    call = call_arguments(_Called(sprint), family, request)
    timesteps = {"intermediate_timesteps": 1.3} | {key: call[key] for key in call if key == "intermediate_timesteps"}
    check = {"prompt": "a fox", "height": 32, "width": 32}
    if "Img2Img" in name:
        check["strength"] = 0.6
    pipeline = object.__new__(sprint)
    sprint.check_inputs(pipeline, **check, num_inference_steps=steps, timesteps=None, max_timesteps=1.57, **timesteps)


class _Called:
    config: dict[str, Any] = {}  # noqa: RUF012 - read only

    def __init__(self, pipeline_class: Any) -> None:
        self.__call__ = pipeline_class.__call__.__get__(self)


def test_a_negative_prompt_that_stands_in_for_none_is_said() -> None:
    chroma = build(lambda: around("qwenimage", "QwenImageImg2ImgPipeline"))
    request = SampleRequest("a fox", steps=2, width=32, height=32, strength=0.9, images=PICTURES[:1])
    said = "negative_prompt: ' ' stands in"
    assert any(note.startswith(said) for note in sampling.run(loaded(chroma), request).report.notes)
    for changed in (replace(request, negative_prompt="blue"), replace(request, guidance=1.0)):
        assert not any(note.startswith(said) for note in sampling.run(loaded(chroma), changed).report.notes)


def test_a_model_whose_noise_levels_rise_gets_schedulers_that_rise() -> None:
    """Others would run, from the picture to the noise: the result is finite and means nothing."""
    rising = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    names = compatible_schedulers(rising, family_of("OmniGenPipeline"))
    assert names == ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
    for name in names:
        scheduler = getattr(diffusers, name).from_config(rising.config)
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
        assert bool((scheduler.sigmas.diff() > 0).all()), name
    falling = diffusers.UniPCMultistepScheduler.from_config(rising.config, use_flow_sigmas=True)
    falling.set_timesteps(sigmas=np.array([1.0, 0.75, 0.5, 0.25]))
    assert bool((falling.sigmas.diff() < 0).all())


def test_a_model_trained_from_pure_noise_gets_schedulers_that_begin_there() -> None:
    """Others take the configuration, drop what they do not know, and begin with a rest of the picture."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    original = diffusers.EulerDiscreteScheduler(**betas, **zero)
    names = compatible_schedulers(original, family_of("StableDiffusionXLPipeline"))
    assert {"EulerDiscreteScheduler", "DDIMScheduler", "UniPCMultistepScheduler"} <= set(names)
    for name in SCHEDULERS:
        made = getattr(diffusers, name)
        if name not in names and not name.startswith("FlowMatch") and not getattr(made, "_backends", ()):
            rest = getattr(made.from_config(original.config), "alphas_cumprod", None)
            assert rest is None or rest[-1] > 1e-4, name
    plain = diffusers.EulerDiscreteScheduler(**betas)
    assert "HeunDiscreteScheduler" in compatible_schedulers(plain, family_of("StableDiffusionXLPipeline"))
    assert "HeunDiscreteScheduler" not in names


def test_everything_that_holds_several_models_is_counted() -> None:
    """Every class of diffusers that holds several control models or adapters keeps them where they are looked for."""
    held = set()
    for name in dir(diffusers):
        each = getattr(diffusers, name)
        if isinstance(each, type) and issubclass(each, diffusers.DiffusionPipeline):
            held |= {kind for kinds in each._get_signature_types().values() for kind in kinds if isinstance(kind, type)}
    several = [kind for kind in held if kind.__name__.startswith("Multi") or "MultiControl" in kind.__name__]
    several = [kind for kind in several if kind.__module__.startswith("diffusers.") and "lingual" not in kind.__name__]
    assert len(several) >= 6
    for kind in several:
        stored = inspect.getsource(kind.__init__)
        assert "self.nets =" in stored or "self.adapters =" in stored, kind
