"""Networks: the only files that know Flax. May import `system`, `types` and `errors`."""
