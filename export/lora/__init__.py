"""LoRAs in a built artifact: read from a file, laid over its layers, folded in and taken out again."""
