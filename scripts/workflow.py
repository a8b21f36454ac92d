"""A workflow as the editor saves it, turned into what ComfyUI's `/prompt` takes.

The editor stores widget values as a list in the order of the node's widgets; the server wants them by name. The names
come from the server's own `/object_info`, so a workflow that no longer fits its nodes is found out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}
UPLOAD_BUTTONS = ("image", "video", "audio", None)
"""What the editor stores for buttons that stand after the widgets proper."""
VIRTUAL_NODES = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
NEVER, BYPASS = 2, 4


class WorkflowError(ValueError):
    """A saved workflow that does not fit the nodes it names."""


def to_prompt(graph: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a saved workflow to API format.

    Args:
        graph: the workflow's JSON: "nodes" and "links".
        object_info: the server's description of every node type.

    Returns:
        {node id: {"class_type": ..., "inputs": {name: value or [source id, output index]}}}.

    Raises:
        WorkflowError: an unknown node type, a missing or surplus widget value, or a link from a muted node.
    """
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in graph["links"]}
    prompt = {}
    for node in nodes.values():
        if node["type"] in VIRTUAL_NODES or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if node["type"] not in object_info:
            raise WorkflowError(f"node {node['id']}: the server has no node type {node['type']!r}")
        linked = {
            item["name"]: source_of(links[item["link"]], nodes, links)
            for item in node.get("inputs", [])
            if item.get("link") is not None
        }
        values = widget_values(node, object_info[node["type"]]["input"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**values, **linked}}
    return prompt


def source_of(origin: tuple[int, int], nodes: Mapping[int, Any], links: Mapping[int, tuple[int, int]]) -> list[Any]:
    """[node id, output index] that a link really comes from, through reroutes."""
    node = nodes[origin[0]]
    if node["type"] == "Reroute":
        return source_of(links[node["inputs"][0]["link"]], nodes, links)
    if node.get("mode", 0) in (NEVER, BYPASS):
        raise WorkflowError(f"node {node['id']} ({node['type']}) is muted or bypassed, but its output is used")
    return [str(origin[0]), origin[1]]


def widget_values(node: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The node's widget values by name."""
    stored = node.get("widgets_values") or []
    if isinstance(stored, Mapping):
        return dict(stored)
    values = list(stored)
    named = dict(_take(inputs, values, node, prefix=""))
    surplus = [value for value in values if value not in UPLOAD_BUTTONS]
    if surplus:
        raise WorkflowError(f"node {node['id']} ({node['type']}): more widget values than widgets: {surplus}")
    return named


def _take(
    inputs: Mapping[str, Any], values: list[Any], node: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any]]:
    """Take values off the front of `values`, one for each widget that `inputs` declares.

    Optional widgets at the end may have none: the workflow is older than they are, and the server has their defaults.
    """
    optional = inputs.get("optional", {})
    for name, specification in {**inputs.get("required", {}), **optional}.items():
        kind = specification[0]
        options = specification[1] if len(specification) > 1 else {}
        dynamic = kind == DYNAMIC_COMBO
        if not (dynamic or isinstance(kind, list) or kind in WIDGET_TYPES) or options.get("forceInput"):
            continue
        if not values and name in optional:
            continue
        if not values:
            raise WorkflowError(f"node {node['id']} ({node['type']}): no value for {prefix}{name}")
        value = values.pop(0)
        yield prefix + name, value
        if kind == "INT" and values and isinstance(values[0], str) and values[0] in SEED_CONTROLS:
            values.pop(0)  # what the editor does with the seed after a run is no business of the server
        if dynamic:
            chosen = [option for option in options["options"] if option["key"] == value]
            if not chosen:
                raise WorkflowError(f"node {node['id']} ({node['type']}): {prefix}{name} has no option {value!r}")
            yield from _take(chosen[0]["inputs"], values, node, prefix=f"{prefix}{name}.")
