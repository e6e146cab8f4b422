"""Cut documents into token-exact, verbatim chunks without loading a model."""

from pgqueue_embed.chunking.chunk import Chunk, ChunkedDocument
from pgqueue_embed.chunking.chunker import Chunker
from pgqueue_embed.chunking.context import Context

__all__ = ["Chunk", "ChunkedDocument", "Chunker", "Context"]
