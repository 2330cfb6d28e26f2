"""Guests that are not of Pileus, looked at before they are taken over."""
