"""Load Engine (Server): a model that SGLang-Diffusion or vLLM-Omni runs; and a run of a sampler on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..engines.generate import generate as generate_on_server
from ..engines.settings import (
    AUTO,
    DEFAULT_URL,
    MAKES,
    MOST_PATIENCE,
    PATIENCE,
    SERVERS,
    Engine,
    check_host,
    parse_engine,
)
from ..errors import FastDiffusersError, InputError
from . import types
from .host.compat import ADVANCED, schema

if TYPE_CHECKING:
    from ..callbacks import Callbacks
    from ..cluster.settings import ClusterSettings
    from ..optimizations.settings import OptimizationSettings
    from ..pipelines.types import SampleRequest, SampleResult


class LoadEngine(io.ComfyNode):
    """Widgets -> `Engine`. Nothing is asked of the server before a sampler runs with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersLoadEngine",
            display_name="Load Engine (Server)",
            category=types.CATEGORY,
            search_aliases=["engine", "server", "sglang", "vllm", "vllm-omni", "openai", "api", "remote", "serving"],
            inputs=[
                io.String.Input("url", default=DEFAULT_URL),
                io.Combo.Input("server", options=list(SERVERS), default=AUTO),
                io.Combo.Input("makes", options=list(MAKES), default=AUTO),
                io.String.Input("model", default="", **ADVANCED),
                io.Float.Input("wait", default=PATIENCE, min=1.0, max=MOST_PATIENCE, step=10.0, **ADVANCED),
            ],
            outputs=[types.Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def validate_inputs(
        cls, url: str = DEFAULT_URL, server: str = AUTO, makes: str = AUTO, model: str = "", wait: float = PATIENCE
    ) -> bool | str:
        # ComfyUI asks this before anything runs; what is connected instead of typed in is not known yet.
        try:
            check_host(parse_engine(url, server, makes, model, wait))
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def execute(cls, url: str, server: str, makes: str, model: str, wait: float) -> io.NodeOutput:
        engine = parse_engine(url, server, makes, model, wait)
        check_host(engine)
        return io.NodeOutput(engine)


def generate(
    engine: Engine,
    request: SampleRequest,
    settings: OptimizationSettings,
    callbacks: Callbacks,
    cluster: ClusterSettings | None,
) -> SampleResult:
    """Make a batch on a server, as `pipelines.generate.generate` makes it here.

    Raises:
        InputError: what a server cannot be asked, or a cluster beside it.
        EngineError: the server could not make it.
    """
    if cluster is not None:
        raise InputError("cluster", cluster.name, "the pipeline is a server's, which runs by itself", "disconnect one")
    return generate_on_server(engine, request, settings, callbacks)


def refuse_as_vae(vae: Any) -> None:
    """Raise InputError where a server's model is to decode or encode: it takes no latents and gives none."""
    if isinstance(vae, Engine):
        cure = "take 'images' from Diffusers Sampler, or connect a VAE that is loaded here"
        raise InputError("vae", vae.url, "a server takes no latents and gives none", cure)
