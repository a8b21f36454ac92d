"""A small model of any class of diffusers: its constructor's defaults, with what is only size brought down.

What has to fit another model stays as the class has it (channels of a latent) or becomes the one width that all text
encoders here have. A class whose sizes hang together in another way raises, and then there is no case of it.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from ....pipelines.tiny.components import WIDTH

HEAD = 16
"""Channels of an attention head."""
HEADS = 2
_LAYERS = (
    "num_layers",
    "num_single_layers",
    "num_mmdit_layers",
    "num_single_dit_layers",
    "num_refiner_layers",
    "n_refiner_layers",
    "num_text_blocks",
    "num_visual_blocks",
    "num_blocks",
    "depth",
    "num_noise_refiner_layers",
    "num_res_blocks",
    "decoder_num_res_blocks",
)
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "num_key_value_heads", "num_kv_heads", "n_kv_heads")
_HEAD_SIZES = ("attention_head_dim", "head_dim", "d_head")
_TEXT = (
    "joint_attention_dim",
    "caption_channels",
    "text_embed_dim",
    "text_embed_2_dim",
    "text_dim",
    "text_hidden_dim",
    "cap_feat_dim",
    "cross_attention_dim",
    "caption_dim",
    "caption_projection_dim",
    "text_in_dim",
    "context_in_dim",
    "encoder_hid_dim",
)
_WIDTHS = ("hidden_size", "inner_dim", "dim", "model_dim", "hidden_dim", "ffn_dim", "ff_dim", "intermediate_size")
_ROPE = ("axes_dims_rope", "axes_dim_rope", "rope_axes_dim", "axes_dims", "axes_dim", "axes_lens_rope")
_SEVERAL = ("block_out_channels", "decoder_block_out_channels", "encoder_block_out_channels")


def shrunk(model_class: Any, **fixed: Any) -> Any:
    """An instance of `model_class`, small, with random weights, in evaluation mode.

    Args:
        fixed: arguments that are to be so.

    Raises:
        Exception: whatever the class raises for sizes that do not fit together.
    """
    parameters = inspect.signature(model_class.__init__).parameters
    sizes = {
        name: _small(name, item.default, parameters)
        for name, item in parameters.items()
        if name != "self" and item.default is not item.empty
    }
    changed = {name: value for name, value in sizes.items() if value is not _KEEP}
    return model_class(**changed | {name: value for name, value in fixed.items() if name in parameters}).eval()


_KEEP = object()


def _small(name: str, default: Any, parameters: Any) -> Any:
    if name in _ROPE and isinstance(default, list | tuple) and name != "axes_lens_rope":
        return _split(HEAD, len(default), type(default))
    if name in _SEVERAL and isinstance(default, list | tuple):
        return type(default)(8 * min(2, 1 + index // 2) for index in range(len(default)))
    if name in ("layers_per_block", "decoder_layers_per_block", "encoder_layers_per_block"):
        return type(default)(1 for _ in default) if isinstance(default, list | tuple) else 1
    if not isinstance(default, int) or isinstance(default, bool):
        return _KEEP
    if name in _LAYERS:
        return 1
    if name in _HEADS:
        return HEADS
    if name in _HEAD_SIZES:
        return HEAD
    if name in _TEXT or name == "pooled_projection_dim":
        return WIDTH
    if name in _WIDTHS:
        return HEADS * HEAD
    if name in ("base_dim", "decoder_base_dim"):
        return 8
    if name in ("norm_num_groups", "num_groups"):
        return 4
    return _KEEP


def _split(total: int, parts: int, kind: type) -> Any:
    """`total` as even numbers, the first of which is the smallest."""
    even = total // 2
    shares = [even // parts + (index >= parts - even % parts) for index in range(parts)]
    return kind(2 * share for share in shares) if math.prod(shares) else _KEEP
