"""Requests and responses of the service, and its HTTP clients."""
