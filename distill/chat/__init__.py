"""`distill chat`: who answers, conversations with models, the session at the terminal."""
