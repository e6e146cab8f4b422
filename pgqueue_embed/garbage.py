"""The garbage that Python looks for, less often than it would by itself.

It is of objects that refer to one another in a circle: all others are freed as soon as nothing
refers to them. Python looks whenever there are some hundred objects more than before, which the
records of one claim are many times over: it would go through each of them several times.
"""

import gc

# A look takes a millisecond then, and what waits for it a few megabytes. With 50,000 or 200,000 a
# worker was no faster.
OBJECTS_BEFORE_A_LOOK = 20_000
LOOKS_BEFORE_AN_OLDER_ONE = 20

USUAL = gc.get_threshold()


def collect_seldom() -> None:
    """Let this process look for garbage less often; for programs of ours, not for a host's."""
    gc.set_threshold(OBJECTS_BEFORE_A_LOOK, LOOKS_BEFORE_AN_OLDER_ONE, LOOKS_BEFORE_AN_OLDER_ONE)


def collect_as_usual() -> None:
    """Let this process look for garbage as Python does; for servers.

    A request leaves a few objects in a circle, such as an error with the frames that it went
    through, which may hold its body several times: of a hundred requests, gigabytes.
    """
    gc.set_threshold(*USUAL)
