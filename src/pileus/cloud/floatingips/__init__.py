"""External addresses that follow a port."""
