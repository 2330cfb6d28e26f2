"""The channel between controller and agents: messages, certificates, discovery."""
