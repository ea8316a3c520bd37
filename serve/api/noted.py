"""What is known of a request while it is answered: it ends up in the request's line of the log."""

from contextvars import ContextVar

noted: ContextVar[dict[str, object]] = ContextVar("noted")
"""One dictionary for each request, shared by the tasks it starts."""


def note(**fields: object) -> None:
    """Add fields to the line the request gets in the log."""
    noted.get({}).update(fields)


def note_more(**amounts: int) -> None:
    """Add amounts to those that were noted before: a request may be made of several analyses."""
    fields = noted.get({})
    for name, amount in amounts.items():
        former = fields.get(name, 0)
        fields[name] = amount + former if isinstance(former, int) else amount
