"""Schedules: snapshots that are taken again and again, and kept for as long as they are wanted."""
