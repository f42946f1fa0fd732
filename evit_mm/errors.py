"""The errors that the tools print as one sentence; a leaf that every part may import."""


class UserError(Exception):
    """A mistake of the user, told in one sentence; the tools print it without a traceback."""


class ConfigError(UserError, ValueError):
    """A config or constructor argument that can't work; names the value and the choices."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that can't be read, is not safe, or is not for this model."""
