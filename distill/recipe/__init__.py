"""The recipe: its schema, how it is read, and how its mistakes are explained."""
