"""Values that another node gives: not known before the run, when ComfyUI asks, and checked when the node runs."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfy_client import Client

TINY = "embedded tiny: "


@pytest.fixture(scope="module")
def nodes(core: Any) -> list[type[Any]]:
    """Every node of the pack, as ComfyUI is given them."""
    from fastdiffusers.nodes import FastDiffusersExtension

    return asyncio.run(FastDiffusersExtension().get_node_list())


def asked_before(nodes: list[type[Any]], method: str) -> Iterator[tuple[type[Any], list[str], dict[str, Any]]]:
    """The nodes that have such a method, the names of the inputs that ComfyUI passes, and good values of them."""
    for node in nodes:
        if method not in vars(node):
            continue
        names = inspect.getfullargspec(getattr(node, method)).args[1:]  # as ComfyUI reads them
        inputs = {each.id: each for each in node.define_schema().inputs}
        assert names
        assert set(names) <= set(inputs), node
        yield node, names, {name: default(inputs[name]) for name in names}


def default(widget: Any) -> Any:
    return widget.options[0] if widget.default is None else widget.default


@pytest.mark.parametrize("method", ["validate_inputs", "fingerprint_inputs"])
def test_what_is_linked_is_neither_refused_nor_raised_before_the_run(nodes: list[type[Any]], method: str) -> None:
    from comfy_api.internal import make_locked_method_func

    for node, names, values in asked_before(nodes, method):
        ask = make_locked_method_func(node, method, node)
        for linked in [*([name] for name in names), names]:
            answer = ask(**{**values, **dict.fromkeys(linked)})
            assert answer is True or (method != "validate_inputs" and isinstance(answer, str)), (node, linked, answer)


def test_a_missing_input_is_left_to_comfyui_which_names_it(nodes: list[type[Any]]) -> None:
    for node, names, values in asked_before(nodes, "validate_inputs"):
        required = inspect.signature(node.validate_inputs).parameters
        for name in (each for each in names if required[each].default is inspect.Parameter.empty):
            others = {each: value for each, value in values.items() if each != name}
            assert node.validate_inputs(**others) is True, (node, name)


def test_a_value_of_another_type_is_refused_in_one_line_by_every_widget(nodes: list[type[Any]]) -> None:
    from fastdiffusers.errors import InputError

    words = {"STRING": "text", "COMBO": "text", "INT": "a whole number", "FLOAT": "a number"}
    for node in nodes:
        for widget in (each for each in node.define_schema().inputs if each.io_type in words):
            for value in (None, [1], True):
                with pytest.raises(InputError, match=f"^{widget.id} = .* it must be {words[widget.io_type]}"):
                    node.execute(**{widget.id: value})
    for node, names, values in asked_before(nodes, "validate_inputs"):
        for name in names:
            answer = node.validate_inputs(**{**values, name: [1]})
            assert str(answer).startswith(f"{name} = "), (node, name, answer)


def linked_graphs(server: Client) -> dict[str, tuple[dict[str, Any], str]]:
    """Input -> a prompt, and its node that has the input."""
    small = {"save": False, "width": 32, "height": 32, "steps": 1}
    model, custom, parts = (server.sampling(name, **small) for name in (TINY + "flux", "[custom]", TINY + "zimage"))
    loader = "FastDiffusersLoadPipelineParts"
    offered = server.info[loader]["input"]["required"]["diffusion_model"][1]["options"]
    parts["load"] = server.node(loader, diffusion_model=offered[-1])
    lora = server.sampling(TINY + "wan22-t2v", **{**small, "steps": 2, "num_frames": 5})
    lora["lora"] = server.node("FastDiffusersLoadLora", pipeline=["load", 0], lora_name=TINY + "wan high noise")
    lora["sample"]["inputs"]["pipeline"] = ["lora", 0]
    vae = {
        "vae": server.node("FastDiffusersLoadVideoVAE", vae_name=TINY + "video VAE"),
        "latent": server.node("EmptyHunyuanLatentVideo", width=32, height=32, length=1, batch_size=1),
        "decode": server.node("FastDiffusersVAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "report": server.node("FastDiffusersShowReport", report=["decode", 1], format="json"),
    }
    return {
        "model": (model, "load"),
        "custom_model": (custom, "load"),
        "text_encoder_1": (parts, "load"),
        "lora_name": (lora, "lora"),
        "strength": (lora, "lora"),
        "vae_name": (vae, "vae"),
        "prompt": (model, "sample"),
    }


@pytest.mark.parametrize(
    ("name", "good", "bad", "why"),
    [
        ("model", TINY + "sdxl", "nowhere", "no such model"),
        ("custom_model", "tiny:sdxl", "/nowhere/at/all", "no such folder or file"),
        ("text_encoder_1", "auto", "nowhere.safetensors", "no such file"),
        ("lora_name", TINY + "wan high noise", "nowhere.safetensors", "no such file"),
        ("strength", 0.5, 1e6, "it must be between -100 and 100"),
        ("strength", -1, "strong", "it must be a number"),
        ("vae_name", TINY + "video VAE", "nowhere.safetensors", "no such file"),
        ("prompt", "a fox", 5, "it must be text"),
    ],
)
def test_a_linked_value_runs_and_a_bad_one_is_refused_in_one_line_by_its_node(
    server: Client, name: str, good: Any, bad: Any, why: str
) -> None:
    prompt, node = linked_graphs(server)[name]
    prompt[node]["inputs"][name] = ["value", 0]
    prompt["value"] = server.node("TestValue", json=json.dumps(good))
    server.succeed(prompt)
    prompt["value"] = server.node("TestValue", json=json.dumps(bad))
    error = server.error(server.run(prompt))
    message = error["exception_message"].strip()
    assert error["node_id"] == node
    assert message.startswith(f"{'model' if name == 'custom_model' else name} = "), message
    assert why in message
    assert "\n" not in message


def test_a_linked_name_is_no_reason_to_run_again(server: Client) -> None:
    """Without an answer before the run ComfyUI would run the node, and all after it, each time."""
    since = len(server.server.log())
    prompt = server.sampling(TINY + "flux", save=False, width=32, height=32, steps=1)
    prompt["value"] = server.node("TestValue", json=json.dumps(TINY + "flux"))
    prompt["load"]["inputs"]["model"] = ["value", 0]
    server.succeed(prompt)
    again = server.succeed(prompt)
    cached = next(data["nodes"] for kind, data in again["status"]["messages"] if kind == "execution_cached")
    assert {"load", "sample"} <= set(cached)
    assert "WARNING" not in server.server.log()[since:]
