"""The daemon on a host: makes the desired records so, and tells what is."""
