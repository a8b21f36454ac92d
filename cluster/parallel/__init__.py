"""One picture or clip over several cards: diffusers' context parallelism in processes of this machine, without Ray.

`client` is the host's side. The first process, `lead`, reads the host's lines as `cluster.child` has them; it starts
the others, `follow`, and all of them run the same pipeline with the same seed. Each call of the denoiser is split over
them (`split`), once a trial has shown that it gives what one process gives (`trial`).
"""
