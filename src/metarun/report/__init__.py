"""Pages, tables and plots of runs. May import what stands below it: `few_shot`, `rl`, and all under them."""
