"""Small models and tokenizers of our own under the Hub names that diffusers' test cases ask for.

The cases name repositories of the Hub for what they do not build themselves. Here each name gets something of the same
class that was made from nothing, in the layout of the Hub's cache, so that the cases build without a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...pipelines.tiny import tokenizers

REVISION = "0" * 40
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


def write_all(cache: Path) -> dict[str, str]:
    """Write every stand-in into a Hub cache; name -> why it could not be made, for those that could not."""
    failed = {}
    for name, make in STAND_INS.items():
        root = cache / ("models--" + name.replace("/", "--"))
        folder = root / "snapshots" / REVISION
        folder.mkdir(parents=True, exist_ok=True)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(REVISION, encoding="utf-8")
        torch.manual_seed(0)
        try:
            make(folder)
            for place in {folder, *(path.parent for path in folder.glob("*/tokenizer.json"))}:
                if not (place / "config.json").exists():  # `AutoTokenizer` looks for the model's own
                    (place / "config.json").write_text("{}", encoding="utf-8")
        except Exception as error:  # noqa: BLE001 - another release of transformers: the cases that want it say so
            failed[name] = str(error).partition("\n")[0]
    return failed


def _saved(*parts: Callable[[], Any], under: str = "") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for part in parts:
            part().save_pretrained(folder / under)

    return make


def _t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 5, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**sizes)).eval()


def _umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes: dict[str, Any] = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return UMT5EncoderModel(UMT5Config(**sizes)).eval()


def _small_gemma() -> Any:
    """Eight tokens in all: one of the cases has an encoder for no more."""
    from transformers import GemmaTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", tokenizers.SPACE, "a", "e"]
    specials = {name + "_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    vocabulary = {token: index for index, token in enumerate(tokens)}
    options: dict[str, Any] = {"model_max_length": 1024, "padding_side": "left", "add_bos_token": True, **specials}
    return GemmaTokenizer(vocab=vocabulary, merges=[], **options)


def _llama_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers.gemma_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "LlamaTokenizerFast"}
    path.write_text(json.dumps(settings), encoding="utf-8")


def _llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    _llama_tokenizer(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes)).eval().save_pretrained(folder)


def _bert(folder: Path) -> None:
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


def _roberta() -> Any:
    from transformers import RobertaTokenizerFast

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokenizers.byte_characters(), "<mask>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return RobertaTokenizerFast(vocab=vocabulary, merges=[], model_max_length=77)


def _xlm_roberta() -> Any:
    from transformers import XLMRobertaTokenizerFast  # type: ignore[attr-defined]

    words = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (tokenizers.SPACE, -2.0)]
    words += [(chr(code), -3.0) for code in range(33, 127)]
    return XLMRobertaTokenizerFast(vocab=[*words, ("<mask>", 0.0)], model_max_length=77)


def _qwen_tokenizer() -> Any:
    """Qwen's special tokens under their real numbers; the places between them and the bytes are filled."""
    from transformers import Qwen2Tokenizer

    filling = [f"<unused{index}>" for index in range(256, QWEN_SPECIALS)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_MORE_QWEN_SPECIALS]
    tokens = [*tokenizers.byte_characters(), *filling, *specials]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ends = dict.fromkeys(("unk_token", "eos_token", "pad_token"), specials[0])
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
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


def _qwen_vl(name: str) -> Callable[[Path], None]:
    """Tokenizer, processor and model of `Qwen2VL` or `Qwen3VL`."""

    def make(folder: Path) -> None:
        import transformers

        tokenizer = _qwen_tokenizer()
        text: dict[str, Any] = {
            "vocab_size": QWEN_SPECIALS + 32,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
        }
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        token = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
        sizes: dict[str, Any] = {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}}
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


def _siglip() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
    }
    return SiglipVisionModel(SiglipVisionConfig(image_size=30, patch_size=2, **sizes)).eval()


def _processor(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**settings)

    return make


def _gemma3(folder: Path) -> None:
    from ...pipelines.tiny import build

    build("ltx2-t2v").text_encoder.save_pretrained(folder)  # type: ignore[attr-defined]
    tokenizers.gemma_tokenizer().save_pretrained(folder)


def _unets(folder: Path) -> None:
    from diffusers import UNet2DModel

    unet: Any = UNet2DModel
    for name, classes in (("test_unet", None), ("test_unet_class_cond", 10)):
        unet(
            sample_size=32,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=32,
            num_class_embeds=classes,
        ).eval().save_pretrained(folder / name)


def _mistral(folder: Path) -> None:
    from transformers import PixtralImageProcessor, PixtralProcessor

    tokenizer = tokenizers.gemma_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>", "").replace("<|im_end|>", "")
    picture = PixtralImageProcessor(size={"longest_edge": 32}, patch_size=16)
    PixtralProcessor(
        image_processor=picture, tokenizer=tokenizer, patch_size=16, chat_template=tokenizer.chat_template
    ).save_pretrained(folder)


STAND_INS: dict[str, Callable[[Path], None]] = {
    "hf-internal-testing/tiny-random-clip": _saved(tokenizers.clip_tokenizer),
    "hf-internal-testing/tiny-random-t5": _saved(tokenizers.t5_tokenizer, _t5),
    "hf-internal-testing/tiny-random-T5Model": _saved(tokenizers.t5_tokenizer, _t5),
    "hf-internal-testing/tiny-random-T5ForConditionalGeneration": _saved(tokenizers.t5_tokenizer, _t5),
    "hf-internal-testing/tiny-random-umt5": _saved(tokenizers.t5_tokenizer, _umt5),
    "hf-internal-testing/dummy-gemma": _saved(_small_gemma),
    "hf-internal-testing/tiny-gemma3": _gemma3,
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": _gemma3,
    "hf-internal-testing/tiny-random-BertModel": _bert,
    "hf-internal-testing/tiny-random-roberta": _saved(_roberta),
    "hf-internal-testing/tiny-random-ClapModel": _saved(_processor("ClapFeatureExtractor")),
    "hf-internal-testing/tiny-random-DPTForDepthEstimation": _saved(_processor("DPTImageProcessor")),
    "hf-internal-testing/tiny-random-SiglipVisionModel": _saved(
        _processor("SiglipImageProcessor", size={"height": 30, "width": 30}), _siglip
    ),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": _llama,
    "hf-internal-testing/llama-tokenizer": _llama_tokenizer,
    "finetrainers/dummy-hunyaunvideo": lambda folder: _llama_tokenizer(folder / "tokenizer"),
    "YiYiXu/tiny-random-mclip-base": _saved(_xlm_roberta),
    "Qwen/Qwen3-Embedding-0.6B": _saved(_qwen_tokenizer),
    "hf-internal-testing/tiny-cosmos3-modular-pipe": _saved(_qwen_tokenizer, under="text_tokenizer"),
    "hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration": _qwen_vl("Qwen2VL"),
    "huangfeice/tiny-random-Qwen3VLForConditionalGeneration": _qwen_vl("Qwen3VL"),
    "hf-internal-testing/Mistral-Small-3.1-24B-Instruct-2503-only-processor": _mistral,
    "diffusers/consistency-models-test": _unets,
    "THUDM/glm-4-9b-chat": _saved(tokenizers.gemma_tokenizer),
}
"""Name of a repository -> what fills its folder."""
