"""What Kantis remembers: PostgreSQL, rows in, core values out. No function here decides."""
