"""A stand-in for xFormers: `ops.memory_efficient_attention` on the CPU."""

__version__ = "0.0.35"
