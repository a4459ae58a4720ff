"""Where pictures rest: one contract, three stores, and a spool for their outages."""
