"""One worker process: the model on its device thread, the loops, and a heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg

from pgqueue_embed import registry
from pgqueue_embed.chunking import Chunker
from pgqueue_embed.connect import Connection, connect, first_line
from pgqueue_embed.embedding import DeviceThread, EmbeddingModel, Fingerprint, resolve_model
from pgqueue_embed.errors import ModelMismatch, PgembedError, SetupError
from pgqueue_embed.history import roll_up
from pgqueue_embed.log import get_logger
from pgqueue_embed.loop import Shared, run_loop
from pgqueue_embed.migrate import check_schema
from pgqueue_embed.pipelines import load_pipelines
from pgqueue_embed.settings import Pipeline, WorkerSettings

HEARTBEAT_SECONDS = 10.0
HOUSEKEEPING_SECONDS = 60.0
PIPELINE_REFRESH_SECONDS = 3.0
