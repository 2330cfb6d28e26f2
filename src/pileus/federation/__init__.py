"""Drivers of the identity port: how directories and OpenID providers are asked who somebody is."""
