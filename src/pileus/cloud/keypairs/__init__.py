"""SSH public keys of people."""
