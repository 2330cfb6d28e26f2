"""Looks at machine, engines and records, changes nothing, and judges nothing."""
