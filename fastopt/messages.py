"""What fastopt says beside results and exceptions: classes of warnings, to filter by, and the logger ``"fastopt"``.

A warning means that a call is probably not what was meant, or gave less than was asked for. The logger has what is
worth knowing of runs beside that, such as their end by Ctrl-C; it is silent unless the program configures `logging`.
What is asked for (``progress=True``, ``verbose=1``, `fastopt.nn.Lines`, the command ``fastopt``) is printed.

>>> import logging, warnings
>>> import fastopt
>>> logging.basicConfig(level="INFO")  # or logging.getLogger("fastopt").addHandler(…)
>>> warnings.filterwarnings("ignore", category=fastopt.LayoutWarning)
"""

from __future__ import annotations

import logging

__all__ = ["FastoptWarning", "LayoutWarning", "TrainingWarning"]

#: Levels: WARNING where a run has ended early, INFO where one goes on from a file, DEBUG for each run that begins.
logger = logging.getLogger("fastopt")
logger.addHandler(logging.NullHandler())


class FastoptWarning(UserWarning):
    """The base class of all warnings of fastopt.

    Examples
    --------
    >>> import warnings
    >>> import fastopt
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", fastopt.FastoptWarning)  # a mistake ends the program
    """


class LayoutWarning(FastoptWarning):
    """Images or weights look as if channels came first, and were taken as channels last.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> import fastopt
    >>> from fastopt import functional as F
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     pooled = F.max_pool_forward(np.ones((77, 3, 32, 32)), 2)
    >>> [each.category is fastopt.LayoutWarning for each in caught]
    [True]
    """


class TrainingWarning(FastoptWarning):
    """An estimator of `fastopt.sklearn` was not trained as its parameters say: batches were made smaller, Ctrl-C ended
    the run, or it has not converged; scikit-learn warns of the same.

    Examples
    --------
    >>> import warnings
    >>> import fastopt
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", fastopt.TrainingWarning)
    """
