"""The long proofs of money: `make prove`."""
