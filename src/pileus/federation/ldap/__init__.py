"""Directories, by LDAP (RFC 4511)."""
