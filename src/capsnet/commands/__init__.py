"""The commands, one a file: a dataclass is its flags and its help, its `run` says what it does, step by step."""
