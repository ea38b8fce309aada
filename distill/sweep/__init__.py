"""Many students from one cache, of which the weak ones are not trained to the end."""
