"""A local page and an API in which the adapters of one base model answer side by side."""

from ..extras import needs

needs("serving", "serve")
