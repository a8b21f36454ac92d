"""The names that layers have in the original implementations of the models, as most trainers' files spell them.

Data: a pattern for a whole layer name, and what it is in diffusers. `/` stands for "." or "_", because the kohya format
writes one for the other; `#` for a block's number, `@` for the name of whatever layer this one is in. A layer that
diffusers splits has its parts in order, rows of the original one after the other; "~" marks one whose two halves of
rows are exchanged. Where several alternatives are given, the first whose layers the model has is meant.
"""

from __future__ import annotations

_DOUBLE, _SINGLE = "transformer_blocks.#.", "single_transformer_blocks.#."

ORIGINAL_NAMES: dict[str, list[list[str]]] = {
    # FLUX.1 and FLUX.2: https://github.com/black-forest-labs/flux
    "img_in": [["x_embedder"]],
    "txt_in": [["context_embedder"]],
    "time_in/in_layer": [
        ["time_text_embed.timestep_embedder.linear_1"],
        ["time_guidance_embed.timestep_embedder.linear_1"],
    ],
    "time_in/out_layer": [
        ["time_text_embed.timestep_embedder.linear_2"],
        ["time_guidance_embed.timestep_embedder.linear_2"],
    ],
    "vector_in/in_layer": [["time_text_embed.text_embedder.linear_1"]],
    "vector_in/out_layer": [["time_text_embed.text_embedder.linear_2"]],
    "guidance_in/in_layer": [
        ["time_text_embed.guidance_embedder.linear_1"],
        ["time_guidance_embed.guidance_embedder.linear_1"],
    ],
    "guidance_in/out_layer": [
        ["time_text_embed.guidance_embedder.linear_2"],
        ["time_guidance_embed.guidance_embedder.linear_2"],
    ],
    "double_blocks/#/img_mod/lin": [[f"{_DOUBLE}norm1.linear"]],
    "double_blocks/#/txt_mod/lin": [[f"{_DOUBLE}norm1_context.linear"]],
    "double_blocks/#/img_attn/qkv": [[f"{_DOUBLE}attn.{name}" for name in ("to_q", "to_k", "to_v")]],
    "double_blocks/#/txt_attn/qkv": [[f"{_DOUBLE}attn.add_{name}_proj" for name in "qkv"]],
    "double_blocks/#/img_attn/proj": [[f"{_DOUBLE}attn.to_out.0"]],
    "double_blocks/#/txt_attn/proj": [[f"{_DOUBLE}attn.to_add_out"]],
    "double_blocks/#/img_attn/norm/query_norm": [[f"{_DOUBLE}attn.norm_q"]],
    "double_blocks/#/img_attn/norm/key_norm": [[f"{_DOUBLE}attn.norm_k"]],
    "double_blocks/#/txt_attn/norm/query_norm": [[f"{_DOUBLE}attn.norm_added_q"]],
    "double_blocks/#/txt_attn/norm/key_norm": [[f"{_DOUBLE}attn.norm_added_k"]],
    "double_blocks/#/img_mlp/0": [[f"{_DOUBLE}ff.net.0.proj"], [f"{_DOUBLE}ff.linear_in"]],
    "double_blocks/#/img_mlp/2": [[f"{_DOUBLE}ff.net.2"], [f"{_DOUBLE}ff.linear_out"]],
    "double_blocks/#/txt_mlp/0": [[f"{_DOUBLE}ff_context.net.0.proj"], [f"{_DOUBLE}ff_context.linear_in"]],
    "double_blocks/#/txt_mlp/2": [[f"{_DOUBLE}ff_context.net.2"], [f"{_DOUBLE}ff_context.linear_out"]],
    "single_blocks/#/modulation/lin": [[f"{_SINGLE}norm.linear"]],
    "single_blocks/#/linear1": [
        [f"{_SINGLE}{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
        [f"{_SINGLE}attn.to_qkv_mlp_proj"],
    ],
    "single_blocks/#/linear2": [[f"{_SINGLE}proj_out"], [f"{_SINGLE}attn.to_out"]],
    "single_blocks/#/norm/query_norm": [[f"{_SINGLE}attn.norm_q"]],
    "single_blocks/#/norm/key_norm": [[f"{_SINGLE}attn.norm_k"]],
    "final_layer/linear": [["proj_out"], ["all_final_layer.2-1.linear"]],
    "final_layer/adaLN_modulation/1": [["~norm_out.linear"], ["all_final_layer.2-1.adaLN_modulation.1"]],
    "double_stream_modulation_img/lin": [["double_stream_modulation_img.linear"]],
    "double_stream_modulation_txt/lin": [["double_stream_modulation_txt.linear"]],
    "single_stream_modulation/lin": [["single_stream_modulation.linear"]],
    # Fused projections of diffusers' own models.
    "@/to_qkv": [["@.to_q", "@.to_k", "@.to_v"]],
    "@/to_added_qkv": [["@.add_q_proj", "@.add_k_proj", "@.add_v_proj"]],
    # Z-Image: https://github.com/Tongyi-MAI/Z-Image
    "@/qkv": [["@.to_q", "@.to_k", "@.to_v"]],
    "@/out": [["@.to_out.0"]],
    "@/q_norm": [["@.norm_q"]],
    "@/k_norm": [["@.norm_k"]],
    "x_embedder": [["all_x_embedder.2-1"]],
    # Wan: https://github.com/Wan-Video/Wan2.2
    **{
        f"blocks/#/{theirs}/{name}": [[f"blocks.#.{ours}.{renamed}"]]
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for name, renamed in {
            "q": "to_q",
            "k": "to_k",
            "v": "to_v",
            "o": "to_out.0",
            "k_img": "add_k_proj",
            "v_img": "add_v_proj",
            "norm_q": "norm_q",
            "norm_k": "norm_k",
            "norm_k_img": "norm_added_k",
        }.items()
    },
    "blocks/#/ffn/0": [["blocks.#.ffn.net.0.proj"]],
    "blocks/#/ffn/2": [["blocks.#.ffn.net.2"]],
    "time_embedding/0": [["condition_embedder.time_embedder.linear_1"]],
    "time_embedding/2": [["condition_embedder.time_embedder.linear_2"]],
    "text_embedding/0": [["condition_embedder.text_embedder.linear_1"]],
    "text_embedding/2": [["condition_embedder.text_embedder.linear_2"]],
    "time_projection/1": [["condition_embedder.time_proj"]],
    "head/head": [["proj_out"]],
    "img_emb/proj/0": [["condition_embedder.image_embedder.norm1"]],
    "img_emb/proj/1": [["condition_embedder.image_embedder.ff.net.0.proj"]],
    "img_emb/proj/3": [["condition_embedder.image_embedder.ff.net.2"]],
    "img_emb/proj/4": [["condition_embedder.image_embedder.norm2"]],
}

SWAPPED_NORMS = {"norm2": "norm3", "norm3": "norm2"}
"""Wan's blocks: the two implementations number the norms the other way round, so the file's own form decides."""
