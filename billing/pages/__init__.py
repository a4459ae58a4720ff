"""The billing pages: they translate, services decide."""
