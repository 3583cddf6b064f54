"""The error of everything a user can put right: the commands print it without a traceback and exit with 2."""


class UserError(Exception):
    """Says what is wrong, where, and what to do next."""


class Diverged(UserError):
    """The loss or the gradient of a training is not finite."""


def some(names, limit: int = 5) -> str:
    """The first few of many names, and how many there are besides."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + rest
