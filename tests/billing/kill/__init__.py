"""The way of money from the hold to Stripe's meter, with SIGKILL at every seam."""
