"""Demonstrations: their storage, order, normalisation and augmentation."""
