"""The spine: one file a stage."""
