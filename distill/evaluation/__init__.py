"""What every model is measured on, and how."""
