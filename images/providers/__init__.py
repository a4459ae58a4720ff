"""One file per provider on one base. No database, no request, no settings."""
