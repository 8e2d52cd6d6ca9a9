"""What a host refuses: each error is one line that says what and where."""


class HostError(ValueError):
    """A host cannot do what was asked."""


class UnsupportedModel(HostError):
    """The model is of a family, or has a setting, that no host here can open stage by stage."""


class BadInput(HostError):
    """A picture, a question or a ratio that cannot be run; the message names the row."""


class CountMismatch(HostError):
    """A compressor gave another number of tokens, or other tokens, than it may."""


class WrongStop(HostError):
    """A stage was asked for after it has passed."""
