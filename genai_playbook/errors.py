"The one error a user is meant to see"

__all__ = ['PlaybookError']


class PlaybookError(Exception):
    "What the user can mend, in one sentence; the command line prints it alone and exits with `exit_code`"
    exit_code = 2
