"""ComfyUI's V3 nodes: a schema and a short `execute` each. The only folder of the pack that imports ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .benchmark import BenchmarkOptimizations
from .cluster import ClusterSettingsNode
from .conditions import CONDITION_NODES
from .copies.quantize import QuantizeModel
from .copies.save_folder import SaveFolder
from .engine import LoadEngine
from .host.comfy_bridge import keep_measurements_with_the_user
from .host.linked_inputs import with_links_checked_later
from .host.shown_errors import with_cures_first
from .lora import LoadLora
from .parts import LoadPipelineParts
from .pipeline import LoadPipeline
from .report import ShowReport
from .sampler import Sampler
from .settings import OptimizationSettingsNode, TorchCompileSettings
from .text.tiny_encoder import TinyEncoder
from .vae import LoadVideoVAE, VAEDecode, VAEEncode


class FastDiffusersExtension(ComfyExtension):
    """What `comfy_entrypoint` hands to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack, in the order of its menu."""
        keep_measurements_with_the_user()
        nodes: list[type[io.ComfyNode]] = [
            LoadPipeline,
            LoadPipelineParts,
            LoadEngine,
            LoadLora,
            *CONDITION_NODES,
            Sampler,
            TorchCompileSettings,
            OptimizationSettingsNode,
            ClusterSettingsNode,
            VAEDecode,
            VAEEncode,
            LoadVideoVAE,
            BenchmarkOptimizations,
            QuantizeModel,
            SaveFolder,
            TinyEncoder,
            ShowReport,
        ]
        return [with_cures_first(with_links_checked_later(node)) for node in nodes]
