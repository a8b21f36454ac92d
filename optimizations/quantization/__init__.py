"""Quantized weights: the schemes, their libraries' configurations, and what a loaded model holds."""
