"""Task `reward`: one number for a prompt with an answer, learned from pairs of answers."""
