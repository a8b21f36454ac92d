"""Where weights come from: folders, single files, the Hub, quantized copies. Checks first, reads weights last."""
