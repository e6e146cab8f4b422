"""Log events of this process, and of what libraries say in it, without a secret."""

from pgqueue_embed.log.lines import (
    FORMATS,
    LEVELS,
    LOGGER,
    Forwarding,
    LogSettings,
    configure,
    get_logger,
)
from pgqueue_embed.log.masking import MOST_LOGGED_CHARACTERS, mask

__all__ = [
    "FORMATS",
    "LEVELS",
    "LOGGER",
    "MOST_LOGGED_CHARACTERS",
    "Forwarding",
    "LogSettings",
    "configure",
    "get_logger",
    "mask",
]
