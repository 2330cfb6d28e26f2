"""What this machine needs to be a host: packages, probes, the engines' daemons."""
