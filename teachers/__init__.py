"""Where signals come from: load a teacher, run it once, write and read the signal cache."""
