"""Where parameters come from: the embedded model, random numbers, a live KerasCV model."""
