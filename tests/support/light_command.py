"""The command `pgembed` whose workers have a model that costs nothing: `-m …light_command work`."""

from __future__ import annotations

from pgqueue_embed.__main__ import main
from pgqueue_embed.worker import supervisor
from tests.support.light import LIGHT_PROGRAM

if __name__ == "__main__":
    supervisor.WORKER_PROGRAM = LIGHT_PROGRAM
    main()
