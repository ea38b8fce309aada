"""Work on finished caches: verify, measure, slice, merge, convert, and mix them."""
