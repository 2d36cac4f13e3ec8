"""The addresses of people's pages."""

from django.urls import path

from kantis.site import views

urlpatterns = [
    path("", views.home, name="home"),
    path("health", views.health, name="health"),
    path("ready", views.ready, name="ready"),
]
