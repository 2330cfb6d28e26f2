"""Networks, subnets, routers and ports."""
