"""What the API takes and answers. Progress documents are plain dicts (detour.py makes them); these are the rest."""
from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from detour.backups.catalog import BackupRecord
from detour.backups.raw import Verdict


class StartRequest(BaseModel):
    """POST /v1/detours"""

    model_config = ConfigDict(extra="forbid")

    volume: str = Field(min_length=1)
    store: str | None = None
    tag: str = Field(default="", max_length=200)
    hold_cutover: bool = False


class RestoreRequest(BaseModel):
    """POST /v1/backups/{id}/restore"""

    model_config = ConfigDict(extra="forbid")

    to: str = Field(min_length=1)


def backup_document(record: BackupRecord) -> dict[str, Any]:
    return {**record.model_dump(mode="json"), "pit_at": record.pit_at}


def verdict_document(verdict: Verdict, **more: Any) -> dict[str, Any]:
    return {"id": verdict.backup_id, "ok": verdict.ok, "checked_bytes": verdict.checked_bytes,
            "mismatches": verdict.mismatches, "places": verdict.places, **more}


def error_document(message: str, hint: str = "", exit_code: int = 1) -> dict[str, Any]:
    """The one shape of every error: a sentence, what to do, and the exit code of a command that meets it."""
    return {"error": message, "hint": hint, "exit_code": exit_code}
