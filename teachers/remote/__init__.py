"""Teachers on a server: asked over HTTP for log-probabilities, probed before they are believed."""
