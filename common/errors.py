"""The error that a user caused and can mend."""


class UserError(ValueError):
    """Bad input (unknown name, damaged file, impossible target): one line that says what is wrong and what to do.

    Command lines print the message to standard error and exit with status 2, without a traceback.
    """
