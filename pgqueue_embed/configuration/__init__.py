"""pgembed.toml, the file in which pipelines are declared; see docs/configuration-file.md."""

from pgqueue_embed.configuration.database import declared_database
from pgqueue_embed.configuration.keys import ConfigurationError, Place
from pgqueue_embed.configuration.toml_file import DEFAULT_FILE, read_toml

__all__ = ["DEFAULT_FILE", "ConfigurationError", "Place", "declared_database", "read_toml"]
