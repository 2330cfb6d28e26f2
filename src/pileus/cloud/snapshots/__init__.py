"""Snapshots: what volumes and whole instances were at a moment."""
