"""What each codec would cost and lose, measured before any training."""
