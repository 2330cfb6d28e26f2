"""Users, their roles in projects, and API tokens."""
