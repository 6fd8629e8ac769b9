"""The gRPC interface of the service: messages and stubs that ``make proto`` generates from ``retrieval.proto``."""
