"""A search for the keys of each arm's training, judged on the validation part."""
