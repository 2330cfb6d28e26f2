"""Records in memory, logged before a change is acknowledged."""
