"""Names of our sessions, as `pg_stat_activity.application_name` shows them."""

from __future__ import annotations

COMMAND = "pgembed"
CLAIM = "pgembed claim"
SIDE = "pgembed side"
HEARTBEAT = "pgembed heartbeat"
MIGRATE = "pgembed migrate"
APPLY = "pgembed apply"
INDEX = "pgembed index"
INDEX_PROGRESS = "pgembed index (progress)"
PROGRESS = "pgembed progress"
DOCTOR = "pgembed doctor"
SERVE = "pgembed serve"
WEB = "pgembed web"
