"""Images: what volumes are copies of."""
