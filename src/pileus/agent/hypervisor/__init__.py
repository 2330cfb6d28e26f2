"""The port to what runs guests, and its drivers."""
