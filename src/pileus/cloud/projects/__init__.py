"""Projects: who owns what, and how much of it."""
