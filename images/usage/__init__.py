"""Usage: closed hours summed, open ones counted, and every question about both."""
