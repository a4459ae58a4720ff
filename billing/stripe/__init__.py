"""Everything that is said to Stripe or heard from it."""
