"""Masks and the like through the nodes of a running ComfyUI, on one cached pipeline."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdiffusers.scripts.comfyui_server import ServerError

if TYPE_CHECKING:
    from comfy_client import Client

sys.path.append(str(Path(__file__).parents[1] / "unit" / "pipelines"))

TINY = "embedded tiny: "
SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 5, "torch_compile": "off", "attention": "sdpa"}


def graph(server: Client, family: str, nodes: dict[str, Any], *, picture: bool = False, **widgets: Any) -> Any:
    """The sampling graph with further nodes, of which "last" goes to `conditions`."""
    prompt = server.sampling(TINY + family, **SMALL, **widgets)
    prompt |= nodes
    if "last" in nodes:
        prompt["sample"]["inputs"]["conditions"] = ["last", 0]
    if picture:
        prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}}
        prompt["sample"]["inputs"]["images.image_1"] = ["picture", 0]
    return prompt


def mask(value: float, size: int = 64) -> dict[str, Any]:
    return {
        "solid": {"class_type": "SolidMask", "inputs": {"value": value, "width": size, "height": size}},
        "last": {"class_type": "FastDiffusersMaskCondition", "inputs": {"mask": ["solid", 0]}},
    }


def control(family: str, **widgets: Any) -> dict[str, Any]:
    named = {"controlnet_name": TINY + family, "custom_controlnet": ""}
    given = {"image": ["edges", 0], "control_net": ["net", 0], "strength": 0.8, **widgets}
    return {
        "edges": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
        "net": {"class_type": "FastDiffusersLoadControlNet", "inputs": named},
        "last": {"class_type": "FastDiffusersControlCondition", "inputs": given},
    }


def notes(server: Client, entry: dict[str, Any]) -> list[str]:
    return server.report(entry)["notes"]


def test_a_mask_of_zeros_keeps_the_picture_and_one_of_ones_is_none(server: Client) -> None:
    plain = server.images(server.succeed(graph(server, "flux", {})))
    ones = server.images(server.succeed(graph(server, "flux", mask(1.0), picture=True)))
    assert np.array_equal(plain, ones)
    zeros = server.images(server.succeed(graph(server, "flux", mask(0.0), picture=True)))
    again = server.images(server.succeed(graph(server, "flux", mask(0.0), picture=True, prompt="something else")))
    assert np.array_equal(zeros, again), "nothing of the prompt is in what is kept"
    assert not np.array_equal(zeros, plain)


def test_a_mask_of_another_size_is_scaled_and_it_is_said(server: Client) -> None:
    entry = server.succeed(graph(server, "sdxl", mask(0.5, 32), picture=True))
    assert any("scaled from 32x32 to the picture's 64x64" in note for note in notes(server, entry))


def test_a_noise_mask_of_core_is_kept_to(server: Client) -> None:
    """VAE Encode (Fast), then core's Set Latent Noise Mask: a mask of zeros decodes to what was encoded."""
    nodes = {
        "picture": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
        "encode": server.node("FastDiffusersVAEEncode", pixels=["picture", 0], vae=["load", 0]),
        "solid": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}},
        "masked": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["encode", 0], "mask": ["solid", 0]}},
        "decode": server.node("FastDiffusersVAEDecode", samples=["encode", 0], vae=["load", 0]),
        "shown": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "round"}},
    }
    prompt = graph(server, "zimage", nodes)
    prompt["sample"]["inputs"]["latent"] = ["masked", 0]
    entry = server.succeed(prompt)
    kept = server.images(entry)
    round_trip = server.images(entry, "shown")
    assert np.abs(kept.astype(int) - round_trip).max() <= 1


def test_a_control_picture_steers_the_cached_pipeline(server: Client) -> None:
    plain = server.succeed(graph(server, "sdxl", {}))
    steered = server.succeed(graph(server, "sdxl", control("sdxl")))
    weaker = server.succeed(graph(server, "sdxl", control("sdxl", strength=0.2)))
    assert not np.array_equal(server.images(plain), server.images(steered))
    assert not np.array_equal(server.images(steered), server.images(weaker))
    facts = [server.report(entry)["facts"] for entry in (plain, steered, weaker)]
    assert len({fact["loaded_at"] for fact in facts}) == 1, "the pipeline is loaded once"
    assert facts[1]["control"] == "tiny:sdxl 0.8, 0 to 1 of the steps"


def test_conditions_chain(server: Client) -> None:
    """A mask and a control picture together: the inpaint form of the control form."""
    nodes = control("flux")
    nodes["solid"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}
    nodes["masked"] = {
        "class_type": "FastDiffusersMaskCondition",
        "inputs": {"mask": ["solid", 0], "conditions": ["last", 0]},
    }
    prompt = graph(server, "flux", nodes, picture=True)
    prompt["sample"]["inputs"]["conditions"] = ["masked", 0]
    kept = server.images(server.succeed(prompt))
    prompt["sample"]["inputs"]["prompt"] = "something else"
    assert np.array_equal(kept, server.images(server.succeed(prompt)))


def test_a_folder_of_the_controlnet_path_is_offered_and_a_wrong_one_is_said(server: Client) -> None:
    from fastdiffusers.pipelines import tiny

    folder = server.base / "models" / "controlnet" / "canny"
    tiny.build_controlnet("sdxl").save_pretrained(folder)
    info = server.server.object_info()["FastDiffusersLoadControlNet"]["input"]["required"]["controlnet_name"]
    assert "canny" in json.dumps(info)
    nodes = control("sdxl")
    embedded = server.images(server.succeed(graph(server, "sdxl", nodes)))
    nodes["net"]["inputs"]["controlnet_name"] = "canny"
    assert np.array_equal(server.images(server.succeed(graph(server, "sdxl", nodes))), embedded)
    weights = folder / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, folder.parent / "of one file.safetensors")
    nodes["net"]["inputs"]["controlnet_name"] = "of one file.safetensors"
    assert np.array_equal(server.images(server.succeed(graph(server, "sdxl", nodes))), embedded)
    offered = json.dumps(server.server.object_info()["FastDiffusersLoadControlNet"])
    assert "of one file.safetensors" in offered
    assert weights.name not in offered, "it belongs to its folder"
    nodes["last"]["inputs"]["mode"] = 1
    message = server.error(server.run(graph(server, "sdxl", nodes)))
    assert "reads one kind of picture" in message["exception_message"]
    nodes["net"]["inputs"]["controlnet_name"] = "gone"
    with pytest.raises(ServerError, match="no such folder or file"):
        server.run(graph(server, "sdxl", nodes))


def clip(role: str = "video", frames: int = 5) -> dict[str, Any]:
    return {
        "one": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
        "many": {"class_type": "RepeatImageBatch", "inputs": {"image": ["one", 0], "amount": frames}},
        "last": {"class_type": "FastDiffusersVideoCondition", "inputs": {"video": ["many", 0], "role": role}},
    }


def test_a_clip_starts_the_run_and_gives_its_length(server: Client) -> None:
    plain = server.succeed(graph(server, "wan21-t2v", {}, num_frames=5))
    started = server.succeed(graph(server, "wan21-t2v", clip(), strength=0.5))
    assert len(server.images(started)) == 5
    assert not np.array_equal(server.images(started), server.images(plain))
    facts = [server.report(entry)["facts"] for entry in (plain, started)]
    assert len({fact["loaded_at"] for fact in facts}) == 1, "the pipeline is loaded once"


def test_a_video_of_core_is_a_clip(server: Client) -> None:
    nodes = clip(frames=9)
    nodes["made"] = {"class_type": "CreateVideo", "inputs": {"images": ["many", 0], "fps": 16.0}}
    from_frames = server.images(server.succeed(graph(server, "wan21-vace", nodes)))
    nodes["last"]["inputs"]["video"] = ["made", 0]
    assert np.array_equal(from_frames, server.images(server.succeed(graph(server, "wan21-vace", nodes))))


def test_references_reach_minimax_h3_in_their_order_with_a_videos_sound(server: Client) -> None:
    pytest.importorskip("diffusers.modular_pipelines.minimax_h3", reason="this diffusers has no MiniMax-H3")
    nodes = clip("reference", frames=16)
    nodes["heard"] = {"class_type": "EmptyAudio", "inputs": {"duration": 0.5, "sample_rate": 32000, "channels": 2}}
    made = {"images": ["many", 0], "fps": 30.0, "audio": ["heard", 0]}
    nodes["made"] = {"class_type": "CreateVideo", "inputs": made}
    given = {"video": ["made", 0], "role": "reference"}
    nodes["clip"] = {"class_type": "FastDiffusersVideoCondition", "inputs": given}
    nodes["last"]["inputs"] |= {"video": ["one", 0], "conditions": ["clip", 0]}
    prompt = graph(server, "minimax-h3", nodes)
    prompt["sample"]["inputs"] |= {"width": 32, "height": 32, "steps": 3, "decode": False}
    shown = server.report(server.succeed(prompt))["facts"]["references"].split("; ")
    assert [each.partition(" of ")[0] for each in shown] == ["16 frames", "picture"]
    assert shown[0].endswith(" at 30 per second with sound")
    prompt["sample"]["inputs"]["images.image_1"] = ["many", 0]
    message = server.error(server.run(prompt))
    assert message["exception_message"].startswith(
        "references = '17 pictures': Leave the others out. Reason: minimax-h3"
    )


def test_keyframes_reach_ltx2(server: Client) -> None:
    import diffusers

    if not hasattr(diffusers, "LTX2ConditionPipeline"):
        pytest.skip("this diffusers has no LTX-2 with conditions")
    nodes = {"one": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}}}
    chained: dict[str, Any] = {}
    for name, frame in (("first", 0), ("last", -1)):
        given = {"image": ["one", 0], "frame": frame, "strength": 1.0, **chained}
        nodes[name] = {"class_type": "FastDiffusersKeyframeCondition", "inputs": given}
        chained = {"conditions": [name, 0]}
    held = server.images(server.succeed(graph(server, "ltx2-t2v", nodes, num_frames=9)))
    plain = server.images(server.succeed(graph(server, "ltx2-t2v", {}, num_frames=9)))
    assert held.shape == plain.shape
    assert not np.array_equal(held, plain)


@pytest.mark.parametrize(
    ("family", "nodes", "words"),
    [
        ("flux", mask(0.5), "no picture for it to keep"),
        ("wan22-t2v", mask(0.5), "no clip to keep a part of"),
        ("wan22-t2v", clip(), "no clip to start from"),
        ("wan21-vace", clip("pose"), "no pose clip"),
        ("sdxl", control("flux"), "made for another kind of model"),
        ("wan22-t2v", control("flux"), "no form that takes a control model"),
    ],
)
def test_bad_input_is_one_line_and_the_next_run_works(server: Client, family: str, nodes: Any, words: str) -> None:
    message = server.error(server.run(graph(server, family, nodes)))
    assert message["exception_type"].endswith("InputError")
    assert words in message["exception_message"]
    assert "\n" not in message["exception_message"].strip()
    server.succeed(graph(server, "flux", {}))


def test_an_image_prompt_through_its_nodes(server: Client, tmp_path: Path) -> None:
    from image_prompt_files import ip_adapter_file

    from fastdiffusers.commands.libraries import declare_torchvision_ops
    from fastdiffusers.pipelines import tiny

    declare_torchvision_ops()
    adapter = ip_adapter_file(tiny.build("sdxl"), tmp_path)
    nodes = {
        "look": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
        "reads": {
            "class_type": "FastDiffusersLoadImagePromptModel",
            "inputs": {"model_name": "[custom]", "custom_model": str(adapter), "image_encoder": ""},
        },
        "last": {
            "class_type": "FastDiffusersImagePromptCondition",
            "inputs": {"image": ["look", 0], "image_prompt_model": ["reads", 0], "strength": 0.7},
        },
    }
    entry = server.succeed(graph(server, "sdxl", nodes))
    assert server.report(entry)["facts"]["image prompts"] == "ip-adapter.safetensors 0.7"
    plain = server.succeed(graph(server, "sdxl", {}))
    assert not np.array_equal(server.images(entry), server.images(plain))
    assert "image prompts" not in server.report(plain)["facts"]


def test_an_argument_of_the_pipelines_call_reaches_it(server: Client) -> None:
    def argument(name: str, value: str) -> dict[str, Any]:
        given = {"name": name, "value": value}
        return {"last": {"class_type": "FastDiffusersPipelineArgument", "inputs": given}}

    plain = server.succeed(graph(server, "sdxl", {}))
    rescaled = server.succeed(graph(server, "sdxl", argument("guidance_rescale", "0.7")))
    assert not np.array_equal(server.images(plain), server.images(rescaled))
    assert server.report(rescaled)["facts"]["arguments"] == "guidance_rescale"
    for name, value, said in (("rescale", "0.7", "guidance_rescale"), ("eta", " ", "it has no value")):
        message = server.error(server.run(graph(server, "sdxl", argument(name, value))))
        assert said in message["exception_message"], message


@pytest.mark.parametrize("with_latent", [False, True])
def test_a_second_last_picture_is_said_with_a_latent_too(server: Client, with_latent: bool) -> None:
    nodes = {
        "one": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
        "two": {"class_type": "RepeatImageBatch", "inputs": {"image": ["one", 0], "amount": 2}},
        "empty": server.node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
    }
    prompt = graph(server, "wan22-i2v", nodes, picture=True, num_frames=5, last_image=["two", 0])
    if with_latent:
        prompt["sample"]["inputs"]["latent"] = ["empty", 0]
    said = notes(server, server.succeed(prompt))
    assert "last_image: the first of 2 pictures is used." in said
    assert with_latent == any(note.startswith("latent ignored but for its size") for note in said)
