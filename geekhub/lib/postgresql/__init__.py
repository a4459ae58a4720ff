"""Django's PostgreSQL backend with an end to every wait; for DATABASES["default"]["ENGINE"]."""
