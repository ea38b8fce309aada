"""From a teacher's tokens to a student's: distributions over the student's ids at its positions."""
