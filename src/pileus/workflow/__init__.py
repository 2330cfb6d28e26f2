"""Journalled steps with an undo each: every task completes or is undone."""
