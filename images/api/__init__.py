"""The OpenAI-shaped face of the gateway. The only code that knows an HTTP status."""
