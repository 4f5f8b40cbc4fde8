"""What users bring to a model: LoRA and its family, and words of their own."""
