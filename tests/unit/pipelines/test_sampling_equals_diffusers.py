"""With every optimization off, this pack's result is that of a bare diffusers call, bit for bit, in every family."""

from __future__ import annotations

import inspect

import pytest
import torch

from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import latents, sampling, tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.decoding import pipeline_vae
from fastdiffusers.pipelines.generate import decode, encode, generate
from fastdiffusers.pipelines.latents import denormalize
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

PICTURE = torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(1))
WIDTH, HEIGHT, STEPS, SEED, GUIDANCE = 64, 96, 3, 2**63 + 5, 2.5


def request_for(family, **changes):
    values = {
        "prompt": "a ship in the fog",
        "steps": STEPS,
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": 5 if family.video else None,
        "seed": SEED,
        "guidance": GUIDANCE,
        "images": (PICTURE,) if family.images == "required" else (),
    }
    return SampleRequest(**{**values, **changes})


def bare_call(pipeline, **changes):
    """Frames [B, T, H, W, 3] of the plain call that a user of diffusers would write."""
    parameters = inspect.signature(pipeline.__call__).parameters
    batch = changes.pop("batch", 1)
    arguments = {
        "prompt": "a ship in the fog",
        "num_inference_steps": STEPS,
        "width": WIDTH,
        "height": HEIGHT,
        "generator": [torch.Generator().manual_seed(SEED + index) for index in range(batch)],
        "output_type": "pt",
    }
    arguments["true_cfg_scale" if "Qwen" in type(pipeline).__name__ else "guidance_scale"] = GUIDANCE
    if "Qwen" in type(pipeline).__name__:
        arguments["negative_prompt"] = " "
    if "num_frames" in parameters:
        arguments["num_frames"] = 5
    if "num_images_per_prompt" in parameters:
        arguments["num_images_per_prompt"] = batch
    elif batch > 1:
        arguments["prompt"] = [arguments["prompt"]] * batch
    if "max_area" in parameters:
        arguments["max_area"] = WIDTH * HEIGHT
        arguments["_auto_resize"] = False
    if parameters.get("image") is not None and parameters["image"].default is inspect.Parameter.empty:
        arguments["image"] = to_pil(PICTURE)
    if type(pipeline).__name__ == "QwenImageEditPipeline":
        arguments["image"] = to_pil(PICTURE)
    output = pipeline(**{**arguments, **changes})[0]
    output = output if output.ndim == 5 else output.unsqueeze(1)
    return output.permute(0, 1, 3, 4, 2)


@pytest.mark.usefixtures("small_edit_pictures")
@pytest.mark.parametrize("name", tiny.TINY_FAMILIES)
def test_plain_generate_equals_a_bare_call_and_its_latent_decodes_to_the_same(name):
    handle = PipelineHandle(loader.resolve("tiny:" + name))
    family = loader.family_of_key(handle.key)
    result = generate(handle, request_for(family), OptimizationSettings.plain())
    frames, report = decode(handle, result.latent, OptimizationSettings.plain())
    bare = bare_call(tiny.build(name))

    assert result.frames.shape == (1, 5 if family.video else 1, HEIGHT, WIDTH, 3)
    assert result.frames.dtype == torch.float32
    assert bare.std() > 0.05, "a uniform picture would equal anything"
    assert torch.equal(result.frames, bare)
    assert torch.equal(frames, bare)
    assert result.latent.shape[1] == family.latent_channels
    assert len(result.step_seconds) == STEPS
    pictures = {"encode"} if request_for(family).images else set()
    assert set(result.stage_seconds) == {"text encode", "denoise", "decode"} | pictures
    assert report["vae_tiling"].applied == "off"
    assert CACHE.keys() == (handle.key,)


@pytest.mark.parametrize("name", ["flux", "sdxl", "zimage", "wan22-t2v", "wan22-i2v"])
def test_a_batch_equals_the_bare_batch_with_one_seed_per_item(name):
    loaded = loader.load(loader.resolve("tiny:" + name))
    result = sampling.run(loaded, request_for(loaded.family, batch=2))
    assert torch.equal(result.frames, bare_call(tiny.build(name), batch=2))
    assert result.seeds == (SEED, SEED + 1)
    second = sampling.run(loaded, request_for(loaded.family, seed=SEED + 1))
    torch.testing.assert_close(second.frames[0], result.frames[1], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("small_edit_pictures")
@pytest.mark.parametrize("name", ["flux-kontext", "flux2-klein"])
def test_reference_images_reach_the_model(name):
    loaded = loader.load(loader.resolve("tiny:" + name))
    result = sampling.run(loaded, request_for(loaded.family, images=(PICTURE,)))
    pictures = to_pil(PICTURE) if name == "flux-kontext" else [to_pil(PICTURE)]
    assert torch.equal(result.frames, bare_call(tiny.build(name), image=pictures))
    without = sampling.run(loaded, request_for(loaded.family))
    assert not torch.equal(without.frames, result.frames)


def test_last_image_and_second_guidance_reach_wan():
    loaded = loader.load(loader.resolve("tiny:wan22-i2v"))
    result = sampling.run(loaded, request_for(loaded.family, last_image=PICTURE.flip(0), guidance_2=1.5, steps=5))
    bare = tiny.build("wan22-i2v")
    expected = bare_call(bare, last_image=to_pil(PICTURE.flip(0)), guidance_scale_2=1.5, num_inference_steps=5)
    assert torch.equal(result.frames, expected)
    other = sampling.run(loaded, request_for(loaded.family, last_image=PICTURE.flip(0), steps=5))
    assert not torch.equal(other.frames, expected), "the second guidance scale changed nothing"


@pytest.mark.parametrize("name", ["flux", "flux2-klein", "sdxl", "sd3", "qwenimage", "zimage", "wan22-t2v"])
def test_conversions_are_inverse_and_an_encoded_picture_decodes_to_the_same_latent_space(name):
    loaded = loader.load(loader.resolve("tiny:" + name))
    family, vae = loaded.family, loaded.pipeline.vae
    result = sampling.run(loaded, request_for(family, decode=False))
    assert result.frames is None
    native = latents.pack(latents.from_comfy(result.latent, family, vae), family)
    again = latents.to_comfy(native, family, vae, WIDTH, HEIGHT)
    torch.testing.assert_close(again, result.latent, atol=1e-5, rtol=1e-5)

    handle = PipelineHandle(loader.resolve("tiny:" + name))
    pixels = torch.rand(1, 5, HEIGHT, WIDTH, 3) if family.video else torch.rand(1, HEIGHT, WIDTH, 3)
    encoded, _ = encode(handle, pixels, OptimizationSettings.plain())
    assert encoded.shape == result.latent.shape
    clip = pixels if family.video else pixels.unsqueeze(1)
    reference = clip.permute(0, 4, 1, 2, 3) * 2 - 1
    with torch.no_grad():
        if not hasattr(vae.config, "z_dim"):
            reference = reference[:, :, 0]
        mode = vae.encode(reference.contiguous()).latent_dist.mode()
    if name != "flux2-klein":
        assert torch.equal(encoded, mode)
    else:  # normalised and in patches: exactly what the decode undoes
        torch.testing.assert_close(denormalize(encoded, family, vae), mode, atol=1e-5, rtol=1e-5)


def test_low_precision_equals_a_bare_call_too():
    loaded = loader.load(loader.resolve("tiny:flux2-klein", dtype="bfloat16"))
    result = sampling.run(loaded, request_for(loaded.family))
    bare = bare_call(tiny.build("flux2-klein", dtype=torch.bfloat16))
    assert bare.dtype == torch.bfloat16  # diffusers scales to 0..1 in it; here that is done in float32
    assert torch.equal(result.frames.to(bare.dtype), bare)
    assert torch.equal(pipeline_vae.decode(loaded, result.latent), result.frames)


def test_an_overflowing_vae_is_decoded_in_float32_and_put_back():
    loaded = loader.load(loader.resolve("tiny:sdxl", component_dtypes={"vae": "float16"}))
    vae = loaded.pipeline.vae
    assert vae.dtype == torch.float16
    frames = pipeline_vae.decode(loaded, torch.randn(1, 4, 8, 8))
    assert frames.isfinite().all()
    assert vae.dtype == torch.float16
