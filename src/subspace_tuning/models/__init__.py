"""Models on disk: locating, loading, building without weights, and reading tensor by tensor."""
