"""The student in the forms that engines load."""
