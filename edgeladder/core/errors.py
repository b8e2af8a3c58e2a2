"""Every error a user can meet, each with its exit code.

EdgeLadderError          1   something unexpected
├── ConfigError          2   wrong usage or configuration
├── BudgetError          3   does not fit the budget
├── DataError            4   bad input data
├── IntegrityError       5   hash, signature or version does not match
├── FleetError           6   some hosts of the fleet failed
├── StorageError         7   the disk is full or not writable
└── Interrupted        130   stopped by the user; a checkpoint was written
"""

from __future__ import annotations


class EdgeLadderError(Exception):
    """An error that says what went wrong, where, and how to mend it."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None):
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += f" ({self.where})"
        if self.remedy:
            text += f"; remedy: {self.remedy}"
        return text

    def to_dict(self) -> dict[str, str | None]:
        """The `error` object of a command's JSON output."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "remedy": self.remedy,
        }


class ConfigError(EdgeLadderError):
    """Wrong usage or configuration."""

    exit_code = 2


class BudgetError(EdgeLadderError):
    """The work does not fit the memory budget."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        minimum_budget_bytes: int | None = None,
    ):
        super().__init__(message, where=where, remedy=remedy)
        self.minimum_budget_bytes = minimum_budget_bytes


class DataError(EdgeLadderError):
    """Pictures, labels or class names that cannot be used."""

    exit_code = 4


class IntegrityError(EdgeLadderError):
    """A file is not what its manifest says, or of another version."""

    exit_code = 5


class FleetError(EdgeLadderError):
    """Some hosts of a fleet failed; the others' work stands."""

    exit_code = 6


class StorageError(EdgeLadderError):
    """The disk is full or cannot be written."""

    exit_code = 7


class Interrupted(EdgeLadderError):
    """Stopped by the user after a checkpoint was written."""

    exit_code = 130
