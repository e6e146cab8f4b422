"""Checks, one after the other, for whatever keeps work from running, each with its remedy."""

from pgqueue_embed.doctor.check import Check, Mark
from pgqueue_embed.doctor.examination import examine

__all__ = ["Check", "Mark", "examine"]
