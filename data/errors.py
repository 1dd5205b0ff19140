"""The error of missing, damaged or unsuitable data."""


class DataError(ValueError):
    """A data set is missing or damaged, or a setting does not fit it: one line that says what is wrong and what to do.

    Command lines print the message to standard error and exit with status 2, without a traceback.
    """
