"""The settings: one frozen tree (`settings`), read from a recipe and overrides (`loading`)."""
