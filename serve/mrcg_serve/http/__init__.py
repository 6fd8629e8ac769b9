"""The service over HTTP: the application, its routes and what they parse."""
