"""A file becomes units, prompts, answers, and one report whose every finding was checked."""
