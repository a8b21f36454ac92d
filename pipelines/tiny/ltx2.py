"""The embedded tiny LTX-2: picture and sound from one denoiser, with every component that the big model has.

Frame rule, strides and rates are the real ones: 128 video channels at 32 x 32 x 8 pixels a cell, a spectrogram of 100
columns a second, a stereo waveform at 24 kHz. The spectrogram has 8 mel bins instead of 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .components import WIDTH, add_contrast, flow_euler
from .tokenizers import GEMMA_VOCABULARY, gemma_tokenizer

if TYPE_CHECKING:
    import torch

TEXT_LAYERS = 2
"""Of the text encoder; the connectors read the hidden states of all of them and the embeddings."""
HEADS, HEAD_SIZE, AUDIO_HEAD_SIZE = 2, 16, 8
MEL_BINS, AUDIO_LATENT_CHANNELS = 8, 8
AUDIO_CHANNELS = AUDIO_LATENT_CHANNELS * MEL_BINS // 4
"""Channels of one audio token: all mel bins of one moment, which the audio VAE has made a quarter of."""


def ltx2(pipeline_class: str) -> Any:
    """An LTX-2 pipeline, `LTX2Pipeline` or `LTX2ImageToVideoPipeline`."""
    import diffusers

    return getattr(diffusers, pipeline_class)(
        # The time shift of the real model: it depends on the number of video tokens.
        scheduler=flow_euler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
        vae=_video_vae(),
        audio_vae=_audio_vae(),
        text_encoder=_text_encoder(),
        tokenizer=gemma_tokenizer(),
        connectors=_connectors(),
        transformer=_transformer(),
        vocoder=_vocoder(),
    )


def _text_encoder() -> Any:
    """Gemma 3, whose vision part exists, as in the checkpoint, but is not called."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={
            "vocab_size": GEMMA_VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window_pattern": 2,
            "initializer_range": 0.1,
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=GEMMA_VOCABULARY - 3,
        eoi_token_index=GEMMA_VOCABULARY - 2,
        image_token_index=GEMMA_VOCABULARY - 1,
    )
    return Gemma3ForConditionalGeneration(config)


def _connectors() -> Any:
    """What turns the text encoder's layers into one text for the picture and one for the sound."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    sizes: dict[str, Any] = {}
    for modality in ("video", "audio"):
        sizes[f"{modality}_connector_num_attention_heads"] = HEADS
        sizes[f"{modality}_connector_attention_head_dim"] = WIDTH // HEADS
        sizes[f"{modality}_connector_num_layers"] = 1
    return LTX2TextConnectors(caption_channels=WIDTH, text_proj_in_factor=TEXT_LAYERS + 1, rope_type="split", **sizes)


def _transformer() -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        cross_attention_dim=HEADS * HEAD_SIZE,
        audio_in_channels=AUDIO_CHANNELS,
        audio_out_channels=AUDIO_CHANNELS,
        audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_HEAD_SIZE,
        audio_cross_attention_dim=HEADS * AUDIO_HEAD_SIZE,
        num_layers=2,
        caption_channels=WIDTH,
        rope_type="split",
    )


def _video_vae() -> Any:
    """Encoder and decoder with the real model's blocks; only their widths and depths are small."""
    from diffusers import AutoencoderKLLTX2Video

    vae: Any = AutoencoderKLLTX2Video(
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 16, 32),
        # The encoder's first block is as wide as the latent: a layer there would be most of the model.
        layers_per_block=(0, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_causal=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    _spread_statistics(vae)
    add_contrast(vae.decoder.conv_out)
    return vae


def _audio_vae() -> Any:
    """Spectrogram to latent and back. Its statistics are per channel of an audio token, so they set its width."""
    from diffusers import AutoencoderKLLTX2Audio

    vae: Any = AutoencoderKLLTX2Audio(
        base_channels=AUDIO_CHANNELS,
        num_res_blocks=1,
        resolution=32,
        latent_channels=AUDIO_LATENT_CHANNELS,
        mel_bins=MEL_BINS,
    )
    _spread_statistics(vae)
    for _ in range(3):
        add_contrast(vae.decoder.conv_out)
    return vae


def _vocoder() -> Any:
    """Spectrogram, 100 columns a second, to a stereo waveform, 240 samples a column."""
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    vocoder: Any = LTX2Vocoder(
        in_channels=2 * MEL_BINS, hidden_channels=64, resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]]
    )
    _make_audible(vocoder)
    vocoder.conv_out.weight.data.mul_(0.1)  # the last of them ends in a tanh
    return vocoder


def _make_audible(vocoder: torch.nn.Module) -> None:
    """A vocoder as initialised hums one constant: its biases are louder than what its layers let through."""
    import torch

    for module in vocoder.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def _spread_statistics(vae: torch.nn.Module) -> None:
    """Statistics that are not 0 and 1, or a test could not tell which side applies them."""
    vae.latents_mean.normal_(std=0.3)  # type: ignore[operator]
    vae.latents_std.uniform_(0.5, 2.0)  # type: ignore[operator]
