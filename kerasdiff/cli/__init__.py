"""The programs of the command line: options, commands, and what they print."""
