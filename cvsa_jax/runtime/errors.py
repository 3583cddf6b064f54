"""How a command ends otherwise than well: with 2, where it is something a user can put right, and with 42 (of Ctrl-C:
130), where it was interrupted and the same command would go on. None ends with a traceback."""

USER_ERROR, INTERRUPTED = 2, 42  # exit codes


class UserError(Exception):
    """Says what is wrong, where, and what to do next."""


class Diverged(UserError):
    """The loss or the gradient of a training is not finite."""


class Interrupted(BaseException):
    """The process was asked to end (SIGTERM, Ctrl-C, or a notice that the machine is taken away); what is finished is
    kept. `code`: with which it ends."""

    def __init__(self, text: str, code: int = INTERRUPTED):
        super().__init__(text)
        self.code = code


def some(names, limit: int = 5) -> str:
    """The first few of many names, and how many there are besides."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + rest
