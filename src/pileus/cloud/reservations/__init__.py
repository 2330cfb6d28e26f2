"""Addresses that are kept for machines outside of the cloud."""
