//! Runs one task on its agent: fetches, starts, checks, kills, and keeps `status.json` current.
