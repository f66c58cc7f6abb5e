"""What a backend says when it cannot compute a call."""


class Unsupported(ValueError):
    """A call that a backend cannot compute, although another one can; the message is a sentence that says why."""
