"""Sources of a task's rows: files, the hub, and generated sentences."""
