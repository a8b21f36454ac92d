"""Wan 2.2 image to video as the preset wan22-4step runs it: `python . benchmarks.wan22_i2v`.

Two experts of 2 steps each, guidance 1, 81 frames of 832x1216: the case in which plain was the fastest on a card with
32 GiB, because compiled code took the memory that the weights needed. A run takes long, so that few settings are
compared by default; `wan22_i2v_480p.py` compares more. On a processor it runs a small model of the same shape, to try
the script itself.
"""

from __future__ import annotations

from ..comparison.presets import preset
from ..pipelines.types import SampleRequest
from .architectures import WAN22_I2V
from .compare_settings import main

WAN = preset("wan22-4step")
COMPARE = "cudnn,compile+cudnn"
FULL = WAN.apply(SampleRequest("a ship leaves the harbour"))
SMALL = WAN.apply(SampleRequest("a ship leaves the harbour", width=64, height=64, num_frames=5))

if __name__ == "__main__":
    main("wan22_i2v", WAN22_I2V, FULL, SMALL, COMPARE)
