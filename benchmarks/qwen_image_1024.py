"""Qwen-Image, 50 steps, one picture of 1024x1024: `python . benchmarks.qwen_image_1024`.

With true guidance 4, so that every step runs the model twice. Plain against compiled blocks, step caches and fp8, in
one process, interleaved. On a processor it runs a small model of the same shape, to try the script itself.
"""

from __future__ import annotations

from ..pipelines.types import SampleRequest
from .architectures import QWEN_IMAGE
from .compare_settings import main

PROMPT = "a lighthouse in the fog"
FULL = SampleRequest(PROMPT, steps=50, guidance=4.0, width=1024, height=1024)
SMALL = SampleRequest(PROMPT, steps=4, guidance=4.0, width=64, height=64)
COMPARE = "compile,compile+cudnn,cache-balanced,cache-fast,fp8,fp8+compile,fp8+compile+cudnn"

if __name__ == "__main__":
    main("qwen_image_1024", QWEN_IMAGE, FULL, SMALL, COMPARE)
