"""Background work: the only place with threads.

`drive` holds one conversation with one worker process under limits; `ask` is the lane of quick
read-only questions to one warm worker; `do` is the queue of deeds, each in a process of its own.
"""

from studio.app.jobs.ask import AskLane
from studio.app.jobs.do import Deed, DoLane, Run
from studio.app.jobs.drive import (
    Driver,
    Limits,
    WorkFailed,
    default_limits,
    error_of,
    expect,
    run_task,
    subject_of,
)
from studio.app.jobs.inbox import Inbox
from studio.app.jobs.records import Failure, Job, LogLine

__all__ = [
    "AskLane",
    "Deed",
    "DoLane",
    "Driver",
    "Failure",
    "Inbox",
    "Job",
    "Limits",
    "LogLine",
    "Run",
    "WorkFailed",
    "default_limits",
    "error_of",
    "expect",
    "run_task",
    "subject_of",
]
