"""The networks of Stable Diffusion in Keras 3 operations, each driven by a frozen configuration."""
