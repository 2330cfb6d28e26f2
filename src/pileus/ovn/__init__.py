"""Open Virtual Network: our records projected to its northbound database."""
