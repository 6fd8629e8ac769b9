"""What gRPC carries: messages and stubs made from ``retrieval.proto`` by ``make proto``."""
