"""`distill plan`: the tokens, disk, memory and time that a run would take."""
