"""Measure, compare, remember and decide: what "auto" rests on. Changes a pipeline only through `apply`."""
