"""Django's settings, made from the environment."""

import secrets

from kantis.db.schema import APPS, database
from kantis.settings import read_settings

_settings = read_settings()

DEBUG = False
SECRET_KEY = secrets.token_urlsafe(50)  # nothing is signed yet that has to outlive the process
ALLOWED_HOSTS = [_settings.host, "localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = (*APPS, "kantis.site")
MIDDLEWARE = (
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
)
ROOT_URLCONF = "kantis.site.urls"
TEMPLATES = (
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
    },
)

DATABASES = {"default": database(_settings.database_url or _settings.cluster.url())}

LANGUAGE_CODE = "en"
USE_TZ = True
TIME_ZONE = "UTC"
LOGGING_CONFIG = None  # the process that serves decides
