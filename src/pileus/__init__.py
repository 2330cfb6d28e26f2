"""Pileus, a private cloud in one package."""
