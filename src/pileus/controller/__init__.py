"""Composition of a controller: the one place that knows what is behind each port."""
