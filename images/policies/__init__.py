"""What stops a key that spends or asks unlike itself."""
