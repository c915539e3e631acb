"""Numerics that know no head: what is minimised, and how."""
