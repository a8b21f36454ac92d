"""A cluster for a host that Ray must not live in: a process of its own drives it, and JSON lines go over its pipes.

Ray ends the process that started it when its head dies. So it is never started in ComfyUI's: `client` is ComfyUI's
side, `driver` the process, `lines` what they say to each other.
"""
