"""Backups: the chunks and manifests that they are kept as, and the places where these lie."""
