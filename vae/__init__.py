"""An exact, streaming, low-memory causal 3D video VAE (pixel-shuffle decoder). Pure torch; optionally Triton."""
