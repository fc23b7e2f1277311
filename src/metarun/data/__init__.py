"""Class banks, samplers of tasks, decoding of pictures; one file a source. May import `config` and below."""
