"""The signal cache on disk: what a recipe says of it, how it is written and read."""
