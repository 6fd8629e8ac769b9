"""Reading scans: bytes in, checked grey pixels out; near-duplicates; phantoms. No Ray, no torch."""
