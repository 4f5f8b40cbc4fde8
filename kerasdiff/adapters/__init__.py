"""What users bring to a model: LoRA and its family, and embeddings (textual inversion)."""
