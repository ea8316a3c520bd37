"""How good a model is: what it is asked, what it said, and what that is worth."""
