"""Servers that run a model: SGLang-Diffusion and vLLM-Omni, over HTTP. The only folder that talks to one."""
