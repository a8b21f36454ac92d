"""One picture or clip over several cards, in processes of this machine and without Ray: diffusers' context parallelism,
or guidance's two branches.

`client` is the host's side. The first process, `lead`, reads the host's lines as `cluster.child` has them; it starts
the others, `follow`, and all of them run the same pipeline with the same seed. Each call of the denoiser is split over
them (`split`, `branches`), once a trial has shown that it gives what one process gives (`trial`). The tiles of a decode
are shared too (`tiles`).
"""
