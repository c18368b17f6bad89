"""Training: one loop, and a task per network (features, teacher, student)."""
