"""Verifies stored vectors: a random sample is embedded again and compared."""

from pgqueue_embed.verification.result import Compared, Group, Verification
from pgqueue_embed.verification.verify import put_back, verify

__all__ = ["Compared", "Group", "Verification", "put_back", "verify"]
