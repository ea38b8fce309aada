"""Tasks, one folder each: what differs between predicting the next token and labelling a text."""
