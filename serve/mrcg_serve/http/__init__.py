"""The HTTP interface of the service: the application, its routes and request parsing."""
