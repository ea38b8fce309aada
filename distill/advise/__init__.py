"""Which ways fit a task, a machine and a number of labels, said before any of them runs."""
