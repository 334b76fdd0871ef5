"""The administrator's command at the freeze."""
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

STANDARD_ERROR = 2


async def run_hook(command: Sequence[str], variables: Mapping[str, str], limit_s: float) -> str:
    """Runs it, without a shell, in a process group of its own, with `variables` in its environment. Answers a sentence
    that tells how it failed, or nothing. What it prints goes to standard error; after `limit_s` its group is killed."""
    process = None
    try:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **variables}, stdin=asyncio.subprocess.DEVNULL, stdout=STANDARD_ERROR,
            start_new_session=True)
        async with asyncio.timeout(limit_s):
            code = await process.wait()
        return f"the hook ended with {code}" if code else ""
    except TimeoutError:
        return f"the hook took longer than {limit_s:g} s and was ended"
    except OSError as error:
        return f"the hook cannot be run: {error.strerror}"
    finally:
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
