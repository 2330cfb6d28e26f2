"""Backups: what volumes and whole instances were, kept in another storage pool than they are in."""
