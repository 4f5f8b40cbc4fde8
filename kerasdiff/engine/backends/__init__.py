"""One module for each of Keras's backends, with the same functions; `kerasdiff.engine.backend` picks one."""
