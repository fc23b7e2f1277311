"""The machine under a run: its devices, processes, files and terminal. May import `types` and `errors` alone."""
