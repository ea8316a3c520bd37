"""Our server beside others: the same student, the same functions, the same cores."""
