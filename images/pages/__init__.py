"""The dashboard's pages: they translate, services decide."""
