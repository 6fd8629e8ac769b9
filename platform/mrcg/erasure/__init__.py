"""Erasing a patient or an image: what there is, what is removed, and the signed receipt."""
