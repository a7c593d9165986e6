"""Models on disk: where they are, loading them whole, building them without weights, reading them tensor by tensor."""
