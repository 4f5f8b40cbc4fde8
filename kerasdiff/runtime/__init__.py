"""How a stage is executed: backend, precision, compilation, memory and what is cached."""
