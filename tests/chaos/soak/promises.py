"""The promises at every moment of the soak, and in the end."""

from __future__ import annotations

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.chaos.soak.state import Soak
from tests.support.oracle import assert_converged
from tests.support.vectors import assert_vectors_are_of_their_texts

# The first ones are changed by nobody: embedded once, they have vectors at every moment.
UNTOUCHED_RECORDS = 100

PAUSED = "select name, state_reason from pgembed.pipelines where state <> 'active'"

WITH_VECTORS = """
select count(distinct fulltext_id) from public.reports_chunks where fulltext_id <= %s
"""


def check_always(run: Soak) -> None:
    """Fail if a pipeline is paused, or a record without vectors that nobody has touched."""
    paused = run.execute(PAUSED)
    assert not paused, f"paused, though no fault is everybody's: {paused}"
    ((embedded,),) = run.execute(WITH_VECTORS, [UNTOUCHED_RECORDS])
    assert embedded == UNTOUCHED_RECORDS, f"only {embedded} untouched records have vectors"


def check_in_the_end(run: Soak, connection: Connection) -> None:
    """Fail unless every record is embedded with the text that it has, and nothing is left."""
    assert_converged(connection, "reports")
    assert_vectors_are_of_their_texts(connection)
    ((records, dead),) = connection.execute(
        "select count(*), count(*) filter (where state = 'dead') from pgembed.records"
    ).fetchall()
    assert dead == 0
    ((vectors,),) = connection.execute("select count(*) from public.reports_chunks").fetchall()
    assert enqueue(connection, load_pipeline(connection, "reports"), Selection()) == 0
    run.happened["records checked"] = records
    run.happened["vectors checked"] = vectors
