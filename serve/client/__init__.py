"""deepcode-check: findings on the terminal or as JSON, and an exit code a pipeline can gate on."""
