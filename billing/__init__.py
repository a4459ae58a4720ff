"""How much: prices, holds, the ledger, and its way into Stripe."""
