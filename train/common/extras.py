"""What an optional extra of the package is missing for."""


class MissingExtraError(ImportError):
    """A package that only an optional extra installs is needed; the message names the extra."""
