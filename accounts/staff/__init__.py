"""People, keys and the audit log for staff, and what all staff lists share."""
