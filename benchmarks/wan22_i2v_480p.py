"""Wan 2.2 image to video, 81 frames of 832x480 with guidance: `python . benchmarks.wan22_i2v_480p`.

The size for which others publish seconds per step of a 14B model with guidance, that is with two runs of the model per
step. Two steps, one for each expert, are enough to time one: "step" is the column to read. On a processor it runs a
small model of the same shape, to try the script itself.
"""

from __future__ import annotations

from ..pipelines.types import SampleRequest
from .architectures import WAN22_I2V
from .compare_settings import main

PROMPT = "a ship leaves the harbour"
FULL = SampleRequest(PROMPT, steps=2, guidance=3.5, guidance_2=3.5, width=832, height=480, num_frames=81)
SMALL = SampleRequest(PROMPT, steps=2, guidance=3.5, guidance_2=3.5, width=64, height=64, num_frames=5)
COMPARE = "compile,cudnn,compile+cudnn,fused,fused+compile,fp8+compile+cudnn"

if __name__ == "__main__":
    main("wan22_i2v_480p", WAN22_I2V, FULL, SMALL, COMPARE)
