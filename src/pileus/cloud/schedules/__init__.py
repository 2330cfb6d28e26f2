"""Schedules: snapshots and backups that are made again and again, and kept for as long as they are wanted."""
