"""What a run would take: tokens, disk, memory, time."""
