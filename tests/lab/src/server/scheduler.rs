//! Which agent has room for a task.
