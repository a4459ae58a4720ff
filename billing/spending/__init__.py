"""Prices, holds, budgets and the ledger: what may be spent, and what was. Knows no Stripe."""
