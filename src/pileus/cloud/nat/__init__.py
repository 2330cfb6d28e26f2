"""Translation of addresses besides floating IPs: port forwardings (DNAT), and rules of who goes out as whom (SNAT)."""
