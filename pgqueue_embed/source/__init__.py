"""The source table: checked, and read."""
