"""The signal cache on disk: its section of the recipe, and how it is written and read."""
