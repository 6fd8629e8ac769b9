"""Erasure of patients and images: finding their data, purging corpora, records and signed receipts."""
