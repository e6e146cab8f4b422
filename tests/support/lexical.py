"""Pipelines whose chunks have words, and BM25 in a few lines of Python."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from psycopg import sql

from pgqueue_embed.db.packed import pack_reals
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import lexical
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.pipelines import make_pipeline

QUERY = np.eye(1, 8, dtype=np.float32)[0]
HAN = "电池过热支架断裂导管输送系统"
WORDS = [
    *("stent", "the", "The", "battery", "naïve", "don't", "and/or", "a", "b2", "1.5", "2026-01-15"),
    *("AB-1234", "AB1234", "ab-1234", "H749-39236-10", "K_12.7", "x-y", "42", "-42", "1e5", "foo."),
]
TEXTS = [
    *(f"the catheter number {at} was used as it is" for at in range(150)),
    "型号AB-1234 电池过热。",
    "lot no. LOT00917/3, the stent fractured",
]
FILL = """
insert into {target} (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens,
    embedding)
select n, n::text, 0, text, 0, length(text), 1,
    array[cosd(n), sind(n), 0, 0, 0, 0, 0, 0]::real[]::public.vector
from unnest(%s::text[]) with ordinality as listed (text, n)
"""


def fill(connection: Connection, texts: Sequence[str], **fields: object) -> Pipeline:
    """Make pipeline reports with a chunk of each text, whose vectors turn away from QUERY."""
    connection.execute(
        "create table public.reports as select n as id, body, n %% 2 as kind"
        " from unnest(%s::text[]) with ordinality as listed (body, n)",
        (list(texts),),
    )
    connection.execute("alter table public.reports add primary key (id)")
    pipeline = make_pipeline(connection, **fields)  # type: ignore[arg-type]
    connection.execute(sql.SQL(FILL).format(target=pipeline.target.identifier), (list(texts),))
    return pipeline


def ask(connection: Connection, pipeline: Pipeline, words: str, **asked: object) -> list[Hit]:
    request = SearchRequest(words=words, **{"threshold": -1.0, **asked})  # type: ignore[arg-type]
    return search(connection, pipeline, QUERY, request)


def terms(text: str) -> list[str]:
    """Return the terms of a text as the documentation tells them."""
    found = re.findall(r"[0-9a-zï]+", text.lower())
    for han in re.findall(f"[{HAN}]+", text):
        found += [han[at : at + 2] for at in range(len(han) - 1)]
    for each in re.findall(r"[0-9a-z]+(?:[-./_][0-9a-z]+)+", text.lower()):
        found += [re.sub("[-./_]", "", each)] if re.search(r"\d", each) else []
    return found


def in_bytes(text: str) -> int:
    """Return the length of a text."""
    return len(text.encode())


def in_terms(text: str) -> int:
    """Return the length of a text."""
    return len(terms(text))


def bm25(
    texts: Sequence[str], query: str, length_of: Callable[[str], int] = in_bytes
) -> list[float]:
    """Return the score of each text; k1 is 1.2 and b 0.75."""
    bags = [Counter(terms(text)) for text in texts]
    sizes = [length_of(text) for text in texts]
    scores = [0.0] * len(texts)
    for term in set(terms(query)):
        having = sum(term in bag for bag in bags)
        weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for at, bag in enumerate(bags):
            length = 0.25 + 0.75 * sizes[at] * len(texts) / sum(sizes)
            scores[at] += weight * bag[term] * 2.2 / (bag[term] + 1.2 * length)
    return scores


def random_text(source: random.Random, most: int) -> str:
    parts = [
        "".join(source.choices(HAN, k=source.randint(1, 6)))
        if source.random() < 0.3
        else source.choice(WORDS)
        for _ in range(source.randint(1, most))
    ]
    # Han runs stand beside words with nothing between them, too; words do not.
    text = parts[0]
    for part in parts[1:]:
        glued = source.random() < 0.5 and (text[-1] in HAN) != (part[0] in HAN)
        text += part if glued else " " + part
    return text


def by_words(connection: Connection, pipeline: Pipeline, words: str) -> list[tuple[Any, ...]]:
    """Return all that has any of the words: no more candidates than there are."""
    statement, scan = connection.row(
        "select pgembed.lexical_statement(pipelines, pgembed.chunk_rows(pipelines), null, '{}'),"
        " pgembed.lexical_scan(pipelines) from pgembed.pipelines"
    )
    vector = pack_reals(QUERY)
    steps = lexical.ranked_by_words(pipeline, statement, vector, words, 10_000, scan)
    return run(connection, steps)


def keys(hits: Sequence[Hit]) -> list[str]:
    return [hit.key_text for hit in hits]
