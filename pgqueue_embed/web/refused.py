"""A request that is not done, and why."""

from __future__ import annotations


class PageRefused(Exception):
    """What is shown in place of a page, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
