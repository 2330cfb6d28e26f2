"""Instances: virtual machines."""
