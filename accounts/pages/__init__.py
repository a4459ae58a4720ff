"""The pages of people and organizations: they translate, services decide."""
