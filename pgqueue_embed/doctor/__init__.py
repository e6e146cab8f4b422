"""What keeps work from running, and how to put it right: one check after the other."""

from pgqueue_embed.doctor.check import Check, Mark
from pgqueue_embed.doctor.examination import examine

__all__ = ["Check", "Mark", "examine"]
