"""Configurations of published models, which no check of damaged ones may refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.loading.plausible import check_config

REAL: dict[str, tuple[int, dict[str, Any]]] = {
    "AutoencoderKL of SDXL": (248, {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}),
    "UNet of SDXL": (
        1680,
        {
            "block_out_channels": [320, 640, 1280],
            "transformer_layers_per_block": [1, 2, 10],
            "layers_per_block": 2,
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
        },
    ),
    "Flux transformer": (1160, {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24}),
    "T5-XXL": (219, {"num_layers": 24, "num_decoder_layers": 24, "d_ff": 10240, "vocab_size": 32128}),
    "Qwen2.5-VL": (
        729,
        {
            "num_hidden_layers": 28,
            "max_window_layers": 28,
            "vocab_size": 152064,
            "vision_config": {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "intermediate_size": 3420},
        },
    ),
    "Qwen3 MoE": (18867, {"num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48}),
    "Flux.2-klein text encoder": (398, {"num_hidden_layers": 36, "text_encoder_out_layers": [9, 18, 27]}),
    "AutoencoderDC": (
        800,
        {
            "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
            "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        },
    ),
    "Wan VAE": (194, {"base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "block_size": 4096}),
}


@pytest.mark.parametrize("name", REAL)
def test_a_published_configuration_is_taken(name: str, tmp_path: Path) -> None:
    tensors, config = REAL[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert check_config(path, tensors) == config


@pytest.mark.parametrize(
    "setting", [{"num_layers": 10**7}, {"layers_per_block": [2, 5000]}, {"text_config": {"num_hidden_layers": 10**5}}]
)
def test_an_absurd_number_of_layers_is_not(setting: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(setting))
    with pytest.raises(ModelFileError, match="layers"):
        check_config(path, 200)
