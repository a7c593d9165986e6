"""Adapters on disk: reading and writing them, extracting, converting, combining, recommending and diagnosing them."""

from ..extras import needs

needs("work on saved adapters", "theory")
