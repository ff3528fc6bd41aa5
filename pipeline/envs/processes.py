"""Processes of the fork server: they have everything loaded that a training needs, and one thread each."""

import multiprocessing
import os
import threading
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Final

from pipeline.names import THREAD_VARIABLES

PRELOADED: Final = ["pipeline.executors.preloaded"]
STARTING: Final = threading.Lock()  # the environment is that of all threads


def fork_server() -> ForkServerContext:
    """Where processes and the pipes to them come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start(process: BaseProcess) -> None:
    """Start a process; the fork server, which starts with the first one, tells its libraries to use one thread."""
    # it takes its environment from us when it starts; libraries read these once, when they load
    with STARTING:
        before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        try:
            process.start()
        finally:
            for name in THREAD_VARIABLES:
                del os.environ[name]
            os.environ.update({name: value for name, value in before.items() if value is not None})
