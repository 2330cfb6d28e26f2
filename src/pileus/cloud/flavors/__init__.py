"""Sizes of instances."""
