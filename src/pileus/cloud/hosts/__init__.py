"""The machines that instances run on."""
