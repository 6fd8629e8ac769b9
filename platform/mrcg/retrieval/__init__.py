"""One search, whoever runs the stages: in this process or on a cluster."""
