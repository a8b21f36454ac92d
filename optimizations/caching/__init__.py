"""Step caching: one switch over two engines, cache-dit and diffusers' own hooks."""
