"""What prompts may hold besides words: weights, changes from step to step, and tags."""
