"""The pages alone, without /v1: for a debugger or a host that speaks only WSGI."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "geekhub.settings")
application = get_wsgi_application()
