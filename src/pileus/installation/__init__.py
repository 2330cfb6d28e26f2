"""A whole cloud on one machine by one command: what `pileus up` does, and takes back."""
