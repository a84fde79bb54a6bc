"""Serves Tidegate's batches: copy this file beside your script, then call serve(handle).

`handle(batch)` gets a dict with batch, run, pipeline, key, attempt, deadline_ms and payload. It returns or yields
the batch's rows, and may count (`batch["statistics"]["seen"] = 7`) and ask for follow-ups
(`batch["follow_ups"].append({"pipeline": "index", "key": "k", "payload": ...})`).

`batch["save_cursor"](cursor)` says how far it has come: if it cannot finish, the next attempt gets `batch["cursor"]`.
Rows that were yielded before are not kept; keep them in the cursor or in a place of your own.
`batch["progress"](done, total)` is what the operator sees of a running batch; the total may be left out.

It raises Reject if the batch would fail again, Throttled if a service said "not now". Any other exception is
tried again. What is printed goes to stderr, whose end is shown with the error.
"""

import json
import os
import sys
import traceback


class Reject(Exception):
    """The batch would fail again."""


class Throttled(Exception):
    """Not now: Throttled("quota", after_ms=30_000)."""

    def __init__(self, reason, after_ms):
        super().__init__(reason)
        self.after_ms = after_ms


def serve(handle):
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Nothing else, not even a child, can write among the answers.

    def say(**word):
        answers.write(json.dumps(word, allow_nan=False).encode() + b"\n")

    def save_cursor(cursor):
        say(cursor=cursor)
        answers.flush()

    def progress(done, total=None):
        say(progress={"done": done} if total is None else {"done": done, "total": total})
        answers.flush()

    say(ready=1)
    answers.flush()
    for line in sys.stdin.buffer:
        batch = json.loads(line) | {"statistics": {}, "follow_ups": []}
        batch |= {"save_cursor": save_cursor, "progress": progress}
        me = {"batch": batch["batch"]}
        try:
            rows = 0
            for row in handle(batch) or ():
                say(row=row)
                rows += 1
            for follow_up in batch["follow_ups"]:
                say(follow_up=follow_up)
            say(completed=me | {"rows": rows, "statistics": batch["statistics"]})
        except Reject as error:
            say(failed=me | {"error": str(error)})
        except Throttled as error:
            say(throttled=me | {"reason": str(error), "after_ms": error.after_ms})
        except Exception:
            say(retry=me | {"error": traceback.format_exc(limit=-3)})
        answers.flush()
