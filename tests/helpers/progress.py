"""A listener that remembers what it hears of progress."""


class Heard:
    """The events of progress, in their order: (event, what, done, total, finished)."""

    def __init__(self):
        self.events = []

    def hear(self, event, work):
        self.events.append((event, work.what, work.done, work.total, work.finished))

    def steps(self):
        """How far the work had come at each change."""
        return [(done, total) for event, _, done, total, _ in self.events if event == "change"]
