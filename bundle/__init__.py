"""The contract between compress and serve: what a bundle holds, how a student is asked, what it answers."""
