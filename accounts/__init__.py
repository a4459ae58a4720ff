"""Who: people, organizations, API keys and the audit log."""
