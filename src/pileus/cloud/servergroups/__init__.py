"""Server groups: instances to be kept apart or together."""
