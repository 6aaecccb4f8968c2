"""What runs when a round ends."""

from typing import Any

from udmlss._checks import check_integer, value_error
from udmlss.types import RoundReport


class StopWhenSettled:
    """Ends the training once the clusters hardly change any more.

    Args:
        agreement: Adjusted Rand index with the round before that counts as settled, in 0..1.
        patience: Rounds in a row that must reach it.

    Raises:
        ValueError: A number out of its range.

    Example:
        `fit(model, images, ..., callbacks=[StopWhenSettled(0.95)])`
    """

    def __init__(self, agreement: float = 0.95, patience: int = 3) -> None:
        if not 0 < agreement <= 1:
            raise value_error("`agreement` must lie above 0 and up to 1", agreement, "Values near 0.95 are usual")
        check_integer("patience", patience, 1)
        self.agreement = agreement
        self.patience = patience
        self._settled = 0

    def __call__(self, report: RoundReport) -> bool:
        """Return True when enough rounds in a row were settled."""
        settled = report.agreement is not None and report.agreement >= self.agreement
        self._settled = self._settled + 1 if settled else 0
        return self._settled >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return how many rounds in a row were settled."""
        return {"settled": self._settled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._settled = state["settled"]
