"""Cluster Settings: over which cards and machines a sampler spreads its batch, or one picture; and such a run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy_api.latest import io

from ..cache_folder import default_folder
from ..cluster.child import client
from ..cluster.connection import require_ray
from ..cluster.parallel.choice import PARALLEL_CHOICES, parallel_settings
from ..cluster.parallel.client import generate_together
from ..cluster.settings import LOCAL, MOST_PATIENCE, MOST_THREADS, PATIENCE, ClusterSettings, parse_cluster
from ..errors import FastDiffusersError, InputError
from ..pipelines.generate import generate as generate_here
from ..pipelines.loading.devices import resolve_dtype
from . import types
from .host import comfy_bridge, memory_management
from .host.compat import ADVANCED, schema

if TYPE_CHECKING:
    from ..callbacks import Callbacks
    from ..optimizations.settings import OptimizationSettings
    from ..pipelines.types import LoadKey, PipelineHandle, SampleRequest, SampleResult


class ClusterSettingsNode(io.ComfyNode):
    """Widgets -> `ClusterSettings`. Nothing is started before a sampler runs with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersClusterSettings",
            display_name="Cluster Settings",
            category=types.CATEGORY,
            search_aliases=["cluster", "ray", "multi gpu", "several gpus", "distributed", "parallel", "workers"],
            inputs=[
                io.String.Input("address", default=LOCAL),
                io.Int.Input("threads", default=0, min=0, max=MOST_THREADS, **ADVANCED),
                io.Float.Input("wait", default=PATIENCE, min=1.0, max=MOST_PATIENCE, step=10.0, **ADVANCED),
                io.Combo.Input("parallel", options=list(PARALLEL_CHOICES), default="off"),
            ],
            outputs=[types.Cluster.Output(display_name="cluster")],
        )

    @classmethod
    def validate_inputs(
        cls, address: str = LOCAL, threads: int = 0, wait: float = PATIENCE, parallel: str = "off"
    ) -> bool | str:
        # ComfyUI asks this before anything runs; what is connected instead of typed in is not known yet.
        try:
            cluster_of(address, parallel, threads, wait)
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def execute(cls, address: str, threads: int, wait: float, parallel: str = "off") -> io.NodeOutput:
        return io.NodeOutput(client.keep_while_alive(cluster_of(address, parallel, threads, wait)))


def cluster_of(address: str, parallel: str, threads: int, wait: float) -> ClusterSettings:
    """What the widgets say.

    Raises:
        InputError: a value is out of range, or they do not go together.
        MissingDependencyError: Ray is not installed, which all but `parallel` needs.
    """
    if parallel == "off":
        require_ray()
    settings = parse_cluster(address.strip(), threads or None, wait)
    if parallel == "off":
        return settings
    if not settings.local:
        reason = "one picture is made over the cards of this machine alone"
        raise InputError("parallel", parallel, reason, "set address to local, or to local:2 for two cards")
    return parallel_settings(parallel, settings.workers, settings.cpus)


def generate(
    cluster: ClusterSettings,
    pipeline: PipelineHandle,
    request: SampleRequest,
    settings: OptimizationSettings,
    callbacks: Callbacks,
) -> SampleResult:
    """Make a batch on a cluster, as `pipelines.generate.generate` makes it here.

    Raises:
        InputError: what a cluster cannot do, before anything starts.
        ClusterError: an image, or the cluster, has failed.
    """
    handle = replace(pipeline, key=for_workers(pipeline.key, cluster))
    temporary = Path(folder_paths.get_temp_directory())
    if cluster.parallel != "off":
        alone = partial(_generate_here, pipeline, request, settings, callbacks)
        room = memory_management.leave_cards
        return generate_together(
            cluster, handle, request, settings, callbacks, temporary, alone, default_folder(), room
        )
    client.check(handle, request)
    if cluster.local:
        memory_management.leave_cards()
    return client.generate_on(cluster, handle, request, settings, callbacks, temporary, default_folder())


def _generate_here(
    pipeline: PipelineHandle, request: SampleRequest, settings: OptimizationSettings, callbacks: Callbacks
) -> SampleResult:
    with memory_management.on_card(pipeline):
        return generate_here(pipeline, request, settings, callbacks, memory=comfy_bridge.memory_state)


def for_workers(key: LoadKey, cluster: ClusterSettings) -> LoadKey:
    """The key with "auto" for what "auto" means in this ComfyUI: each worker has a card, and a dtype, of its own.

    ComfyUI on the processor has workers of this machine on the processor, too.

    Raises:
        InputError: another device was chosen, which no worker has.
    """
    own = comfy_bridge.device_name("auto")
    if key.device == "cpu" and (cluster.local or own != "cpu"):
        return key
    if key.device != own:
        raise InputError("device", key.device, client.SEVERAL_CARDS, "choose auto where the model is loaded")
    dtype = "auto" if key.dtype == resolve_dtype("auto", own) else key.dtype
    return replace(key, device="auto", dtype=dtype)
