"""The jobs that outlive a request."""
