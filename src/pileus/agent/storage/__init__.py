"""The port to what keeps volumes, and its drivers."""
