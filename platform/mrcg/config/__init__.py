"""Settings: one frozen tree (`settings`), loaded from a recipe and overrides (`loading`)."""
