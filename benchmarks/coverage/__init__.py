"""Which of diffusers' pipeline classes run in the pack, tried on tiny random models: `python . benchmarks.coverage`."""
