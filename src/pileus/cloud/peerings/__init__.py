"""Peerings: VPCs that reach each other."""
