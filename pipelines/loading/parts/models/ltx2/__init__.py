"""LTX-2 and LTX-2.3: their families, and their components in files of their own or all in one."""

from .families import FAMILIES, is_later

__all__ = ["FAMILIES", "is_later"]
