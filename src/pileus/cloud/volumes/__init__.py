"""Volumes: block devices."""
