"""Run with a peer's Python, so they import nothing but it: servers for engines that come without one, a converter."""
