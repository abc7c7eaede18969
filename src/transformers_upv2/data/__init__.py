"""Readers of real data formats, and the demo world that is written in them."""
