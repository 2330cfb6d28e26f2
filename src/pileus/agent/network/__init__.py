"""The port to what connects guests on a host, and its drivers."""
