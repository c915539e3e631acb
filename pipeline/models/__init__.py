"""Trained models: a folder on disk, and what it answers."""
