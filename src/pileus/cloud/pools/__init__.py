"""Resource pools: hosts that belong together."""
