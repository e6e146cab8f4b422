"""PostgreSQL-as-queue workers that turn a text column into pgvector rows."""

__version__ = "0.1.0"
