"""Saved workflows become what the server takes."""

from __future__ import annotations

from typing import Any

import pytest

from fastdiffusers.scripts.workflow import WorkflowError, to_prompt

INFO: dict[str, Any] = {
    "Loader": {"input": {"required": {"model": [["a", "b"], {}]}, "optional": {"revision": ["STRING", {}]}}},
    "Sampler": {
        "input": {
            "required": {
                "pipeline": ["PIPELINE", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "mode": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "off", "inputs": {"required": {}}},
                            {"key": "tiles", "inputs": {"required": {"size": ["INT", {}]}}},
                        ]
                    },
                ],
                "steps": ["INT", {}],
                "prompt": ["STRING", {"forceInput": True}],
            }
        }
    },
}


def graph(sampler_values: list[Any], **changes: Any) -> dict[str, Any]:
    """A loader, a reroute and a sampler, as the editor saves them."""
    nodes = [
        {"id": 1, "type": "Loader", "widgets_values": ["b", "main"], "inputs": []},
        {"id": 2, "type": "Reroute", "inputs": [{"name": "", "link": 10}]},
        {"id": 3, "type": "Sampler", "widgets_values": sampler_values, "inputs": [{"name": "pipeline", "link": 11}]},
        {"id": 4, "type": "MarkdownNote", "widgets_values": ["read me"]},
    ]
    nodes[0] |= changes
    return {"nodes": nodes, "links": [[10, 1, 0, 2, 0, "*"], [11, 2, 0, 3, 0, "PIPELINE"]]}


def test_widgets_get_their_names_and_links_their_sources() -> None:
    assert to_prompt(graph([7, "fixed", "tiles", 256, 4]), INFO) == {
        "1": {"class_type": "Loader", "inputs": {"model": "b", "revision": "main"}},
        "3": {
            "class_type": "Sampler",
            "inputs": {"seed": 7, "mode": "tiles", "mode.size": 256, "steps": 4, "pipeline": ["1", 0]},
        },
    }


def test_a_dynamic_combo_brings_only_the_chosen_options_widgets() -> None:
    inputs = to_prompt(graph([7, "randomize", "off", 4]), INFO)["3"]["inputs"]
    assert inputs == {"seed": 7, "mode": "off", "steps": 4, "pipeline": ["1", 0]}


def test_a_workflow_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(WorkflowError, match="no value for steps"):
        to_prompt(graph([7, "fixed", "off"]), INFO)
    with pytest.raises(WorkflowError, match="mode has no option 'strips'"):
        to_prompt(graph([7, "fixed", "strips", 4]), INFO)
    with pytest.raises(WorkflowError, match="more widget values"):
        to_prompt(graph([7, "fixed", "off", 4, 5]), INFO)
    with pytest.raises(WorkflowError, match="no node type 'Loader2'"):
        to_prompt(graph([7, "fixed", "off", 4], type="Loader2"), INFO)
    with pytest.raises(WorkflowError, match="bypassed"):
        to_prompt(graph([7, "fixed", "off", 4], mode=4), INFO)
