"""What the user got wrong, told apart from what we got wrong."""


class UserError(ValueError):
    """A mistake of the user's. The message is one line: what was wrong and what to do.

    The command line prints it and exits with status 2; every other exception is a bug of ours
    and keeps its traceback.
    """
