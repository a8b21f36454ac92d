"""Stand-ins for text encoders and tokenizers that diffusers' test cases take from the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....pipelines.tiny import tokenizers

QWEN_SPECIALS = 151643
"""Where Qwen's special tokens begin; the test cases give their encoders the real numbers."""
_MORE_QWEN_SPECIALS = (
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 5, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**sizes)).eval()


def umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes: dict[str, Any] = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return UMT5EncoderModel(UMT5Config(**sizes)).eval()


def small_gemma() -> Any:
    """Eight tokens in all: one of the cases has an encoder for no more."""
    from transformers import GemmaTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", tokenizers.SPACE, "a", "e"]
    specials = {name + "_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    vocabulary = {token: index for index, token in enumerate(tokens)}
    options: dict[str, Any] = {"model_max_length": 1024, "padding_side": "left", "add_bos_token": True, **specials}
    return GemmaTokenizer(vocab=vocabulary, merges=[], **options)


def llama_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers.gemma_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "LlamaTokenizerFast"}
    path.write_text(json.dumps(settings), encoding="utf-8")


def llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    llama_tokenizer(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes)).eval().save_pretrained(folder)


def bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    letters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=77).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
    }
    BertModel(BertConfig(vocab_size=1124, **sizes)).eval().save_pretrained(folder)


def roberta() -> Any:
    from transformers import RobertaTokenizerFast

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokenizers.byte_characters(), "<mask>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return RobertaTokenizerFast(vocab=vocabulary, merges=[], model_max_length=77)


def xlm_roberta() -> Any:
    from transformers import XLMRobertaTokenizerFast  # type: ignore[attr-defined]

    words = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (tokenizers.SPACE, -2.0)]
    words += [(chr(code), -3.0) for code in range(33, 127)]
    return XLMRobertaTokenizerFast(vocab=[*words, ("<mask>", 0.0)], model_max_length=77)


@lru_cache(maxsize=1)
def _word_pieces() -> tuple[list[str], Any]:
    """(pieces, the merges that make them) of the templates in diffusers' own pipelines: the places where these cut a
    prompt count words, not bytes."""
    import diffusers
    from tokenizers import ByteLevelBPETokenizer

    sources = sorted(Path(diffusers.__file__).parent.glob("pipelines/*/pipeline_*.py"))
    texts = [text for text in (path.read_text(encoding="utf-8") for path in sources) if "<|im_start|>" in text]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=8192, min_frequency=2, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(each.split(" ") if isinstance(each, str) else each) for each in model["merges"]]
    return ["".join(pair) for pair in merges], merges


def qwen_tokenizer() -> Any:
    """Qwen's special tokens under their real numbers; the places between them and the words are filled."""
    from transformers import Qwen2Tokenizer

    pieces, merges = _word_pieces()
    known = list(dict.fromkeys([*tokenizers.byte_characters(), *pieces]))
    filling = [f"<unused{index}>" for index in range(len(known), QWEN_SPECIALS)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_MORE_QWEN_SPECIALS]
    tokens = [*known, *filling, *specials]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ends = dict.fromkeys(("unk_token", "eos_token", "pad_token"), specials[0])
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=4096,
        additional_special_tokens=specials[1:],
        chat_template=CHAT_TEMPLATE,
        **ends,
    )


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_vl(name: str) -> Callable[[Path], None]:
    """Tokenizer, processor and model of `Qwen2VL` or `Qwen3VL`."""

    def make(folder: Path) -> None:
        import transformers

        tokenizer = qwen_tokenizer()
        text: dict[str, Any] = {
            "vocab_size": QWEN_SPECIALS + 32,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
        }
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        token = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
        patch = 14 if name == "Qwen2VL" else 16
        area = (2 * patch) ** 2
        sizes: dict[str, Any] = {
            "size": {"shortest_edge": 4 * area, "longest_edge": 16 * area},
            "patch_size": patch,
        }
        video = getattr(transformers, f"{name}VideoProcessor")(**sizes)
        if name == "Qwen2VL":
            text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 1e4}
            vision: dict[str, Any] = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}
        else:
            rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4, "mrope_interleaved": True}
            text |= {"rope_parameters": rope, "head_dim": 4}
            vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16}
            vision |= {"deepstack_visual_indexes": [0]}
        config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **token)
        processor = getattr(transformers, f"{name}Processor")(
            image_processor=transformers.Qwen2VLImageProcessor(**sizes),
            tokenizer=tokenizer,
            video_processor=video,
            chat_template=CHAT_TEMPLATE,
        )
        tokenizer.save_pretrained(folder)
        processor.save_pretrained(folder)
        getattr(transformers, f"{name}ForConditionalGeneration")(config).eval().save_pretrained(folder)

    return make


def chatglm(folder: Path) -> None:
    """Kolors' language model, with a tokenizer of single characters."""
    from io import BytesIO

    import torch
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from sentencepiece import SentencePieceTrainer

    letters = " ".join(chr(code) for code in range(33, 127))
    written = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([letters] * 2),
        model_writer=written,
        model_type="char",
        vocab_size=98,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}', encoding="utf-8")
    sizes: dict[str, Any] = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 16, "kv_channels": 4}
    sizes |= {"original_rope": True, "add_qkv_bias": True}
    model = ChatGLMModel(ChatGLMConfig(padded_vocab_size=128, num_attention_heads=2, seq_length=512, **sizes)).eval()
    for name, parameter in model.named_parameters():  # its norms are left unset
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
