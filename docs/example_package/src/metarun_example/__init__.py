"""Four additions to metarun; its entry point in `metarun.plugins` names this package."""
