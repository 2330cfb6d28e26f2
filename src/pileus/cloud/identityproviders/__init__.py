"""Identity providers: who says who somebody is besides this cloud's own passwords, and what that gives them here."""
