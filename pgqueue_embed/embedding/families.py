"""Well-known families of models that were trained with prompts which their files may not name.

From their model cards. A model of one of them, used without, answers worse and says nothing.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from pgqueue_embed.embedding.facts import ModelFacts
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY, ModelUse


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models whose names match ``pattern``, and the prompts that they were trained with."""

    name: str
    pattern: re.Pattern[str]
    document_prompt: str
    query_prompt: str


def _family(name: str, pattern: str, *, query: str, document: str = "") -> Family:
    return Family(
        name=name,
        pattern=re.compile(pattern, re.IGNORECASE),
        document_prompt=document,
        query_prompt=query,
    )


_SEARCH = "Represent this sentence for searching relevant passages: "
_TASK = "Given a web search query, retrieve relevant passages that answer the query"

# The first that matches counts, so that what is narrower stands first.
FAMILIES = (
    _family(
        "E5 instruct",
        r"(^|/)(multilingual-)?e5-.*instruct",
        query=f"Instruct: {_TASK}\nQuery: ",
    ),
    _family("E5", r"(^|/)(multilingual-)?e5-", query="query: ", document="passage: "),
    _family("BGE (Chinese)", r"(^|/)bge-.*-zh", query="为这个句子生成表示以用于检索相关文章："),
    _family("BGE (English)", r"(^|/)bge-(small|base|large)-en", query=_SEARCH),
    _family(
        "Nomic", r"(^|/)nomic-embed-text", query="search_query: ", document="search_document: "
    ),
    _family(
        "modernbert-embed",
        r"(^|/)modernbert-embed",
        query="search_query: ",
        document="search_document: ",
    ),
    _family("GTE-Qwen", r"(^|/)gte-qwen", query=f"Instruct: {_TASK}\nQuery: "),
    _family("Qwen3-Embedding", r"(^|/)qwen3-embedding", query=f"Instruct: {_TASK}\nQuery:"),
    _family(
        "EmbeddingGemma",
        r"(^|/)embeddinggemma",
        query="task: search result | query: ",
        document="title: none | text: ",
    ),
    _family("mxbai", r"(^|/)mxbai-embed-(large|2d)", query=_SEARCH),
    _family("Snowflake Arctic 2", r"(^|/)snowflake-arctic-embed-[ml]-v2", query="query: "),
    _family("Snowflake Arctic", r"(^|/)snowflake-arctic-embed", query=_SEARCH),
)


def family_of(name: str) -> Family | None:
    """Return the family of a model by its name, or None."""
    return next((family for family in FAMILIES if family.pattern.search(name)), None)


def missing_prompts(facts: ModelFacts, use: ModelUse = AS_ITS_FILES_SAY) -> str | None:
    """Say which prompts a model was trained with and is used without, and the options for them.

    None if there are none, or if ``use`` wants it so.
    """
    family = family_of(facts.name)
    if family is None:
        return None
    missing = []
    if family.document_prompt and use.document_prompt is None and not facts.document_prompt:
        missing.append(_option("document", family.document_prompt))
    if family.query_prompt and use.query_prompt is None and not facts.query_prompt:
        missing.append(_option("query", family.query_prompt))
    if not missing:
        return None
    return (
        f"models of the family {family.name} are trained with prompts, and the files of"
        f" {facts.name} do not name them; say them: {' '.join(missing)}"
    )


def _option(task: str, prompt: str) -> str:
    escaped = prompt.replace("\n", "\\n")
    return f"--{task}-prompt {shlex.quote(escaped)}"
