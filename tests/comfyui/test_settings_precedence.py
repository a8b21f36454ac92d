"""Who decides what a sampler runs with: its widgets, its sockets, or what was recommended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fastdiffusers.optimizations.settings import (
    CompileSettings,
    OptimizationSettings,
    PrecisionSettings,
    TilingSettings,
)

if TYPE_CHECKING:
    from comfy_client import Client

RECOMMENDED = OptimizationSettings(
    attention="math",
    torch_compile="on",
    compile=CompileSettings(scope="model"),
    vae_tiling=TilingSettings("on", tile_size=256, overlap=64, slicing="on"),
    memory_mode="sequential",
    precision=PrecisionSettings(tf32="on"),
    step_cache="fast",
    quantized_matmul="on",
    fused_projections="on",
)
"""Different from the default in every field."""
FOLLOWING = {"attention": "auto", "torch_compile": "auto", "vae_tiling": "auto", "step_cache": "auto"}


@pytest.fixture
def combine(core: Any) -> Any:
    """The sampler's widgets and sockets, those of a new node unless given, as one `OptimizationSettings`."""
    from fastdiffusers.nodes.settings import with_widgets

    def combined(settings: OptimizationSettings | None, **widgets: Any) -> OptimizationSettings:
        options = {"compile_settings": None, "memory_mode": "gpu", **FOLLOWING, **widgets}
        result = with_widgets(settings, **options)
        assert isinstance(result, OptimizationSettings)
        return result

    return combined


def test_a_new_sampler_follows_what_is_recommended(combine: Any) -> None:
    assert combine(RECOMMENDED) == replace(RECOMMENDED, memory_mode="gpu")


def test_without_recommendation_a_new_sampler_has_the_defaults(combine: Any) -> None:
    found = combine(None)
    assert found == OptimizationSettings(memory_mode="gpu")
    assert found.step_cache == "off", "nothing that changes the picture is on by itself"


@pytest.mark.parametrize(
    ("widget", "value"),
    [("attention", "sdpa"), ("torch_compile", "off"), ("step_cache", "off"), ("step_cache", "balanced")],
)
def test_a_widget_that_says_something_wins(combine: Any, widget: str, value: str) -> None:
    found = combine(RECOMMENDED, **{widget: value})
    assert getattr(found, widget) == value
    others = {"attention", "torch_compile", "step_cache", "vae_tiling", "compile"} - {widget}
    assert all(getattr(found, name) == getattr(RECOMMENDED, name) for name in others)


def test_the_tiling_widget_decides_whether_and_the_settings_how(combine: Any) -> None:
    assert combine(RECOMMENDED, vae_tiling="off").vae_tiling == TilingSettings("off", 256, 64, "on")


def test_compile_settings_have_a_socket_of_their_own(combine: Any) -> None:
    own = CompileSettings(mode="reduce-overhead")
    assert combine(RECOMMENDED, compile_settings=own).compile == own
    assert combine(RECOMMENDED).compile == RECOMMENDED.compile
    assert combine(None).compile == CompileSettings()


def test_a_new_node_follows_and_an_old_graph_keeps_its_off(server: Client) -> None:
    defaults = server.defaults("FastDiffusersSampler")
    assert {name: defaults[name] for name in FOLLOWING} == FOLLOWING
    small = {"width": 64, "height": 64, "steps": 2}
    for value in ("auto", "off"):
        entry = server.succeed(server.sampling("embedded tiny: flux", save=True, step_cache=value, **small))
        records = {record["name"]: record for record in server.report(entry)["optimizations"]}
        assert records["step_cache"]["applied"] == "off"
