"""Retention, a mechanism on unnormalised linear attention."""
