"""A live screen: the picture of the latest snapshot, events, and keys that act as commands do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from pgqueue_embed.cli.display import make_console
from pgqueue_embed.cli.picture import Canvas, events, failures, picture
from pgqueue_embed.cli.terminal import ESCAPE, Terminal
from pgqueue_embed.monitoring import actions, words
from pgqueue_embed.monitoring.news import collapsed
from pgqueue_embed.quantities import count
from pgqueue_embed.untrusted.foreign_text import printable

if TYPE_CHECKING:
    from pgqueue_embed.monitoring.snapshot import PipelineState, Row, Snapshot
    from pgqueue_embed.monitoring.watcher import Watcher

REFRESH_SECONDS = 1.0
MESSAGE_SECONDS = 10.0
MOST_EVENTS = 5

TAB = "\t"
YES = ("y", "Y")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked before `action` is done, which returns what to say then."""

    text: str
    action: actions.Action


class Screen:
    """Shows what `watcher` has seen; `on_quit` is called when a person wants to leave.

    `quit_words` say what leaving does, `no_worker` what it means if none is at work. `said` returns
    lines that were meant for the terminal meanwhile, the last ones last.
    """

    def __init__(
        self,
        terminal: Terminal,
        watcher: Watcher,
        conninfo: str,
        *,
        on_quit: Callable[[], None],
        quit_words: str,
        no_worker: str = words.NO_WORKER,
        said: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._terminal = terminal
        self._watcher = watcher
        self._conninfo = conninfo
        self._on_quit = on_quit
        self._quit_words = quit_words
        self._no_worker = no_worker
        self._said = said
        self._selected: str | None = None
        self._question: Question | None = None
        self._shows_failures = False
        self._message = ""
        self._message_until = 0.0
        self._drawn_at = -REFRESH_SECONDS
        self._is_stale = True

    def update(self, wait_seconds: float = 0.0) -> None:
        """React to keys, waiting for them if asked to, and draw what has changed."""
        for key in self._terminal.keys(wait_seconds):
            self._react(key)
            self._is_stale = True
        due = time.monotonic() - self._drawn_at >= REFRESH_SECONDS
        if due or self._is_stale or self._terminal.is_resized():
            self._is_stale, self._drawn_at = False, time.monotonic()
            self._draw()

    def _react(self, key: str) -> None:
        asked, self._question = self._question, None
        if asked is not None:
            if key in YES:
                self._say("…")
                threading.Thread(target=self._act, args=(asked.action,), daemon=True).start()
            return
        if key == TAB:
            self._select_next()
        elif key in ("f", ESCAPE):
            self._shows_failures = key == "f" and not self._shows_failures
        elif key == "q":
            self._on_quit()
        elif key == "p":
            self._question = self._pause_or_resume()
        elif key == "r":
            self._question = self._retry_all()
        elif key.isdigit() and self._shows_failures:
            self._question = self._retry_group(int(key))

    def _act(self, action: actions.Action) -> None:
        """Do what was asked for, over a connection of its own and with no other rights."""
        self._say(actions.act(self._conninfo, action))
        self._watcher.look_now()

    def _say(self, message: str) -> None:
        self._message = printable(message)
        self._message_until = time.monotonic() + MESSAGE_SECONDS
        self._is_stale = True

    def _pipeline(self) -> PipelineState | None:
        """Return the pipeline that keys are for: the selected one of those shown, or the first."""
        by_name = {each.name: each for each in self._shown()}
        return by_name.get(self._selected or "") or next(iter(by_name.values()), None)

    def _shown(self) -> Sequence[PipelineState]:
        latest = self._watcher.latest
        return collapsed(latest).pipelines if latest is not None else ()

    def _select_next(self) -> None:
        current = self._pipeline()
        if current is not None:
            names = [each.name for each in self._shown()]
            self._selected = names[(names.index(current.name) + 1) % len(names)]

    def _pause_or_resume(self) -> Question | None:
        pipeline = self._pipeline()
        if pipeline is None:
            return None
        name = pipeline.name
        if pipeline.row["state"] == "paused":
            return Question(text=f"resume {name}?", action=lambda c: actions.resume(c, name))
        return Question(
            text=f"pause {name}? Workers finish what they hold.",
            action=lambda c: actions.pause(c, name),
        )

    def _retry_all(self) -> Question | None:
        pipeline = self._pipeline()
        if pipeline is None:
            return None
        if not pipeline.row["dead"]:
            self._say(f"{pipeline.name} has no dead letters")
            return None
        name = pipeline.name
        letters = count(pipeline.row["dead"], "dead letter")
        return Question(
            text=f"retry {letters} of {name}?", action=lambda c: actions.retry(c, name, None)
        )

    def _retry_group(self, number: int) -> Question | None:
        groups = self._groups()
        if not 1 <= number <= len(groups):
            return None
        row = groups[number - 1]
        name, kind = str(row["pipeline"]), str(row["error"] or "")
        letters = count(row["failures"], "dead letter")
        return Question(
            text=f"retry {letters} of {name}: {kind}?",
            action=lambda c: actions.retry(c, name, kind),
        )

    def _groups(self) -> Sequence[Row]:
        return self._watcher.latest.failures if self._watcher.latest else ()

    def _draw(self) -> None:
        columns, lines = self._terminal.size
        console = make_console(width=max(columns, 20), is_screen=True)
        canvas = Canvas(
            width=console.width, is_ascii=console.options.ascii_only, no_worker=self._no_worker
        )
        latest = self._watcher.latest
        foot = _rendered(console, self._foot(canvas))
        room = max(lines - len(foot) - 1, 1)
        if latest is None:
            body = _rendered(console, [Text(self._watcher.trouble or "looking …")])
        else:
            body = self._body(console, latest, canvas, room)
        body = body[:room] + [""] * (room - len(body))
        self._terminal.draw([*body, "", *foot][-lines:])

    def _body(self, console: Console, latest: Snapshot, canvas: Canvas, room: int) -> list[str]:
        if self._shows_failures:
            return _rendered(console, failures(latest, canvas))
        shown = collapsed(latest)
        several = len(shown.pipelines) > 1
        current = self._pipeline()
        mark = current.name if several and current else None
        # Of more than there are lines, not all are drawn to be cut again.
        fit = len(shown.pipelines) <= room
        body = _rendered(console, picture(shown, canvas, selected=mark)) if fit else []
        if not fit or (several and len(body) > room):
            others = _rendered(console, picture(replace(shown, pipelines=[]), canvas))
            most = max(room - len(others) - 1, 3)
            body = _rendered(console, picture(shown, canvas, selected=mark, most=most))
        if len(body) > room:
            more = len(body) - room + 1
            return [*body[: room - 1], f"… {count(more, 'more line')}; a larger window shows them"]
        left = room - len(body) - 1
        if left > 1:
            told = events(latest, canvas, min(MOST_EVENTS, left))
            body += ["", *_rendered(console, told)]
        return body

    def _foot(self, canvas: Canvas) -> list[Text]:
        said = [_line(printable(each), "dim", canvas) for each in self._said()[-3:]]
        if self._watcher.trouble and self._watcher.latest is not None:
            said.append(_line(f"not up to date: {printable(self._watcher.trouble)}", "red", canvas))
        if self._message and time.monotonic() < self._message_until:
            said.append(_line(self._message, "bold", canvas))
        if self._question is not None:
            return [*said, _line(printable(self._question.text), "bold yellow", canvas, " [y/n]")]
        return [*said, _line(self._keys(canvas.width), "dim", canvas)]

    def _keys(self, width: int) -> str:
        if not self._terminal.has_keys:
            return f"Ctrl-C: {self._quit_words}"
        if self._shows_failures:
            return "1–9 retry that kind · r retry all · f back · q quit"
        if self._watcher.latest is None:
            return f"q {self._quit_words}"
        pipeline = self._pipeline()
        paused = pipeline is not None and pipeline.row["state"] == "paused"
        keys = [f"q {self._quit_words}", "p resume" if paused else "p pause"]
        if pipeline is not None and pipeline.row["dead"]:
            keys += ["f failures", "r retry dead"]
        if len(self._shown()) > 1:
            keys.append("Tab next pipeline")
        # One that is cut in its middle cannot be read.
        while len(keys) > 1 and len(" · ".join(keys)) > width:
            keys.pop()
        return " · ".join(keys)


def _line(text: str, style: str, canvas: Canvas, ending: str = "") -> Text:
    """Return `text` cut to one line, `ending` not."""
    line = Text(text, style=style)
    line.truncate(canvas.width - len(ending), overflow="ellipsis")
    return line.append(ending)


def _rendered(console: Console, parts: Sequence[RenderableType]) -> list[str]:
    if not parts:
        return []
    with console.capture() as captured:
        console.print(Group(*parts))
    return captured.get().splitlines()


def ending(
    snapshot: Snapshot, no_worker: str = words.NO_WORKER, *, seconds: float = 0.0
) -> list[str]:
    """Return what stays on the terminal when the screen is gone: a line for each pipeline.

    Of those in which nothing happens now, what others are busy hides, unless a worker has
    committed in these last seconds.
    """
    busy = collapsed(snapshot).pipelines
    return [
        words.line(each, no_worker)
        for each in snapshot.pipelines
        if each in busy or _has_committed(each.row, snapshot.now - timedelta(seconds=seconds))
    ]


def _has_committed(row: Row, since: datetime) -> bool:
    return row["last_commit_at"] is not None and row["last_commit_at"] > since
