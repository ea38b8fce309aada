"""What is done with finished caches: verify, measure, slice, merge, convert, mix."""
