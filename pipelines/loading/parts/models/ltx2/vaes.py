"""What makes picture and sound of LTX-2's latents: both VAEs and the vocoder.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_ltx2_to_diffusers.py`: all of them, and the names of the vocoders,
  which diffusers reads nowhere else; `loaders/single_file_utils.py`: the others' names in LTX-2.
- ComfyUI, `comfy/ldm/lightricks`: the same names and sizes.
"""

from __future__ import annotations

from typing import Any

from ...component import Component, Config, Shapes, Weights
from .model import OF_AUDIO_VAE, OF_VAE, OF_VOCODER, renamed, under, without

_VOCODER_NAMES = {
    "resblocks.": "resnets.",
    "ups.": "upsamplers.",
    "conv_pre.": "conv_in.",
    "conv_post.": "conv_out.",
    "act_post.": "act_out.",
    "downsample.lowpass.": "downsample.",
}

VIDEO_VAE: Config = {
    "block_out_channels": [256, 512, 1024, 2048],
    "decoder_block_out_channels": [256, 512, 1024],
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
"""Of LTX-2; what is left out is the class's default."""
VIDEO_VAE_23: Config = {
    **VIDEO_VAE,
    "block_out_channels": [256, 512, 1024, 1024],
    "decoder_block_out_channels": [256, 512, 512, 1024],
    "layers_per_block": [4, 6, 4, 2, 2],
    "decoder_layers_per_block": [4, 6, 4, 2, 2],
    "decoder_spatio_temporal_scaling": [True] * 4,
    "decoder_inject_noise": [False] * 5,
    "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
    "upsample_residual": [False] * 4,
    "upsample_factor": [2, 2, 1, 2],
    "decoder_spatial_padding_mode": "zeros",
}
AUDIO_VAE: Config = {"ch_mult": [1, 2, 4], "num_res_blocks": 2}
VOCODER: Config = {"upsample_kernel_sizes": [16, 15, 8, 4, 4], "upsample_factors": [6, 5, 2, 2, 2]}


_OF_LATENTS = ("base_channels", "latent_channels", "mel_bins", "sample_rate", "mel_hop_length")
"""What a VAE of the sound says of its latents."""


def _rename_vae(weights: Weights, config: Config) -> Weights:
    """As diffusers reads LTX-2's; the last level of LTX-2.3's keeps its names there."""
    from diffusers.loaders.single_file_utils import convert_ltx2_vae_to_diffusers

    last = {"decoder.up_blocks.7.": "decoder.up_blocks.3.upsamplers.0.", "decoder.up_blocks.8.": "decoder.up_blocks.3."}
    plain = {key.removeprefix(OF_VAE): value for key, value in weights.items()}
    return renamed(dict(convert_ltx2_vae_to_diffusers(plain)), last)


def _vae_own(shapes: Shapes) -> Shapes:
    """Of a file of several components, those under its name; else all."""
    return under((OF_VAE,))(shapes) or without(shapes, (OF_AUDIO_VAE, OF_VOCODER))


def _is_vae(shapes: Shapes) -> bool:
    name = "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"
    statistics = "per_channel_statistics.mean-of-means"
    return any(name_in + name in shapes and shapes.get(name_in + statistics) == (128,) for name_in in ("", OF_VAE))


def _rename_audio_vae(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_ltx2_audio_vae_to_diffusers

    return dict(convert_ltx2_audio_vae_to_diffusers(dict(weights)))


def _rename_vocoder(weights: Weights, config: Config) -> Weights:
    return renamed(weights, _VOCODER_NAMES, OF_VOCODER)


def video_vae(title: str, usual: str, config: Config) -> Component:
    """The VAE of the picture."""
    return Component(
        "diffusers",
        "AutoencoderKLLTX2Video",
        f"{title}'s VAE, usually {usual}",
        _is_vae,
        lambda shapes: dict(config),
        _rename_vae,
        own=_vae_own,
    )


def audio_vae(usual: str) -> Component:
    """The VAE of the sound: of its spectrogram."""
    return Component(
        "diffusers",
        "AutoencoderKLLTX2Audio",
        usual,
        lambda shapes: f"{OF_AUDIO_VAE}per_channel_statistics.mean-of-means" in shapes,
        lambda shapes: dict(AUDIO_VAE),
        _rename_audio_vae,
        own=under((OF_AUDIO_VAE,)),
    )


def vocoder(usual: str, wide: bool) -> Component:
    """What makes a sound of its spectrogram.

    Args:
        wide: whether a second one adds the upper half of what is heard, as in LTX-2.3.
    """
    first = f"{OF_VOCODER}{'vocoder.' if wide else ''}conv_pre.weight"
    return Component(
        "ltx2",
        "LTX2VocoderWithBWE" if wide else "LTX2Vocoder",
        usual,
        lambda shapes: first in shapes,
        lambda shapes: {} if wide else dict(VOCODER),
        _rename_vocoder,
        own=under((OF_VOCODER,)),
    )


def vae_stand_in(config: Config) -> Any:
    """A VAE of the picture that is not there: its latents are nobody's but the diffusion model's."""
    from diffusers import AutoencoderKLLTX2Video

    sizes = {"block_out_channels": (8, 8, 16, 16), "decoder_block_out_channels": (8, 16, 32)}
    layers = {"layers_per_block": (0, 0, 0, 0, 0), "decoder_layers_per_block": (0, 0, 0, 0)}
    ratios = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
    made: Any = AutoencoderKLLTX2Video(**sizes, **layers, **ratios)
    return made.eval()


def audio_vae_stand_in(config: Config) -> Any:
    """A VAE of the sound that is not there, for the sizes of its latents."""
    from diffusers import AutoencoderKLLTX2Audio

    sizes = {name: config[name] for name in _OF_LATENTS if name in config}
    made: Any = AutoencoderKLLTX2Audio(ch_mult=(1,), num_res_blocks=0, **sizes)
    return made.eval()
