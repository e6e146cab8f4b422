"""Files of queries, and of judgements which records answer them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgqueue_embed.errors import UsageError
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_bounded

MOST_QUERY_BYTES = 16 * 1024**2
MOST_JUDGEMENT_BYTES = 256 * 1024**2

# By the records that judges name: a query's relevance of each, 0 for one that does not answer it.
Judgements = dict[str, dict[str, float]]

TREC = "QUERY 0 KEY RELEVANCE"


@dataclass(frozen=True, kw_only=True)
class NamedQuery:
    """A query of a file; `id` is None for one that has nothing but its words."""

    id: str | None
    text: str


def read_queries(path: Path) -> list[NamedQuery]:
    """Return the queries of a file, one a line: the words, ID and words by a tab, or JSON.

    JSON is an object with id or _id, and text. Raises UsageError for a file that has none, or the
    same id twice.
    """
    lines = _lines(_read(path, "--queries", MOST_QUERY_BYTES))
    found = [
        _query(line.strip(), f"--queries {path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise UsageError(f"--queries {path} has no queries; write one a line")
    ids = [each.id for each in found if each.id is not None]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise UsageError(f"--queries {path} has two queries of id {twice}")
    return found


def _lines(text: str) -> list[str]:
    """Return the lines of a file; U+2028 and other ends of a line may stand in a text of JSON."""
    return re.split(r"\r\n|\r|\n", text)


def _query(line: str, place: str) -> NamedQuery:
    if line.startswith("{"):
        given = _json(line, place)
        name, text = given.get("_id", given.get("id")), given.get("text")
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{place} has no text; write " + '{"id": "1", "text": "words"}')
        return NamedQuery(id=None if name is None else str(name), text=text)
    name, tab, text = line.partition("\t")
    if not tab:
        return NamedQuery(id=None, text=line)
    return NamedQuery(id=name.strip(), text=text.strip())


def read_judgements(path: Path) -> Judgements:
    """Return the judgements of a file: TREC's qrels, or a JSON object of queries.

    A line of qrels is QUERY 0 KEY RELEVANCE; in JSON, a query has an object of keys with their
    relevance, or a list of the keys that answer it. Raises UsageError for anything else.
    """
    text = _read(path, "--judgements", MOST_JUDGEMENT_BYTES)
    place = f"--judgements {path}"
    found = _of_json(text, place) if text.lstrip().startswith("{") else _of_qrels(text, place)
    if not found:
        raise UsageError(f"{place} has no judgements; write lines of {TREC}, or JSON")
    return found


def _of_qrels(text: str, place: str) -> Judgements:
    found: Judgements = {}
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            query, key, relevance = _qrel(line, f"{place}, line {number}")
            judged = found.setdefault(query, {})
            if judged.setdefault(key, relevance) != relevance:
                raise UsageError(
                    f"{place}, line {number}: query {query} has another relevance of {key}, above"
                )
    return found


def _qrel(line: str, place: str) -> tuple[str, str, float]:
    # A key of several columns is JSON, and may have spaces: it is all between the second word
    # and the last.
    query, *rest = line.split(None, 2)
    key, *relevance = rest[1].rsplit(None, 1) if len(rest) == 2 else ("",)
    if not relevance:
        raise UsageError(f"{place} is not of the form {TREC}")
    return query, key.strip(), _relevance(relevance[0], place)


def _of_json(text: str, place: str) -> Judgements:
    found: Judgements = {}
    for query, judged in _json(text, place).items():
        if isinstance(judged, list):
            judged = dict.fromkeys(map(_key_text, judged), 1)
        if not isinstance(judged, dict):
            raise UsageError(
                f"{place}: query {query} has neither an object of keys with their relevance nor a"
                " list of keys"
            )
        found[query] = {key: _relevance(each, place) for key, each in judged.items()}
    return found


def _key_text(key: Any) -> str:
    """Return a key as it stands in the queue: of several columns, a JSON array."""
    return key if isinstance(key, str) else json.dumps(key)


def _relevance(value: Any, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < float("inf"):
        raise UsageError(f"{place}: the relevance {value!r} is not a number, such as 0 or 1")
    return number


def _json(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{place} is not a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; raises ValueError for one of whose values one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _read(path: Path, option: str, most_bytes: int) -> str:
    try:
        return read_bounded(path, most_bytes)
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from None
    except UnreadableFile as error:
        raise UsageError(f"{option} {path} cannot be read: {error}") from None


def judged_queries(
    queries: list[NamedQuery], judgements: Judgements, place: Path
) -> Iterator[tuple[str, str]]:
    """Yield the id and the words of each query that a relevant record is judged for.

    Raises UsageError for one that `queries`, of file `place`, lacks, or where there is none.
    """
    texts = {each.id: each.text for each in queries if each.id is not None}
    if not texts:
        raise UsageError(
            f"the queries of --queries {place} have no ids, by which --judgements names them; write"
            " each as ID, a tab and the words"
        )
    answered = [
        query for query, judged in judgements.items() if max(judged.values(), default=0) > 0
    ]
    if not answered:
        raise UsageError("--judgements: no query has a record of a relevance above 0")
    for query in answered:
        if query not in texts:
            raise UsageError(f"--judgements: query {query} is not in --queries {place}")
        yield query, texts[query]
