"""The command line: one module per command, with ``run(argv) -> int``, and nothing but argument handling in it."""
