"""How a stage is executed: precision, compilation, noise, and the denoising step."""
