"""What a user of compress did that cannot work, said so that they can mend it."""


class RecipeError(Exception):
    """The recipe, or something it points at, is wrong; the message says what, where and what to do next."""


class GateError(Exception):
    """The shipped student is below the recipe's gate."""


class StageError(Exception):
    """A stage could not do its work though the recipe is in order; the message says which and what to do next."""
