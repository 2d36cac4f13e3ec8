"""What Kantis remembers: PostgreSQL."""
