"""The operations of Mamba and Mamba-2 with interchangeable backends; reference.py is their definition."""

BACKENDS = ("auto", "torch", "native", "triton", "mamba_ssm", "decomposed")


class Unsupported(ValueError):
    """A call that a backend cannot compute, although another one can; the message explains why."""
