"""Pseudonyms, signatures, the suppression list and tombstones."""
