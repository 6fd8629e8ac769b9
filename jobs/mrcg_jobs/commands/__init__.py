"""The commands of the batch side."""
