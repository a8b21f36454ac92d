"""The small real models that are trained: an image VAE, and Flux with its text encoders and tokenizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...pipelines.tiny import tokenizers
from ...pipelines.tiny.components import dynamic_flow_euler
from . import scenes

CLIP_WIDTH, T5_WIDTH = 48, 64


def words() -> list[str]:
    """The words of all captions, longest first."""
    groups = (scenes.TIME_WORDS, scenes.WEATHER_WORDS, scenes.GROUND_WORDS, scenes.OBJECT_WORDS)
    phrases = [phrase for group in groups for row in group for phrase in row]
    phrases += [*scenes.FILLERS, *scenes.COLOURS, "the moon full moon", "the low sun", "one and the a"]
    return sorted({word for phrase in phrases for word in phrase.split()}, key=lambda word: (-len(word), word))


def clip_tokenizer() -> tuple[Any, int]:
    """Bytes, and the merges that spell the words of the captions; with the vocabulary's size."""
    from transformers import CLIPTokenizer

    characters = tokenizers.byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters)]
    merges: Any = []
    for word in words():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = [pieces[0] + pieces[1]]
            if pair not in merges:
                merges.append(pair)
            if pieces[0] not in tokens:
                tokens.append(pieces[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokenizers.CLIP_TOKENS), len(tokens)


def t5_tokenizer() -> tuple[Any, int]:
    """A piece for each word of the captions and each printable character; with the vocabulary's size."""
    from transformers import T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (tokenizers.SPACE, -2.0)]
    vocabulary += [(character, -3.0) for character in tokenizers.latin_characters()]
    vocabulary += [(tokenizers.SPACE + word, -1.0) for word in words()]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512), len(vocabulary)


def image_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 48, 64),
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=16,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def text_encoders(clip_vocabulary: int, t5_vocabulary: int) -> tuple[Any, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextConfig(
        vocab_size=clip_vocabulary,
        hidden_size=CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizers.CLIP_TOKENS,
        bos_token_id=clip_vocabulary - 2,
        eos_token_id=clip_vocabulary - 1,
        pad_token_id=clip_vocabulary - 1,
    )
    t5_options: dict[str, Any] = {"tie_word_embeddings": False}
    t5 = T5Config(
        vocab_size=t5_vocabulary,
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=2 * T5_WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        **t5_options,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def transformer() -> Any:
    """Flux without a guidance input, as schnell is."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


class CaptionReaders(torch.nn.Module):
    """Tell from each text encoder's result what its caption names, by a linear layer each.

    They are trained along and not kept. Without them the text encoders learn only from what the transformer makes of
    them, and it makes nothing of words that do not yet mean anything: sky and ground come, things and colours hardly.
    """

    def __init__(self, choices: tuple[int, ...]) -> None:
        """`choices`: how many values each column of what a picture shows can have."""
        super().__init__()
        self.choices = choices
        self.of_clip = torch.nn.Linear(CLIP_WIDTH, sum(choices))
        self.of_t5 = torch.nn.Linear(T5_WIDTH, sum(choices))

    def forward(self, pooled: Tensor, text: Tensor, is_word: Tensor, shown: Tensor) -> Tensor:
        """Return the mean cross-entropy, of `pooled` (batch, width) and of the mean over the words of `text` (batch,
        tokens, width), against `shown` (batch, columns)."""
        words = is_word[..., None].float()
        mean = (text.float() * words).sum(1) / words.sum(1).clamp(min=1)
        losses = []
        for logits in (self.of_clip(pooled.float()), self.of_t5(mean)):
            for column, part in enumerate(logits.split(self.choices, 1)):
                losses.append(torch.nn.functional.cross_entropy(part, shown[:, column]))
        return torch.stack(losses).mean()


def pipeline(vae: Any, clip: Any, t5: Any, flux: Any) -> Any:
    from diffusers import FluxPipeline

    built: Any = FluxPipeline(
        scheduler=dynamic_flow_euler(shift=3.0, base_image_seq_len=256, max_image_seq_len=4096),
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer()[0],
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer()[0],
        transformer=flux,
    )
    built.set_progress_bar_config(disable=True)
    return built
