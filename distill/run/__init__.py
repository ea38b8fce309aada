"""One recipe in one folder."""
