"""Where a task's rows come from: files, the hub, and sentences made here."""
