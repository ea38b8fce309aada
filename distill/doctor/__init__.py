"""`distill doctor`: invariances checked on a user's own recipe."""
