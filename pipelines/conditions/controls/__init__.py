"""Control models themselves: files of one, and the modes of those that read several kinds of pictures."""
