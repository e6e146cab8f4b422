"""The command `pgembed` whose workers have a model that costs nothing: `-m …light_command work`."""

from __future__ import annotations

from pgqueue_embed.__main__ import main
from pgqueue_embed.worker import supervisor

# By its name: the command itself loads no model and no array, as the real one does not.
LIGHT_PROGRAM = "tests.support.light_worker"

if __name__ == "__main__":
    supervisor.WORKER_PROGRAM = LIGHT_PROGRAM
    main()
