"""Ways to do a task compared on a user's own rows: prompting, features, tuning, distilling."""
