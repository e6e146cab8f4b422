"""A database with schema pgembed, as an object: where pipelines are made and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from warnings import warn

from pgqueue_embed import adopt as adopting
from pgqueue_embed.api.arguments import given_options, pipeline_name, unusual
from pgqueue_embed.api.explained import explained, opened
from pgqueue_embed.api.pipeline import Pipeline, sessions_of
from pgqueue_embed.configuration.conninfo import DatabaseOptions, resolve_conninfo
from pgqueue_embed.configuration.existing import make_or_keep
from pgqueue_embed.db import migrate
from pgqueue_embed.db.dsn import describe_dsn
from pgqueue_embed.lifecycle.create import Created, create
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.options import spec_of_options
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from pgqueue_embed.pipeline.spec import PipelineSpec


class Database:
    """The PostgreSQL database that holds the queue and, beside it, the tables.

    Opens no connection before one is needed, and keeps open those of searches alone.

    Example::

        database = Database("postgresql://app@db.lan/reports")
        database.migrate()
    """

    def __init__(self, dsn: str | None = None) -> None:
        """Take a URL (SQLAlchemy's too) or a libpq connection string.

        Defaults to what the command line would use: PGEMBED_DSN, PGEMBED_DSN_FILE,
        DATABASE_URL, the PG* variables, or else the private server, which is started. Raises
        UsageError for a string that cannot be read.
        """
        with explained():
            self.conninfo = resolve_conninfo(DatabaseOptions(dsn=dsn))
        self._sessions = sessions_of(self.conninfo)

    @explained()
    def close(self) -> None:
        """End the sessions that searches of its pipelines keep; later ones open theirs anew.

        They end with the last of these objects, too.

        Example::

            database.close()
        """
        self._sessions.close()

    def __repr__(self) -> str:
        return f"Database({describe_dsn(self.conninfo)})"

    @explained()
    def migrate(self) -> list[str]:
        """Create or upgrade schema pgembed; returns what was applied, nothing if up to date.

        Safe from many processes at once.

        Example::

            Database().migrate()
        """
        with explained():
            return migrate.migrate(self.conninfo)

    @explained()
    def create(
        self,
        name: str,
        *,
        source_table: str,
        target_table: str | None = None,
        into_column: str | None = None,
        schema: str = "public",
        id_field: str | Sequence[str] = "id",
        text_field: str | Sequence[str] | None = None,
        template: str | None = None,
        chunk_template: str | None = None,
        where: str | None = None,
        target_columns: Mapping[str, str] | None = None,
        text: bool = True,
        ids: bool = True,
        copy_columns: str | Sequence[str] = (),
        foreign_key: bool = False,
        view: bool = False,
        partition_by: str | None = None,
        trust_owners: bool = False,
        vector_type: str = PipelineSpec.vector_type,
        truncate_dim: int | None = None,
        model: str = DEFAULT_MODEL,
        document_prompt: str | None = None,
        query_prompt: str | None = None,
        control_tokens: bool = False,
        pooling: str | None = None,
        chunking: str = PipelineSpec.chunking,
        chunk_size: int = PipelineSpec.chunk_tokens,
        overlap_tokens: int = PipelineSpec.overlap_tokens,
        max_attempts: int = PipelineSpec.max_attempts,
        priority: int = PipelineSpec.priority,
        index: str | None = None,
        quantize: str = PipelineSpec.quantize,
        lexical: bool = PipelineSpec.lexical,
        sync: bool = False,
        if_not_exists: bool = False,
    ) -> Pipeline:
        """Make a pipeline and its target, both or neither, and return the pipeline.

        The arguments are the options of ``pgembed create``; `target_columns` maps meanings to
        names, and without `text_field` and `template` the text is in column ``text``. With `sync`,
        triggers capture changes of the source. With `if_not_exists`, a pipeline of this name is
        returned as it is, if it has the arguments that are not the default. Warns when the model
        does not know much of the text. Raises UsageError for what is wrong with the tables or the
        arguments, ModelError for a model that is not to be had.

        Example::

            reports = database.create("reports", source_table="event_text", text_field="foi_text")
        """
        given = given_options(locals())
        spec = spec_of_options(name, given)
        for warning in self._create(spec, given, model, sync=sync, if_not_exists=if_not_exists):
            # Behind the frame that explains errors.
            warn(warning, stacklevel=3)
        return Pipeline(self.conninfo, name, self._sessions)

    def _create(
        self,
        spec: PipelineSpec,
        given: Mapping[str, object],
        model: str,
        *,
        sync: bool,
        if_not_exists: bool,
    ) -> Sequence[str]:
        """Make the pipeline, or keep the one of its name if that may be; returns the warnings."""
        with opened(self.conninfo) as connection:

            def make() -> Created:
                return create(connection, spec, model, sync=sync)

            if not if_not_exists:
                return make().warnings
            created = make_or_keep(connection, spec.name, unusual(given), make)
            return created.warnings if created else ()

    @explained()
    def adopt(
        self,
        name: str,
        *,
        source_table: str,
        target_table: str | None = None,
        schema: str = "public",
        id_field: str | Sequence[str] = "id",
        text_field: str | Sequence[str] | None = None,
        template: str | None = None,
        where: str | None = None,
        target_columns: Mapping[str, str] | None = None,
        model: str = DEFAULT_MODEL,
        document_prompt: str | None = None,
        query_prompt: str | None = None,
        control_tokens: bool = False,
        pooling: str | None = None,
        chunk_size: int = PipelineSpec.chunk_tokens,
        overlap_tokens: int = PipelineSpec.overlap_tokens,
        min_cosine: float = adopting.MIN_COSINE,
        sample: int = adopting.SAMPLE_CHUNKS,
    ) -> Pipeline:
        """Make a pipeline of a table of vectors, queue what is wrong in it, and return it.

        The arguments are the options of ``pgembed adopt``; see docs/adopting.md. Interrupted, it
        goes on where it stopped when called again. Raises UsageError for a table that cannot be
        adopted, or whose vectors are not the model's, ModelError for a model that is not to be had.

        Example::

            reports = database.adopt(
                "reports", source_table="event_text", text_field="foi_text", min_cosine=0.95
            )
        """
        spec = spec_of_options(name, given_options(locals()))
        with opened(self.conninfo) as connection:
            adopting.adopt(connection, spec, model, sample_chunks=sample, min_cosine=min_cosine)
        return Pipeline(self.conninfo, name, self._sessions)

    @explained()
    def pipeline(self, name: str) -> Pipeline:
        """Return the pipeline called `name`; raises UsageError when there is none.

        Example::

            reports = database.pipeline("reports")
        """
        with opened(self.conninfo) as connection:
            return Pipeline(
                self.conninfo, load_pipeline(connection, pipeline_name(name)).name, self._sessions
            )

    @explained()
    def pipelines(self) -> list[Pipeline]:
        """Return every pipeline of the database.

        Example::

            print([pipeline.progress().percent for pipeline in database.pipelines()])
        """
        with opened(self.conninfo) as connection:
            return [
                Pipeline(self.conninfo, each.name, self._sessions)
                for each in load_pipelines(connection)
            ]
