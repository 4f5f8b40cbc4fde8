"""One module for each of Keras's backends, with the same functions; `kerasdiff.runtime.backend` picks one."""
