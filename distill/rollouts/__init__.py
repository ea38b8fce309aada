"""The student's own text: which prompts it answers when, its answers, and what they are worth."""
