"""The interface of KerasCV, and its models that are already in memory."""
