"""Adapters on disk: reading and writing them, extracting, converting, combining, recommending and diagnosing them."""
