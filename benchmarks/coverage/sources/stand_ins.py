"""Small models and tokenizers of our own under the Hub names that diffusers' test cases ask for.

The cases name repositories of the Hub for what they do not build themselves. Here each name gets something of the same
class that was made from nothing, in the layout of the Hub's cache, so that the cases build without a network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ....pipelines.tiny import tokenizers
from . import text_stand_ins as texts

REVISION = "0" * 40


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
    from ....pipelines.tiny import build

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
    tokenizer.chat_template = texts.CHAT_TEMPLATE.replace("<|im_start|>", "").replace("<|im_end|>", "")
    picture = PixtralImageProcessor(size={"longest_edge": 32}, patch_size=16)
    PixtralProcessor(
        image_processor=picture, tokenizer=tokenizer, patch_size=16, chat_template=tokenizer.chat_template
    ).save_pretrained(folder)


STAND_INS: dict[str, Callable[[Path], None]] = {
    "hf-internal-testing/tiny-random-clip": _saved(tokenizers.clip_tokenizer),
    "hf-internal-testing/tiny-random-t5": _saved(tokenizers.t5_tokenizer, texts.t5),
    "hf-internal-testing/tiny-random-T5Model": _saved(tokenizers.t5_tokenizer, texts.t5),
    "hf-internal-testing/tiny-random-T5ForConditionalGeneration": _saved(tokenizers.t5_tokenizer, texts.t5),
    "hf-internal-testing/tiny-random-umt5": _saved(tokenizers.t5_tokenizer, texts.umt5),
    "hf-internal-testing/dummy-gemma": _saved(texts.small_gemma),
    "hf-internal-testing/tiny-gemma3": _gemma3,
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": _gemma3,
    "hf-internal-testing/tiny-random-BertModel": texts.bert,
    "hf-internal-testing/tiny-random-roberta": _saved(texts.roberta),
    "hf-internal-testing/tiny-random-ClapModel": _saved(_processor("ClapFeatureExtractor")),
    "hf-internal-testing/tiny-random-DPTForDepthEstimation": _saved(_processor("DPTImageProcessor")),
    "hf-internal-testing/tiny-random-SiglipVisionModel": _saved(
        _processor("SiglipImageProcessor", size={"height": 30, "width": 30}), _siglip
    ),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": texts.llama,
    "hf-internal-testing/tiny-random-chatglm3-6b": texts.chatglm,
    "hf-internal-testing/llama-tokenizer": texts.llama_tokenizer,
    "finetrainers/dummy-hunyaunvideo": lambda folder: texts.llama_tokenizer(folder / "tokenizer"),
    "YiYiXu/tiny-random-mclip-base": _saved(texts.xlm_roberta),
    "Qwen/Qwen3-Embedding-0.6B": _saved(texts.qwen_tokenizer),
    "hf-internal-testing/tiny-cosmos3-modular-pipe": _saved(texts.qwen_tokenizer, under="text_tokenizer"),
    "hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration": texts.qwen_vl("Qwen2VL"),
    "huangfeice/tiny-random-Qwen3VLForConditionalGeneration": texts.qwen_vl("Qwen3VL"),
    "hf-internal-testing/Mistral-Small-3.1-24B-Instruct-2503-only-processor": _mistral,
    "diffusers/consistency-models-test": _unets,
    "THUDM/glm-4-9b-chat": _saved(tokenizers.gemma_tokenizer),
}
"""Name of a repository -> what fills its folder."""
