"""What goes over the wire: requests, responses and the client of a service."""
